"""Self-attention guidance is that of diffusers 0.42.1, from the mask to whole runs, offline.

The pipeline is deprecated there (last supported in 0.33.1) and can still be imported where
transformers is installed.
"""

import os
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the package is imported

import pytest
import torch

from guidance_edu.adapters import from_diffusers
from guidance_edu.attention import Map, recorded
from guidance_edu.denoisers import convert
from guidance_edu.guidance import Guided, to_w
from guidance_edu.negatives.condition import without_condition
from guidance_edu.negatives.input import (
    attention_mask,
    blur_image,
    blurred_input,
    received_attention,
)
from guidance_edu.samplers import sample

diffusers = pytest.importorskip("diffusers", minversion="0.36")
pytest.importorskip("transformers", reason="the pipeline of SAG needs transformers")

if diffusers.__version__ != "0.42.1":  # others keep the pipeline in another place
    pytest.skip("the chapter speaks of diffusers 0.42.1", allow_module_level=True)

from diffusers import DDIMScheduler, EulerDiscreteScheduler  # noqa: E402
from diffusers.pipelines.deprecated.stable_diffusion_sag import (  # noqa: E402
    pipeline_stable_diffusion_sag as published,
)

from tests.parity.networks import TEXT, WIDTH, draw, level, with_text  # noqa: E402

Pipeline = published.StableDiffusionSAGPipeline
KINDS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "denoised"}
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1"  # the only one that the pipeline reads
BLUR = {"blur": 1.0, "taps": 9}  # what the pipeline has built in
HEADS = 4


@pytest.fixture(scope="module")
def network():
    return with_text()


def stub(kind="epsilon", heads=HEADS):
    """Return what the methods of the pipeline need of a pipeline."""
    network = SimpleNamespace(config=SimpleNamespace(attention_head_dim=heads))
    return SimpleNamespace(unet=network, scheduler=DDIMScheduler(prediction_type=kind))


def weights(n, grid, seed=0):
    """Return random attention weights, sharp enough that the mask is no matter of rounding."""
    count = grid[0] * grid[1]
    return torch.softmax(3 * draw(n, HEADS, count, count, seed=seed), -1)


# the parts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0, 300, 999])
def test_clean_sample_and_noise_are_theirs(kind, t):
    x, out = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1)
    pipeline = stub(kind)
    share = pipeline.scheduler.alphas_cumprod[t]
    alpha, sigma = share.sqrt(), (1 - share).sqrt()
    clean = convert(out, x, sigma, KINDS[kind], "denoised", alpha)
    noise = convert(out, x, sigma, KINDS[kind], "epsilon", alpha)
    close = {"rtol": 1e-5, "atol": 1e-5 / min(alpha, sigma).item()}
    time = torch.tensor(t)
    torch.testing.assert_close(Pipeline.pred_x0(pipeline, x, out, time), clean, **close)
    torch.testing.assert_close(Pipeline.pred_epsilon(pipeline, x, out, time), noise, **close)


@pytest.mark.parametrize(
    ("size", "grid"), [((16, 16), (8, 8)), ((16, 24), (4, 6)), ((10, 7), (10, 7))]
)
@pytest.mark.parametrize("t", [20, 500, 980])
def test_the_degraded_input_is_theirs_and_is_the_noisy_one_less_a_blurred_difference(size, grid, t):
    """diffusers 0.42.1: sag_masking = x - alpha M (x0 - blur x0), nothing else."""
    clean, noise, seen = draw(2, 4, *size), draw(2, 4, *size, seed=1), weights(2, grid)
    pipeline, time = stub(), torch.tensor(t)
    theirs = Pipeline.sag_masking(pipeline, clean, seen.flatten(0, 1), grid, time, noise)
    mask = attention_mask(clean, received_attention(Map(seen, grid)))
    assert 0.1 < mask.mean() < 0.9
    alpha, sigma = level(pipeline.scheduler, t)
    x = alpha * (clean + sigma * noise)
    ours = x - alpha * mask * (clean - blur_image(clean, 1.0, 9))
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=2e-6)


