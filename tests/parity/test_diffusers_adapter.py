"""The negatives of the book on networks of diffusers 0.42.1, against diffusers' own processors."""

import math
import os
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the package is imported

import pytest
import torch

from guidance_edu.adapters import from_diffusers
from guidance_edu.attention import attention_layers, recorded, replaced
from guidance_edu.energy import blur_tokens
from guidance_edu.guidance import Guided
from guidance_edu.negatives.attention import (
    identity_attention,
    keep_values,
    perturbed_attention,
    smoothed_attention,
)
from guidance_edu.negatives.clock import perturbed_time
from guidance_edu.negatives.condition import gaussian_condition, without_condition
from guidance_edu.negatives.input import blurred_input, received_attention
from guidance_edu.samplers import noise_levels, sample

diffusers = pytest.importorskip("diffusers", minversion="0.36")

from diffusers import (  # noqa: E402
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)
from diffusers.models.attention_processor import (  # noqa: E402
    AttnProcessor,
    PAGCFGIdentitySelfAttnProcessor2_0,
    PAGIdentitySelfAttnProcessor2_0,
)

from tests.parity.networks import (  # noqa: E402
    LABELS,
    TEXT,
    WIDTH,
    draw,
    level,
    stirred,
    with_classes,
    with_text,
)

pytestmark = pytest.mark.skipif(
    diffusers.__version__ != "0.42.1", reason="the chapters speak of diffusers 0.42.1"
)

KINDS = ("epsilon", "v_prediction", "sample")
SIZES = [(16, 16), (8, 24)]
T = 400
ALPHA, SIGMA = level(DDIMScheduler(), T)
# The networks' answers are of size 10 and float32; noise enters a clean sample times sigma = 1.4.
CLOSE = {"rtol": 1e-5, "atol": 5e-5}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


class Case(SimpleNamespace):
    """One network with what it is asked: network, model, x at SIGMA, condition."""

    def raw(self, x=None, condition=None):
        """Ask the network itself, in its own units."""
        x = self.x if x is None else x
        named = {self.told_as: self.condition if condition is None else condition}
        return self.network(ALPHA * x, torch.tensor(T), **named).sample

    def clean(self, x, noise):
        return x - SIGMA * noise


@pytest.fixture(scope="module")
def networks():
    return {"classes": with_classes(), "text": with_text()}


@pytest.fixture(params=["classes", "text"])
def case(request, networks):
    return made(request.param, networks)


def made(name, networks, size=(16, 16), kind="epsilon"):
    network, scheduler = networks[name], DDIMScheduler(prediction_type=kind)
    channels = network.config.in_channels
    x = SIGMA * draw(3, channels, *size)
    if name == "classes":
        condition, told_as, null = torch.tensor([0, 3, 1]), "class_labels", LABELS - 1
    else:
        condition, told_as = draw(3, TEXT, WIDTH, seed=1), "encoder_hidden_states"
        null = draw(TEXT, WIDTH, seed=2)
    model = from_diffusers(network, scheduler, null)
    return Case(
        name=name,
        network=network,
        model=model,
        x=x,
        condition=condition,
        told_as=told_as,
        null=null,
    )


def processors(network):
    # Not network.attn_processors, which UNet2DModel has not.
    return {name: m.processor for name, m in network.named_modules() if hasattr(m, "processor")}


def with_pag(case, names, parts=2):
    """Return the answer of the network under the processors of PAG, in parts."""
    layers = [case.network.get_submodule(name) for name in names]
    before = [layer.processor for layer in layers]
    make = PAGIdentitySelfAttnProcessor2_0 if parts == 2 else PAGCFGIdentitySelfAttnProcessor2_0
    for layer in layers:
        layer.set_processor(make())
    try:
        x = torch.cat([case.x] * parts)
        return case.raw(x, torch.cat([case.condition] * parts)).chunk(parts)
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)


def of(case, kind):
    """Return the places of layers that are tried: one in the middle, the first, all."""
    names = list(attention_layers(case.model))
    middle = [name for name in names if name.startswith("mid_block")]
    return {"middle": middle, "first": names[:1], "all": names}[kind]


every_choice = pytest.mark.parametrize("choice", ["middle", "first", "all"])


