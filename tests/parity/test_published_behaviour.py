"""Where diffusers 0.42.1 does not do what the papers say, and the call that does.

Every test runs the real guider, hook or processor, on a small transformer with random weights, the
way that the library's own pipelines run them. Chapters 04, 09, 10 and 11 name these tests.
"""

import ast
import math
import os
import subprocess
import sys
from inspect import getsourcefile

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the package is imported

import pytest
import torch

from guidance_edu.energy import blur_tokens
from guidance_edu.guidance import guide

diffusers = pytest.importorskip("diffusers", minversion="0.36")

from diffusers import DiTTransformer2DModel  # noqa: E402
from diffusers.guiders import (  # noqa: E402
    AutoGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
)
from diffusers.hooks import HookRegistry, LayerSkipConfig, SmoothedEnergyGuidanceConfig  # noqa: E402
from diffusers.hooks import _common as hook_names  # noqa: E402
from diffusers.hooks.smoothed_energy_guidance_utils import (  # noqa: E402
    SmoothedEnergyGuidanceHook,
    _apply_smoothed_energy_guidance_hook,
)
from diffusers.models.attention_processor import (  # noqa: E402
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    PAGCFGIdentitySelfAttnProcessor2_0,
    PAGIdentitySelfAttnProcessor2_0,
)
from diffusers.pipelines.pag.pag_utils import PAGMixin  # noqa: E402

pytestmark = pytest.mark.skipif(
    diffusers.__version__ != "0.42.1", reason="the chapters speak of diffusers 0.42.1"
)

BLOCKS = [1]  # of three: the middle one
STEP = 3  # of ten: inside every window but the default one of PAG and of layer skipping
NULL = 10


@pytest.fixture(scope="module")
def network():
    """Return a transformer with three blocks and random weights, four by four tokens."""
    torch.manual_seed(0)
    made = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=NULL,
        norm_num_groups=4,
    )
    rng = torch.Generator().manual_seed(1)
    for parameter in made.parameters():  # what starts at zero would hide every block
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=rng)
    return made.eval().requires_grad_(False)


@pytest.fixture
def data():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return x, torch.tensor([3, 4]), torch.full((2,), NULL)


def ask(network, data, unconditional=False):
    x, labels, null = data
    time = torch.full((len(x),), 500)
    answer = network(x, time, class_labels=null if unconditional else labels).sample
    return answer.chunk(2, dim=1)[0]  # the other half is a variance


def run(guider, network, data, step=STEP, steps=10):
    """Run one guided evaluation as the modular pipelines of diffusers do."""
    _, labels, null = data
    guider.set_state(step, steps, torch.tensor(500))
    batches = guider.prepare_inputs({"class_labels": (labels, null)})
    for batch in batches:
        guider.prepare_models(network)
        try:
            batch.noise_pred = ask(network, (data[0], batch.class_labels, null))
        finally:
            guider.cleanup_models(network)
    return guider(batches).pred


def with_processors(network, data, processor, number):
    """Ask once with the processors of the PAG pipelines: a batch of ``number`` parts."""
    x, labels, null = data
    layers = [network.transformer_blocks[i].attn1 for i in BLOCKS]
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(processor)
    parts = [labels, labels] if number == 2 else [null, labels, labels]
    try:
        both = ask(network, (torch.cat([x] * number), torch.cat(parts), null))
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.set_processor(old)
    return both.chunk(number)


def identity(network, data):
    """Return what the network answers with identity attention in the chosen blocks."""
    return with_processors(network, data, PAGIdentitySelfAttnProcessor2_0(), 2)[1]


