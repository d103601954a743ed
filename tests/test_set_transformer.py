"""The network of the constellations: shapes, labels, clock, and named attention."""

import pytest
import torch

from guidance_edu.attention import attention_layers, recorded, replaced
from guidance_edu.denoisers import Denoiser
from guidance_edu.guidance import Guided
from guidance_edu.negatives import without_condition
from guidance_edu.negatives.attention import identity_attention
from toy_models.set_transformer import SetTransformer, constellation_denoiser

SMALL = {"width": 16, "heads": 2}


def stirred(**options):
    """A small network in which no weight is zero, so that every path reaches the output."""
    torch.manual_seed(0)
    model = constellation_denoiser(**{**SMALL, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def batch(n=3):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, 24, 2, generator=rng), torch.arange(n) % 4


def test_it_is_a_denoiser_of_points_and_a_new_one_is_linear():
    model, (x, labels) = stirred(), batch()
    assert isinstance(model, Denoiser) and model(x, 0.5, labels).shape == x.shape
    torch.testing.assert_close(model(x, 0.0, labels), x)
    new = constellation_denoiser(**SMALL)
    share = new.sigma_data**2 / (new.sigma_data**2 + 0.5**2)
    torch.testing.assert_close(new(x, 0.5, labels), share * x)


def test_it_has_the_size_that_the_book_says():
    size = sum(p.numel() for p in SetTransformer().parameters())
    assert 150_000 < size < 170_000


def test_samples_of_a_batch_do_not_touch_each_other():
    model, (x, labels) = stirred(), batch()
    sigma = torch.tensor([0.1, 1.0, 10.0])
    together = model(x, sigma, labels)
    for k in range(3):
        alone = model(x[k : k + 1], float(sigma[k]), labels[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-5, rtol=1e-5)


def test_noise_level_class_and_the_place_of_a_point_in_the_row_are_heard():
    model, (x, labels) = stirred(), batch()
    plain = model(x, 0.5, labels)
    assert not torch.allclose(plain, model(x, 0.5, (labels + 1) % 4))
    raw, noise = model.network, torch.full((3,), 0.1)
    assert not torch.allclose(raw(x, noise, labels), raw(x, noise + 0.3, labels))
    assert not torch.allclose(model(x.flip(1), 0.5, labels).flip(1), plain)


def test_no_condition_means_the_null_label():
    model, (x, _) = stirred(), batch()
    null = model(x, 0.5, torch.tensor([4, 4, 4]))
    assert model.null_label == 4 and torch.equal(model(x, 0.5), null)
    assert torch.equal(without_condition(model)(x, 0.5, torch.tensor([3, 3, 1])), null)


def test_networks_without_null_label_or_classes_say_so():
    x, labels = batch()
    with pytest.raises(ValueError, match="without a null label; expected a condition of shape"):
        stirred(null=False)(x, 0.5)
    with pytest.raises(ValueError, match="expected classes from 0 to 3, got 2 to 4"):
        stirred(null=False)(x, 0.5, labels + 2)
    unlabelled = stirred(classes=0)
    assert unlabelled(x, 0.5).shape == x.shape and unlabelled.null_label is None
    with pytest.raises(ValueError, match="knows no classes"):
        unlabelled(x, 0.5, labels)
    with pytest.raises(ValueError, match=r"expected x of shape \[n, 24, 2\], got \[3, 23, 2\]"):
        stirred()(x[:, 1:], 0.5, labels)


def test_networks_that_differ_in_labels_alone_start_from_the_same_weights():
    models = []
    for options in ({}, {"null": False}, {"classes": 0}):
        torch.manual_seed(3)
        models.append(SetTransformer(**SMALL, **options))
    first = models[0].state_dict()
    for other in models[1:]:
        for key, value in other.state_dict().items():
            assert key.startswith("label") or torch.equal(value, first[key]), key


def test_each_attention_layer_has_a_name_a_row_of_points_and_reaches_the_output():
    model, (x, labels) = stirred(), batch()
    plain, seen = model(x, 0.5, labels), {}
    assert list(attention_layers(model)) == ["block.0", "block.1", "block.2"]
    with recorded(model, ["block.0", "block.2"]) as maps:
        model(x, 0.5, labels)
    assert maps["block.2"][0].weights.shape == (3, 2, 24, 24)
    for name in attention_layers(model):

        def identity(queries, keys, values, grid, name=name):
            seen[name] = grid
            return values

        with replaced(model, [name], identity, slice(1, None)):
            changed = model(x, 0.5, labels)
        torch.testing.assert_close(changed[0], plain[0], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(changed[1], plain[1]) and seen[name] == (1, 24)


def test_every_weight_gets_a_gradient():
    model, (x, labels) = stirred(), batch(4)
    model(x, 0.5, labels).square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == [] and model.network.label.weight.grad[4].eq(0).all()


@pytest.mark.parametrize("layers", [["block.0"], ["block.1", "block.2"], [-1]])
def test_one_pass_that_forks_gives_what_two_passes_give(layers):
    model, (x, labels) = stirred(), batch()
    negative, sigma = identity_attention(model, layers), torch.tensor([0.1, 0.5, 3.0])
    positive, other = negative.pair(x, sigma, labels)
    torch.testing.assert_close(positive, model(x, sigma, labels))
    torch.testing.assert_close(other, negative(x, sigma, labels))
    assert not torch.allclose(positive, other)
    guided = Guided(model, negative, 1.5)(x, sigma, labels)
    torch.testing.assert_close(guided, positive + 0.5 * (positive - other))