# as a denoiser


@every_kind
@pytest.mark.parametrize("name", ["classes", "text"])
@pytest.mark.parametrize("t", [0, 20, 400, 999])
def test_the_estimate_is_the_one_of_their_scheduler(name, kind, t, networks):
    case = made(name, networks, kind=kind)
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    alpha, sigma = level(scheduler, t)
    x = sigma * case.x / SIGMA
    out = case.network(alpha * x, torch.tensor(t), **{case.told_as: case.condition}).sample
    theirs = scheduler.step(out, t, alpha * x).pred_original_sample
    size = max(x.abs().max(), theirs.abs().max()).item()
    for told in (sigma, torch.full((3,), sigma, dtype=torch.float64)):
        result = case.model(x, told, case.condition)
        torch.testing.assert_close(result, theirs, rtol=0, atol=2e-5 * size)


def test_between_two_steps_the_time_is_interpolated(case):
    times = []
    inner = case.network.time_proj.register_forward_pre_hook(
        lambda m, inputs: times.append(inputs[0])
    )
    (_, low), (_, high) = (level(DDIMScheduler(), t) for t in (500, 501))
    try:
        for sigma in (low, math.sqrt(low * high), high):
            case.model(case.x, sigma, case.condition)
    finally:
        inner.remove()
    for time, expected in zip(times, (500.0, 500.5, 501.0), strict=True):
        torch.testing.assert_close(time, torch.full((3,), expected), rtol=0, atol=1e-3)


def test_every_sample_has_a_level_of_its_own(case):
    sigmas = torch.tensor([0.0, 0.7, 3.0])
    together = case.model(case.x, sigmas, case.condition)
    for i in range(3):
        alone = case.model(case.x[i : i + 1], float(sigmas[i]), case.condition[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)
    assert torch.equal(together[0], case.x[0])  # sigma = 0 has nothing to remove


def test_computed_in_the_networks_precision_and_returned_in_that_of_x(case):
    result = case.model(case.x.double(), SIGMA, case.condition)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result.float(), case.model(case.x, SIGMA, case.condition), **CLOSE)


def test_no_condition_is_the_null_that_was_given(case):
    negative = without_condition(case.model)
    null = torch.full((3,), case.null) if case.name == "classes" else case.null.expand(3, -1, -1)
    expected = case.clean(case.x, case.raw(condition=null))
    torch.testing.assert_close(negative(case.x, SIGMA, case.condition), expected, **CLOSE)
    torch.testing.assert_close(case.model(case.x, SIGMA), expected, **CLOSE)
    plain = case.model(case.x, SIGMA, case.condition)
    assert (plain - expected).abs().max() > 0.1


@pytest.mark.parametrize("batching", ["one", "two"])
def test_guided_and_sampled_like_every_denoiser(case, batching):
    guided = Guided(case.model, without_condition(case.model), 2.0, batching=batching)
    levels = noise_levels(3, sigma_max=80.0)
    start = levels[0] * draw(*case.x.shape)
    assert sample(guided, start, levels, case.condition).isfinite().all()


# attention