def perturbed(guidance_scale, scale, **options):
    window = {"perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 1.0}
    layers = {"perturbed_guidance_layers": BLOCKS}
    return PerturbedAttentionGuidance(
        guidance_scale, perturbed_guidance_scale=scale, **window | layers | options
    )


def skipping(guidance_scale, scale, **options):
    config = {"skip_layer_config": LayerSkipConfig(indices=BLOCKS, fqn="transformer_blocks")}
    window = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    return SkipLayerGuidance(
        guidance_scale, skip_layer_guidance_scale=scale, **window | config | options
    )


def smoothed(guidance_scale, scale, **options):
    config = SmoothedEnergyGuidanceConfig(indices=BLOCKS, fqn="transformer_blocks")
    config = {"seg_guidance_config": config}
    return SmoothedEnergyGuidance(guidance_scale, seg_guidance_scale=scale, **config | options)


ADDITIVE = [perturbed, skipping, smoothed]


def test_the_network_of_these_tests_notices_class_and_attention(network, data):
    positive = ask(network, data)
    assert (positive - ask(network, data, unconditional=True)).abs().max() > 0.01
    assert (positive - identity(network, data)).abs().max() > 0.01


# PAG


def test_beside_cfg_the_pag_guider_is_the_pag_of_the_paper(network, data):
    """diffusers 0.42.1: with CFG on and inside its window, the guider does what is published."""
    positive, negative = ask(network, data), ask(network, data, unconditional=True)
    expected = guide(positive, negative, 3.0) + 2.8 * (positive - identity(network, data))
    torch.testing.assert_close(run(perturbed(3.0, 2.8), network, data), expected)


@pytest.mark.parametrize("make", ADDITIVE)
def test_without_cfg_these_guiders_are_cfg_under_another_name(make, network, data):
    """diffusers 0.42.1: guidance_scale=1 turns PAG, SLG and SEG into CFG with w = their scale.

    The perturbed branch gets the unconditional inputs and no perturbation.
    """
    expected = run(ClassifierFreeGuidance(2.8), network, data)
    assert torch.equal(run(make(1.0, 2.8), network, data), expected)


def test_a_guidance_scale_next_to_one_gives_pag_alone(network, data):
    """diffusers 0.42.1, the right way: 1.000001 in place of 1, at the price of a third pass."""
    positive = ask(network, data)
    expected = positive + 2.8 * (positive - identity(network, data))
    result = run(perturbed(1.000001, 2.8), network, data)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_the_pag_guider_does_nothing_on_an_attention_that_is_written_out(network, data):
    """diffusers 0.42.1: the hook reaches torch's scaled_dot_product_attention and nothing else.

    With ``AttnProcessor``, which multiplies matrices itself, the third pass is the positive again.
    """
    guider, layers = perturbed(3.0, 2.8), [b.attn1 for b in network.transformer_blocks]
    before = [layer.processor for layer in layers]
    registry = diffusers.hooks.layer_skip.AttentionProcessorRegistry
    known = registry.get(AttnProcessor2_0)
    try:
        registry._registry[AttnProcessor] = known  # else it is refused, which is a clear message
        for layer in layers:
            layer.set_processor(AttnProcessor())
        result = run(guider, network, data)
        expected = run(ClassifierFreeGuidance(3.0), network, data)
    finally:
        registry._registry.pop(AttnProcessor)
        for layer, old in zip(layers, before, strict=True):
            layer.set_processor(old)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("number", [2, 3])
def test_the_pag_processors_leave_out_the_norm_of_queries_and_keys(number):
    """diffusers 0.42.1: in a layer with qk-norm the PAG processors change the positive itself."""
    torch.manual_seed(0)
    layer = Attention(query_dim=16, heads=2, dim_head=8, qk_norm="rms_norm", eps=1e-6)
    tokens = 3 * torch.randn(2, 9, 16)
    expected = layer(tokens)
    made = PAGIdentitySelfAttnProcessor2_0 if number == 2 else PAGCFGIdentitySelfAttnProcessor2_0
    layer.set_processor(made())
    plain, negative = layer(torch.cat([tokens] * number)).chunk(number)[-2:]
    assert (plain - expected).abs().max() > 0.01
    torch.testing.assert_close(negative, layer.to_out[0](layer.to_v(tokens)))  # this one is right


def test_a_pag_layer_name_is_a_pattern():
    """diffusers 0.42.1: "blocks.1" also takes blocks.10; write "blocks.1.attn1", with its dot."""
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(torch.nn.Module() for _ in range(11))
    for block in model.blocks:
        block.attn1 = Attention(query_dim=8, heads=1, dim_head=8)
    pipeline = PAGMixin()
    pipeline.transformer = model

    def chosen(name):
        for block in model.blocks:
            block.attn1.set_processor(AttnProcessor2_0())
        pipeline.set_pag_applied_layers([name])
        pipeline._set_pag_attn_processor([name], do_classifier_free_guidance=False)
        kinds = [type(block.attn1.processor) for block in model.blocks]
        return [i for i, kind in enumerate(kinds) if kind is PAGIdentitySelfAttnProcessor2_0]

    assert chosen("blocks.1") == [1, 10]
    assert chosen("blocks.1.attn1") == [1]


@pytest.mark.parametrize("cfg", [False, True])
def test_the_pag_scale_of_the_pipelines_is_one_less_than_w(cfg):
    """diffusers 0.42.1: pag_scale=0 is off, in the pipelines and beside CFG in the guider."""
    rng = torch.Generator().manual_seed(0)
    null, positive, negative = torch.randn(3, 2, 3, 4, 4, generator=rng)
    pipeline = PAGMixin()
    pipeline._pag_scale, pipeline._pag_adaptive_scale, pipeline.pag_applied_layers = 3.0, 0.0, ["x"]
    parts = [null, positive, negative] if cfg else [positive, negative]
    got = pipeline._apply_perturbed_attention_guidance(torch.cat(parts), cfg, 5.0, 500)
    expected = guide(positive, negative, 4.0)
    if cfg:
        expected = expected + guide(positive, null, 5.0) - positive
    torch.testing.assert_close(got, expected)


def test_an_adaptive_pag_scale_is_gone_early_and_not_late():
    """diffusers 0.42.1: s - a (1000 - t) falls while t goes from 1000 to 0, and stops at 0."""
    pipeline = PAGMixin()
    pipeline._pag_scale, pipeline._pag_adaptive_scale, pipeline.pag_applied_layers = (
        3.0,
        0.01,
        ["x"],
    )
    scales = [pipeline._get_pag_scale(t) for t in (1000, 900, 701, 700, 0)]
    assert scales == pytest.approx([3.0, 2.0, 0.01, 0.0, 0.0])


# windows and layers


@pytest.mark.parametrize("make", [perturbed, skipping])
def test_the_first_step_is_never_perturbed(make, network, data):
    """diffusers 0.42.1: the windows of PAG and SLG compare strictly, and start may not be negative.

    SEG compares likewise, and does nothing in any step.
    """
    plain = run(ClassifierFreeGuidance(3.0), network, data)
    acts = [not torch.equal(run(make(3.0, 2.8), network, data, i), plain) for i in range(10)]
    assert acts == [False] + 9 * [True]


def test_only_pag_can_be_asked_for_the_first_step(network, data):
    """diffusers 0.42.1: a negative start is refused by SLG and SEG; PAG takes it, and obeys."""
    for make, name in ((skipping, "skip_layer_guidance"), (smoothed, "seg_guidance")):
        with pytest.raises(ValueError, match="between 0.0 and 1.0"):
            make(3.0, 2.8, **{f"{name}_start": -1.0})
    positive, negative = ask(network, data), ask(network, data, unconditional=True)
    expected = guide(positive, negative, 3.0) + 2.8 * (positive - identity(network, data))
    guider = perturbed(3.0, 2.8, perturbed_guidance_start=-1.0)
    torch.testing.assert_close(run(guider, network, data, step=0), expected)


@pytest.mark.parametrize(("steps", "active"), [(10, [1]), (28, [1, 2, 3, 4]), (4, [])])
def test_the_default_window_of_pag_and_layer_skipping_holds_few_steps(steps, active, network, data):
    """diffusers 0.42.1: from .01 to .2 of the steps; the whole run is start=0, stop=1."""
    plain = run(ClassifierFreeGuidance(3.0), network, data)
    guiders = [
        PerturbedAttentionGuidance(3.0, perturbed_guidance_layers=BLOCKS),
        SkipLayerGuidance(
            3.0, skip_layer_config=LayerSkipConfig(indices=BLOCKS, fqn="transformer_blocks")
        ),
    ]
    for guider in guiders:
        results = [run(guider, network, data, i, steps) for i in range(steps)]
        assert [i for i, r in enumerate(results) if not torch.equal(r, plain)] == active


@pytest.mark.parametrize("layers", [BLOCKS, BLOCKS[0]])
def test_layer_numbers_make_layer_skipping_fail_when_it_starts_to_work(layers, network, data):
    """diffusers 0.42.1: SLG and AutoGuidance accept layers and then raise TypeError.

    ``LayerSkipConfig(indices=[1], fqn="transformer_blocks")`` is the right way. The guider for PAG
    takes a list of layers, and no single number.
    """
    window = {"skip_layer_config": None, "skip_layer_guidance_layers": layers}
    with pytest.raises(TypeError, match=r"int.*no len"):
        run(skipping(3.0, 2.8, **window), network, data)
    with pytest.raises(TypeError, match=r"int.*no len"):
        run(AutoGuidance(2.0, auto_guidance_layers=layers, dropout=1.0), network, data)
    assert run(perturbed(3.0, 2.8), network, data).isfinite().all()
    with pytest.raises(TypeError, match=r"int.*no len"):
        run(perturbed(3.0, 2.8, perturbed_guidance_layers=1), network, data)


def test_the_automatic_name_of_the_blocks_depends_on_the_process():
    """diffusers 0.42.1: fqn="auto" takes the first name of a set, in an order of chance.

    Where a network has both ``transformer_blocks`` and ``single_transformer_blocks``, layer 1 may
    be either. A list of layers always means "auto"; a config with its own fqn does not.
    """
    tree = ast.parse(open(getsourcefile(hook_names), encoding="utf-8").read())
    names = [
        part
        for part in tree.body
        if isinstance(part, ast.Assign) and "IDENTIFIERS" in part.targets[0].id
    ]
    code = "\n".join(ast.unparse(part) for part in names)
    code += "\nprint(*_ALL_TRANSFORMER_BLOCK_IDENTIFIERS)"
    orders = set()
    for seed in range(4):
        env = os.environ | {"PYTHONHASHSEED": str(seed)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        order = done.stdout.split()
        assert set(order) == set(hook_names._ALL_TRANSFORMER_BLOCK_IDENTIFIERS), done.stderr
        orders.add(order.index("transformer_blocks") < order.index("single_transformer_blocks"))
    assert orders == {False, True}


# SEG


@pytest.mark.parametrize("sigma", [1.0, 1e7])
@pytest.mark.parametrize("step", [0, STEP, 9])
def test_the_guider_for_smoothed_energy_is_plain_cfg(sigma, step, network, data):
    """diffusers 0.42.1: SmoothedEnergyGuidance never counts its passes, so it never blurs."""
    plain = run(ClassifierFreeGuidance(3.0), network, data, step)
    assert torch.equal(run(smoothed(3.0, 2.8, seg_blur_sigma=sigma), network, data, step), plain)


def counted(guider):
    """Mend the counter of a guider, so that what lies behind it can be seen."""

    class Counted(type(guider)):
        def prepare_models(self, denoiser):
            self._count_prepared += 1
            super().prepare_models(denoiser)

    guider.__class__ = Counted
    return guider


def blurred_queries(network, data, sigma):
    """Return what the network answers when the queries of the chosen blocks are blurred."""
    handles = []
    for i in BLOCKS:

        def blur(module, inputs, output):
            return blur_tokens(output[:, None], (4, 4), sigma)[:, 0]

        handles.append(network.transformer_blocks[i].attn1.to_q.register_forward_hook(blur))
    try:
        return ask(network, data)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("asked", "done"), [(1e7, 1e7), (1.0, math.inf), (0.01, math.inf)])
def test_behind_the_counter_finite_and_infinite_blur_are_exchanged(asked, done, network, data):
    """diffusers 0.42.1: a finite sigma gives the mean query, one above 9999 a finite kernel.

    On four by four tokens the kernel has five taps of equal weight.
    """
    positive, negative = ask(network, data), ask(network, data, unconditional=True)
    expected = guide(positive, negative, 3.0)
    expected = expected + 2.8 * (positive - blurred_queries(network, data, done))
    result = run(counted(smoothed(3.0, 2.8, seg_blur_sigma=asked)), network, data)
    torch.testing.assert_close(result, expected)
    other = math.inf if done == asked else asked
    wrong = guide(positive, negative, 3.0) + 2.8 * (
        positive - blurred_queries(network, data, other)
    )
    assert (result - wrong).abs().max() > 1e-3


def test_the_threshold_of_the_guider_does_not_reach_its_hook(network):
    """diffusers 0.42.1: seg_blur_threshold_inf is stored and not passed on."""
    query = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0))
    config = SmoothedEnergyGuidanceConfig(indices=BLOCKS, fqn="transformer_blocks")
    _apply_smoothed_energy_guidance_hook(network, config, 2.0)
    registry = HookRegistry.check_if_exists_or_initialize(network)
    projection = network.transformer_blocks[BLOCKS[0]].attn1.to_q
    try:
        hook = projection._diffusers_hook.get_hook("smoothed_energy_guidance_hook")
        assert hook.blur_threshold_inf == 9999.9
    finally:
        registry.remove_hook("smoothed_energy_guidance_hook", recurse=True)
    low = SmoothedEnergyGuidanceHook(2.0, blur_threshold_inf=1.0)
    mean = SmoothedEnergyGuidanceHook(2.0)
    kernel = blur_tokens(query[:, None], (4, 4), 2.0)[:, 0]
    torch.testing.assert_close(low.post_forward(None, query.clone()), kernel)
    torch.testing.assert_close(
        mean.post_forward(None, query.clone()), query.mean(1, keepdim=True).expand_as(query)
    )