def test_their_blur_is_ours():
    x = draw(2, 4, 9, 12)
    for taps, sigma in ((9, 1.0), (7, 1.0), (5, 3.0)):
        theirs = published.gaussian_blur_2d(x, taps, sigma)
        torch.testing.assert_close(blur_image(x, sigma, taps), theirs, rtol=1e-6, atol=1e-6)


def test_the_attention_that_they_store_is_the_one_that_we_read(network):
    model = from_diffusers(network, DDIMScheduler())
    x, text = draw(2, 4, 16, 16), draw(2, TEXT, WIDTH, seed=1)
    store, layer = published.CrossAttnStoreProcessor(), network.get_submodule(LAYER)
    before = layer.processor
    with recorded(model, [LAYER]) as maps:
        model(x, 1.0, text)
    layer.set_processor(store)
    try:
        model(x, 1.0, text)
    finally:
        layer.set_processor(before)
    (seen,) = maps[LAYER]
    assert seen.grid == (8, 8)
    torch.testing.assert_close(seen.weights.flatten(0, 1), store.attention_probs)


# whole runs


def run(network, kind, scale, cfg, x, text, null, steps=4):
    """Run the pipeline of diffusers from given latents."""
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, steps_offset=1)
    pipeline = Pipeline(None, None, None, network, scheduler, None, None, None, False)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=null,
        guidance_scale=cfg,
        sag_scale=scale,
        num_inference_steps=steps,
        latents=x.clone(),
        height=8 * x.shape[-2],
        width=8 * x.shape[-1],
        output_type="latent",
    )
    return result.images


def ours(network, kind, terms, x, text, null, steps=4):
    """Run the same with the book's guide and sampler: DDIM is Euler in sigma over alpha."""
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    pairs = [level(scheduler, t) for t in scheduler.timesteps.tolist()]
    model = from_diffusers(network, scheduler, null[0])
    levels = torch.tensor([sigma for _, sigma in pairs] + [0.0], dtype=torch.float64)
    guided = Guided(model, terms(model))
    return sample(guided, x.double() / pairs[0][0], levels, text, "euler")


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
@pytest.mark.parametrize("scale", [0.0, 0.75])
def test_a_run_of_the_pipeline_is_a_run_of_ours(network, scale, size):
    """diffusers 0.42.1: sag_scale = w - 1, with noise prediction and no other guidance."""
    x, text, null = draw(2, 4, *size), draw(2, TEXT, WIDTH, seed=1), draw(2, TEXT, WIDTH, seed=2)
    theirs = run(network, "epsilon", scale, 1.0, x, text, null)
    w = to_w(scale, "sag-diffusers")
    result = ours(
        network, "epsilon", lambda m: [(blurred_input(m, LAYER, **BLUR), w)], x, text, null
    )
    size = result.abs().max().item()
    torch.testing.assert_close(theirs.double(), result, rtol=0, atol=5e-6 * size)
    if scale:
        plain = run(network, "epsilon", 0.0, 1.0, x, text, null)
        assert (theirs - plain).abs().max() > 0.01 * size


class OfUnconditional:
    """The negative of a pipeline with CFG: the push is that of the unconditional model."""

    def __init__(self, model):
        self.model, self.null = model, without_condition(model)
        self.blurred = blurred_input(model, LAYER, **BLUR)

    def __call__(self, x, sigma, condition=None):
        plain, worse = self.blurred.pair(x, sigma, None)
        return self.model(x, sigma, condition) - (plain - worse)


def test_beside_cfg_the_push_is_that_of_the_unconditional_model(network):
    """diffusers 0.42.1: e_cfg + s (e_u - e_u degraded), the paper's eq. 25."""
    x, text = draw(2, 4, 16, 16), draw(2, TEXT, WIDTH, seed=1)
    null = draw(1, TEXT, WIDTH, seed=2).expand(2, -1, -1)
    theirs = run(network, "epsilon", 0.75, 3.0, x, text, null)

    def terms(model):
        return [(without_condition(model), 3.0), (OfUnconditional(model), 1.75)]

    result = ours(network, "epsilon", terms, x, text, null)
    size = result.abs().max().item()
    torch.testing.assert_close(theirs.double(), result, rtol=0, atol=5e-6 * size)