@every_size
def test_reading_changes_nothing_and_sees_every_layer(case, size, networks):
    case = made(case.name, networks, size)
    names = list(attention_layers(case.model))
    plain = case.model(case.x, SIGMA, case.condition)
    with recorded(case.model, names) as maps:
        result = case.model(case.x, SIGMA, case.condition)
    torch.testing.assert_close(result, plain, **CLOSE)
    for name in names:
        (seen,) = maps[name]
        halved = "mid" in name or case.name == "classes"  # these attend at half the size
        assert seen.grid == tuple(s // 2 if halved else s for s in size)
        assert seen.weights.shape == (3, 4, *[math.prod(seen.grid)] * 2)
        torch.testing.assert_close(seen.weights.sum(-1), torch.ones_like(seen.weights[..., 0]))
        assert received_attention(seen).shape == (3, *seen.grid)


def test_where_nobody_reaches_in_the_network_runs_as_it_is(case):
    expected = case.clean(case.x, case.raw())
    assert (case.model(case.x, SIGMA, case.condition) - expected).abs().max() < 1e-5
    name = next(iter(attention_layers(case.model)))
    seen = []
    handle = case.network.get_submodule(name).to_q.register_forward_hook(
        lambda m, i, o: seen.append(type(case.network.get_submodule(name).processor).__name__)
    )
    case.model(case.x, SIGMA, case.condition)
    handle.remove()
    assert seen == ["AttnProcessor2_0"]


@every_size
@every_choice
def test_identity_attention_is_that_of_their_pag(case, size, choice, networks):
    case = made(case.name, networks, size)
    names = of(case, choice)
    plain, negative = (case.clean(case.x, out) for out in with_pag(case, names))
    ours = identity_attention(case.model, names)
    torch.testing.assert_close(ours(case.x, SIGMA, case.condition), negative, **CLOSE)
    both = ours.pair(case.x, SIGMA, case.condition)
    torch.testing.assert_close(both, (plain, negative), **CLOSE)
    assert (plain - negative).abs().max() > 0.1
    guided = Guided(case.model, ours, 4.0)(case.x, SIGMA, case.condition)
    torch.testing.assert_close(guided, plain + 3 * (plain - negative), rtol=1e-5, atol=3e-4)


def test_identity_attention_beside_cfg_is_that_of_their_pag(case):
    names = of(case, "middle")
    _, plain, negative = (case.clean(case.x, out) for out in with_pag(case, names, 3))
    both = identity_attention(case.model, names).pair(case.x, SIGMA, case.condition)
    torch.testing.assert_close(both, (plain, negative), **CLOSE)


def test_only_the_chosen_samples_are_perturbed(case):
    names = of(case, "all")
    plain = case.model(case.x, SIGMA, case.condition)
    negative = identity_attention(case.model, names)(case.x, SIGMA, case.condition)
    with replaced(case.model, names, keep_values, slice(1, 2)):
        result = case.model(case.x, SIGMA, case.condition)
    torch.testing.assert_close(result[1], negative[1], **CLOSE)
    torch.testing.assert_close(result[[0, 2]], plain[[0, 2]], **CLOSE)


@every_size
@pytest.mark.parametrize("sigma", [0.5, 2.0, math.inf])
def test_smoothed_attention_is_a_blur_behind_their_query_projection(case, size, sigma, networks):
    case = made(case.name, networks, size)
    handles = []
    for name in of(case, "all"):
        halved = "mid" in name or case.name == "classes"
        grid = tuple(s // 2 if halved else s for s in size)

        def blur(module, inputs, output, grid=grid):
            return blur_tokens(output[:, None], grid, sigma)[:, 0]

        layer = case.network.get_submodule(name)
        handles.append(layer.to_q.register_forward_hook(blur))
    try:
        expected = case.clean(case.x, case.raw())
    finally:
        for handle in handles:
            handle.remove()
    negative = smoothed_attention(case.model, of(case, "all"), sigma)
    torch.testing.assert_close(negative(case.x, SIGMA, case.condition), expected, **CLOSE)
    plain = case.model(case.x, SIGMA, case.condition)
    assert (plain - expected).abs().max() > 1e-3


def test_a_blurred_estimate_goes_through_the_same_layer(case):
    (name,) = of(case, "middle")
    negative = blurred_input(case.model, name, blur=1.0, taps=9)
    positive, worse = negative.pair(case.x, SIGMA, case.condition)
    torch.testing.assert_close(positive, case.model(case.x, SIGMA, case.condition), **CLOSE)
    assert (positive - worse).abs().max() > 1e-3


# other places


def test_the_clock_and_the_condition_are_parts_by_name(case):
    rng = torch.Generator().manual_seed(0)
    plain = case.model(case.x, SIGMA, case.condition)
    wrong = perturbed_time(case.model, 1.0, rng, clock="network.time_embedding")
    assert (wrong(case.x, SIGMA, case.condition) - plain).abs().max() > 1e-3
    still = perturbed_time(case.model, 0.0, rng, clock="network.time_embedding")
    torch.testing.assert_close(still(case.x, SIGMA, case.condition), plain, **CLOSE)
    part = "network.class_embedding" if case.name == "classes" else None
    noise = gaussian_condition(case.model, rng, part)
    assert (noise(case.x, SIGMA, case.condition) - plain).abs().max() > 1e-3


# left whole


class Stop(Exception):
    pass


def test_the_network_is_whole_again_whatever_happens(case):
    names, before = of(case, "all"), processors(case.network)
    hooks = sum(len(m._forward_pre_hooks) for m in case.network.modules())

    def whole():
        same = all(processors(case.network)[name] is old for name, old in before.items())
        return same and hooks == sum(len(m._forward_pre_hooks) for m in case.network.modules())

    identity_attention(case.model, names)(case.x, SIGMA, case.condition)
    assert whole()

    def stop(*parts):
        raise Stop

    with pytest.raises(Stop):
        perturbed_attention(case.model, names, stop)(case.x, SIGMA, case.condition)
    assert whole()
    with replaced(case.model, names, keep_values):
        assert whole()  # reached into during a call alone


def test_the_adapter_adds_no_weights(case):
    ours = {id(p) for p in case.model.parameters()}
    assert ours == {id(p) for p in case.network.parameters()}


# what is refused


def test_attention_to_a_text_is_refused_by_name(networks):
    case = made("text", networks)
    name = of(case, "middle")[0].replace("attn1", "attn2")
    assert "cross-attention" in case.model.closed[name]
    with pytest.raises(ValueError, match=r"attn2' cannot be reached into: it is cross-attention"):
        identity_attention(case.model, [name])
    with pytest.raises(ValueError, match="not found; this network has: down_blocks"):
        identity_attention(case.model, ["mid"])


def test_rotary_positions_and_joint_attention_are_refused():
    flux = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 2, 2),
    )
    sd3 = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
    )
    for network, processor in ((flux, "FluxAttnProcessor"), (sd3, "JointAttnProcessor2_0")):
        model = from_diffusers(network, DDIMScheduler())
        assert model.closed
        with pytest.raises(ValueError, match=f"no attention layer.*its processor is {processor}"):
            identity_attention(model, [0])