@pytest.mark.parametrize(("grid", "square"), [((4, 9), (6, 6)), ((2, 8), (4, 4)), ((3, 4), (3, 3))])
def test_the_hook_takes_every_grid_for_a_square(grid, square):
    """diffusers 0.42.1: the hook blurs the largest square of tokens, and keeps the rest."""
    count, seen = math.prod(grid), math.prod(square)
    query = torch.randn(2, count, 5, generator=torch.Generator().manual_seed(0))
    hook = SmoothedEnergyGuidanceHook(1.0, blur_threshold_inf=0.5)  # the kernel, see above
    result = hook.post_forward(None, query.clone())
    as_square = blur_tokens(query[:, None, :seen], square, 1.0)[:, 0]
    torch.testing.assert_close(result[:, :seen], as_square)
    assert torch.equal(result[:, seen:], query[:, seen:])
    right = blur_tokens(query[:, None], grid, 1.0)[:, 0]
    assert (result - right).abs().max() > 0.1


def test_the_hook_blurs_before_the_norm_of_queries():
    """diffusers 0.42.1: with qk-norm a blur behind ``to_q`` is no blur of the logits any more."""
    torch.manual_seed(0)
    layer = Attention(query_dim=8, heads=1, dim_head=8, qk_norm="rms_norm", eps=1e-6)
    tokens = torch.randn(1, 16, 8)

    def blur(value):
        return blur_tokens(value[:, None], (4, 4), 1.0)[:, 0]

    key = layer.norm_k(layer.to_k(tokens))
    of_logits = blur(layer.norm_q(layer.to_q(tokens)) @ key.mT)
    after = blur(layer.norm_q(layer.to_q(tokens))) @ key.mT
    hook = SmoothedEnergyGuidanceHook(1.0, blur_threshold_inf=0.5)  # the kernel, see above
    before = layer.norm_q(hook.post_forward(None, layer.to_q(tokens))) @ key.mT
    torch.testing.assert_close(after, of_logits)
    assert (before - of_logits).abs().max() > 0.1