# traps


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_with_another_prediction_the_pipeline_pushes_in_another_space(network, kind):
    """diffusers 0.42.1: the push is s times the difference of what the network predicts.

    That is the method of the paper for noise alone. The two inputs differ, so for v or for clean
    samples the difference lacks (or has) a part of the blur itself: the result is another one.
    """
    x, text, null = draw(2, 4, 16, 16), draw(2, TEXT, WIDTH, seed=1), draw(2, TEXT, WIDTH, seed=2)
    theirs = run(network, kind, 0.75, 1.0, x, text, null)
    plain = run(network, kind, 0.0, 1.0, x, text, null)

    class InTheirSpace:
        """As blurred_input, with the difference taken in what the network predicts."""

        def __init__(self, model):
            self.model, self.inner = model, blurred_input(model, LAYER, **BLUR)

        def __call__(self, x, sigma, condition=None):
            _, shown = self.inner.shown(x, sigma, condition)
            answer, alpha = self.model(shown, sigma, condition), (1 + sigma**2) ** -0.5
            there = convert(answer, alpha * shown, alpha * sigma, "denoised", KINDS[kind], alpha)
            return convert(there, alpha * x, alpha * sigma, KINDS[kind], "denoised", alpha)

    def paper(model):
        return [(blurred_input(model, LAYER, **BLUR), 1.75)]

    def their(model):
        return [(InTheirSpace(model), 1.75)]

    published_push = ours(network, kind, paper, x, text, null)
    same = ours(network, kind, their, x, text, null)
    size = same.abs().max().item()
    torch.testing.assert_close(theirs.double(), same, rtol=0, atol=5e-6 * size)
    pushed = (theirs - plain).abs().max().item()
    assert (theirs - published_push).abs().max() > 0.1 * pushed


def test_equal_attention_is_a_matter_of_rounding():
    """diffusers 0.42.1: equal weights give each token 1, and rounding decides what is above it.

    The threshold here is 1 + 1e-5, so that nothing is blurred where nothing stands out.
    """
    touched = {}
    for side in (4, 6, 7, 8, 12):
        count = side * side
        seen = torch.full((1, HEADS, count, count), 1 / count)
        clean = draw(1, 4, 3 * side, 3 * side)
        assert not attention_mask(clean, received_attention(Map(seen, (side, side)))).any()
        # Without noise, what is not alpha times the clean sample was blurred.
        arguments = seen.flatten(0, 1), (side, side), torch.tensor(0), torch.zeros_like(clean)
        theirs = Pipeline.sag_masking(stub(), clean, *arguments)
        alpha, _ = level(DDIMScheduler(), 0)
        touched[count] = bool((theirs - alpha * clean).abs().max() > 1e-4)
    assert not touched[16] and not touched[64]  # 1 / count is exact
    assert any(touched.values())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_scheduler_in_sigma_is_refused(network):
    """diffusers 0.42.1: where times are fractions of steps, the pipeline says no."""
    pipeline = Pipeline(
        None, None, None, network, EulerDiscreteScheduler(), None, None, None, False
    )
    pipeline.set_progress_bar_config(disable=True)
    text = draw(1, TEXT, WIDTH)
    with pytest.raises(ValueError, match="does not support using a scheduler"):
        pipeline(
            prompt_embeds=text, negative_prompt_embeds=text, height=128, width=128, sag_scale=0.5
        )


def test_an_error_leaves_the_storing_processor_in_the_network(network):
    """diffusers 0.42.1: processors are put back after a run that ended well, and only then."""
    layer, text = network.get_submodule(LAYER), draw(1, TEXT, WIDTH)
    before, x = layer.processor, draw(1, 4, 16, 16)

    def stop(step, t, latents):
        raise KeyboardInterrupt

    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    pipeline = Pipeline(None, None, None, network, scheduler, None, None, None, False)
    pipeline.set_progress_bar_config(disable=True)
    embedded = {"prompt_embeds": text, "negative_prompt_embeds": text}
    try:
        with pytest.raises(KeyboardInterrupt):
            pipeline(
                **embedded,
                num_inference_steps=4,
                latents=x,
                height=128,
                width=128,
                callback=stop,
                output_type="latent",
            )
        assert type(layer.processor).__name__ == "CrossAttnStoreProcessor"
    finally:
        layer.set_processor(before)