def test_other_processors_are_refused_also_after_the_adapter_was_made():
    case = made("text", {"text": with_text()})
    (name,) = of(case, "middle")
    negative = identity_attention(case.model, [name])
    case.network.fuse_qkv_projections()
    with pytest.raises(ValueError, match="its processor is FusedAttnProcessor2_0"):
        negative(case.x, SIGMA, case.condition)
    assert type(case.network.get_submodule(name).processor).__name__ == "FusedAttnProcessor2_0"


def test_a_mask_is_refused(networks):
    case = made("text", networks)
    (name,) = of(case, "middle")
    layer = case.network.get_submodule(name)
    tokens = draw(1, 64, 32)
    opening = attention_layers(case.model)[name]
    with opening.installed(case.network), pytest.raises(ValueError, match="given attention_mask"):
        layer(tokens, attention_mask=torch.zeros(1, 1, 64))
    with opening.installed(case.network), pytest.raises(ValueError, match="given another sequence"):
        layer(tokens, encoder_hidden_states=tokens)


ODD = {  # what a layer may have that our attention has not
    "its logits are scaled": lambda layer: setattr(layer, "scale", 1.0),
    "several heads share": lambda layer: setattr(layer, "to_k", torch.nn.Linear(32, 16)),
    "its norm is told more": lambda layer: setattr(layer, "spatial_norm", torch.nn.Identity()),
    "leaves out the norm of queries": lambda layer: (
        layer.set_processor(AttnProcessor()),
        setattr(layer, "norm_q", torch.nn.Identity()),
    ),
}


@pytest.mark.parametrize("reason", ODD)
def test_a_layer_that_attends_otherwise_is_refused(reason):
    case = made("classes", {"classes": with_classes()})
    (name,) = of(case, "middle")
    ODD[reason](case.network.get_submodule(name))
    model = from_diffusers(case.network, DDIMScheduler())
    with pytest.raises(ValueError, match=f"cannot be reached into: .*{reason}"):
        identity_attention(model, [name])