# autoguidance


def test_the_guider_named_autoguidance_is_cfg_with_a_damaged_unconditional_model(network, data):
    """diffusers 0.42.1: AutoGuidance drops the condition and skips layers of the same network.

    With no damage (dropout=0) it is CFG.
    """

    def auto(dropout):
        config = LayerSkipConfig(indices=BLOCKS, fqn="transformer_blocks", dropout=dropout)
        return AutoGuidance(2.0, auto_guidance_config=config)

    assert torch.equal(
        run(auto(0.0), network, data), run(ClassifierFreeGuidance(2.0), network, data)
    )
    block, positive = network.transformer_blocks[BLOCKS[0]], ask(network, data)
    handle = block.register_forward_hook(lambda module, inputs, output: inputs[0])
    try:
        negative = ask(network, data, unconditional=True)
    finally:
        handle.remove()
    torch.testing.assert_close(run(auto(1.0), network, data), guide(positive, negative, 2.0))


def test_its_dropout_is_random_in_a_network_that_does_not_train(network, data):
    """diffusers 0.42.1: dropout of skipped blocks is on in eval mode, from the global generator.

    What is kept is enlarged by 1 / (1 - dropout), the residual stream with it.
    """
    config = LayerSkipConfig(indices=BLOCKS, fqn="transformer_blocks", dropout=0.5)
    guider = AutoGuidance(2.0, auto_guidance_config=config)
    assert not network.training
    torch.manual_seed(0)
    first, second = run(guider, network, data), run(guider, network, data)
    assert (first - second).abs().max() > 0.01
    torch.manual_seed(0)
    assert torch.equal(run(guider, network, data), first)


def test_autoguidance_is_the_cfg_guider_given_the_other_networks_answer(network, data):
    """diffusers 0.42.1, the right way: forward(main, guide) of ClassifierFreeGuidance."""
    positive = ask(network, data)
    weaker = positive + torch.randn(positive.shape, generator=torch.Generator().manual_seed(0))
    guider = ClassifierFreeGuidance(2.0)
    guider.set_state(STEP, 10, torch.tensor(500))
    got = guider.forward(positive, weaker).pred
    torch.testing.assert_close(got, guide(positive, weaker, 2.0))
