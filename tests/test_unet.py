"""The 64x64 network: shapes, labels, named attention, and the paths that must not be forgotten."""

import pytest
import torch

from guidance_edu.attention import attention_layers, forked, recorded, replaced
from guidance_edu.denoisers import Denoiser
from guidance_edu.negatives.condition import without_condition
from toy_models.unet import UNet, image_denoiser

SMALL = {"channels": (8, 8, 12), "heads": (0, 1, 2), "width": 16}


def stirred(**options):
    """A small network in which no weight is zero, so that every path reaches the output."""
    torch.manual_seed(0)
    model = image_denoiser(**{**SMALL, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def batch(n=2):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 64, 64, generator=rng), torch.tensor([1, 4, 9][:n])


def test_it_is_a_denoiser_of_images():
    model, (x, labels) = stirred(), batch()
    assert isinstance(model, Denoiser)
    assert model(x, 0.5, labels).shape == x.shape
    torch.testing.assert_close(model(x, 0.0, labels), x)


def test_a_new_network_is_the_best_linear_denoiser():
    x, labels = batch()
    model = image_denoiser(**SMALL)
    torch.testing.assert_close(model(x, 0.5, labels), x / 2)


def test_samples_of_a_batch_do_not_touch_each_other():
    model, (x, labels) = stirred(), batch(3)
    sigma = torch.tensor([0.1, 1.0, 10.0])
    together = model(x, sigma, labels)
    for k in range(3):
        alone = model(x[k : k + 1], float(sigma[k]), labels[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-5, rtol=1e-5)


def test_noise_level_class_and_augmentation_are_heard():
    model, (x, labels) = stirred(), batch()
    plain = model(x, 0.5, labels)
    told = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.3, -1.0]])
    assert not torch.allclose(plain, model(x, 0.5, labels + 1 - 2 * (labels == 9)))
    assert not torch.allclose(plain, model(x, 0.5, labels, augmentation=told))
    assert torch.equal(plain, model(x, 0.5, labels, augmentation=torch.zeros(2, 3)))
    raw, noise = model.network, torch.tensor([0.1, 0.1])
    assert not torch.allclose(raw(x, noise, labels), raw(x, noise + 0.3, labels))


def test_no_condition_means_the_null_label():
    model, (x, _) = stirred(), batch()
    assert model.null_label == 10
    null = model(x, 0.5, torch.tensor([10, 10]))
    assert torch.equal(model(x, 0.5), null)
    assert torch.equal(without_condition(model)(x, 0.5, torch.tensor([3, 3])), null)


def test_a_network_without_null_label_refuses_to_go_without_condition():
    model, (x, labels) = stirred(null=False), batch()
    assert model.null_label is None
    model(x, 0.5, labels)
    with pytest.raises(ValueError, match=r"without a null label; expected a condition of shape"):
        model(x, 0.5)
    with pytest.raises(ValueError, match="expected classes from 0 to 9, got 1 to 10"):
        model(x, 0.5, torch.tensor([1, 10]))


def test_an_unconditional_network_refuses_a_condition():
    model, (x, labels) = stirred(classes=0), batch()
    assert model(x, 0.5).shape == x.shape and model.null_label is None
    with pytest.raises(ValueError, match="knows no classes"):
        model(x, 0.5, labels)


def test_networks_that_differ_in_labels_alone_start_from_the_same_weights():
    models = []
    for options in ({}, {"null": False}, {"classes": 0}):
        torch.manual_seed(3)
        models.append(UNet(**SMALL, **options))
    first = models[0].state_dict()
    for other in models[1:]:
        for key, value in other.state_dict().items():
            assert key.startswith("label") or torch.equal(value, first[key]), key


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 64, 64), (3, 64, 64)])
def test_other_image_sizes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected x of shape \[n, 3, 64, 64\]"):
        UNet(**SMALL)(torch.zeros(shape), torch.zeros(shape[0]))


def test_attention_layers_are_named_by_place():
    names = list(attention_layers(UNet(**SMALL)))
    assert names == ["enc.16.0", "enc.8.0", "mid.8", "dec.8.0", "dec.16.0"]
    two = list(attention_layers(UNet(**{**SMALL, "blocks": (1, 2, 1)})))
    assert two == ["enc.16.0", "enc.16.1", "enc.8.0", "mid.8", "dec.8.0", "dec.16.0", "dec.16.1"]


def test_each_attention_layer_reaches_the_output_and_knows_its_grid():
    model, (x, labels) = stirred(), batch()
    plain, sizes = model(x, 0.5, labels), {}
    with recorded(model, list(attention_layers(model))) as maps:
        model(x, 0.5, labels)
    for name in maps:

        def identity(queries, keys, values, grid, name=name):
            sizes[name] = grid
            return values

        with replaced(model, [name], identity, slice(1, None)):
            changed = model(x, 0.5, labels)
        torch.testing.assert_close(changed[0], plain[0], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(changed[1], plain[1])
        side = int(name.split(".")[1])
        assert sizes[name] == (side, side)
        heads = 1 if side == 16 else 2
        assert maps[name][0].weights.shape == (2, heads, side**2, side**2)


def test_bfloat16_is_close_and_returns_float32():
    model, (x, labels) = stirred(), batch()
    exact = model(x, 0.5, labels)
    model.network.bf16 = True
    rounded = model(x, 0.5, labels)
    assert rounded.dtype == torch.float32
    # bfloat16 keeps 8 bits: a fraction of a percent of the output's size, layer upon layer.
    error = ((rounded - exact).std() / exact.std()).detach()
    assert 0 < float(error) < 0.05


def test_every_weight_gets_a_gradient():
    model, (x, labels) = stirred(), batch()
    model(x, 0.5, labels, augmentation=torch.rand(2, 3)).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("layer", ["enc.16.0", "mid.8", "dec.16.0"])
def test_both_answers_of_a_forked_pass_are_those_of_two_passes(layer):
    model, (x, labels) = stirred(), batch()
    sigma = torch.tensor([0.3, 2.0])

    def identity(queries, keys, values, grid):
        return values

    plain = model(x, sigma, labels)
    with replaced(model, [layer], identity):
        other = model(x, sigma, labels)
    with forked(model, [layer], identity, len(x)):
        both = model(x, sigma, labels)
    torch.testing.assert_close(both, torch.cat([plain, other]), atol=1e-5, rtol=1e-5)