def test_queries_are_changed_behind_their_norm():
    """The norm of queries and keys is computed, and a blur comes after it: a blur of the logits."""
    network = stirred(
        lambda norm_num_groups, **options: DiTTransformer2DModel(**options),
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,  # with a variance for each
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=LABELS,
    )
    layer = network.transformer_blocks[0].attn1
    layer.norm_q, layer.norm_k = (torch.nn.RMSNorm(8, eps=1e-6) for _ in range(2))
    layer.norm_q.weight.data = 1 + draw(8).abs()
    layer.requires_grad_(False)
    model = from_diffusers(network, DDIMScheduler(), LABELS)
    x, labels, name = draw(2, 3, 8, 8), torch.tensor([1, 2]), "transformer_blocks.0.attn1"
    plain = model(x, 1.0, labels)
    with recorded(model, [name]) as maps:
        torch.testing.assert_close(model(x, 1.0, labels), plain, **CLOSE)
    assert maps[name][0].grid == (4, 4)  # patches of two by two pixels
    negative = smoothed_attention(model, [name], 1.0)(x, 1.0, labels)

    def blur(module, inputs, output):
        return blur_tokens(output, (4, 4), 1.0)

    handle = layer.norm_q.register_forward_hook(blur)
    try:
        expected = model(x, 1.0, labels)
    finally:
        handle.remove()
    torch.testing.assert_close(negative, expected, **CLOSE)
    assert (negative - plain).abs().max() > 1e-4


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, EDMEulerScheduler])
def test_schedulers_of_another_kind_are_refused(networks, scheduler):
    with pytest.raises(ValueError, match="expected a scheduler with alphas_cumprod"):
        from_diffusers(networks["text"], scheduler())


def test_the_range_of_noise_is_that_of_the_scheduler(case):
    scheduler = DDPMScheduler()
    _, highest = level(scheduler, 999)
    assert case.model(case.x, highest, case.condition).isfinite().all()
    with pytest.raises(ValueError, match=r"expected sigma up to 157\.\d, the network's last level"):
        case.model(case.x, 160.0, case.condition)


def test_a_last_level_without_signal_has_no_sigma(networks):
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 0
    model = from_diffusers(networks["text"], scheduler)
    text, (_, highest) = draw(1, TEXT, WIDTH), level(scheduler, 998)
    x = highest * draw(1, 4, 16, 16)
    assert model(x, highest, text).isfinite().all()
    with pytest.raises(ValueError, match="the network's last level"):
        model(x, 2 * highest, text)


def test_what_is_no_network_or_takes_no_condition_is_refused():
    with pytest.raises(TypeError, match="expected a network"):
        from_diffusers(lambda x: x, DDIMScheduler())
    plain = from_diffusers(with_classes(num_class_embeds=None), DDIMScheduler())
    x = draw(1, 3, 16, 16)
    assert plain(x, 1.0).shape == x.shape
    with pytest.raises(ValueError, match="class_embedding needs to be initialized"):
        plain(x, 1.0, torch.tensor([0]))

    class Network(torch.nn.Module):
        def forward(self, sample, timestep, return_dict=True):
            return (sample,)

    plain = from_diffusers(Network(), DDIMScheduler())
    assert plain(x, 1.0).shape == x.shape
    with pytest.raises(ValueError, match="Network knows no condition, got one"):
        plain(x, 1.0, torch.tensor([0]))
    with pytest.raises(ValueError, match="has no attention layer"):
        identity_attention(plain, [0])


@pytest.mark.parametrize("null", [True, "10", 10.0, [10]])
def test_a_null_that_is_neither_label_nor_text_is_refused(null):
    with pytest.raises(TypeError, match="null as a label, an embedded text or None"):
        from_diffusers(torch.nn.Identity(), DDIMScheduler(), null=null)


def test_a_condition_of_another_batch_is_refused(networks):
    model = from_diffusers(networks["classes"], DDIMScheduler(), LABELS - 1)
    with pytest.raises(ValueError, match=r"expected 2 conditions, got \[1\]"):
        model(torch.zeros(2, 3, 8, 8), 1.0, torch.tensor([0]))


def test_a_network_in_half_precision_is_told_the_step_exactly(networks):
    told = []

    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

        def forward(self, x, time, return_dict=False):
            told.append(time)
            return (x,)

    from_diffusers(Told(), DDIMScheduler())(torch.zeros(1, 3, 4, 4), 0.9)
    assert float(told[0]) != float(told[0].bfloat16()) and told[0].dtype == torch.float32
