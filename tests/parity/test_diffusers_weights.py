"""The weight traps that chapter 03 names, shown on diffusers itself with random tensors."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the package is imported

import pytest
import torch

from guidance_edu.guidance import combine, guide, to_w

diffusers = pytest.importorskip("diffusers", minversion="0.36")

from diffusers.guiders import (  # noqa: E402
    AutoGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    auto_guidance,
    perturbed_attention_guidance,
    skip_layer_guidance,
    smoothed_energy_guidance,
)
from diffusers.hooks import LayerSkipConfig, SmoothedEnergyGuidanceConfig  # noqa: E402

pytestmark = pytest.mark.skipif(
    diffusers.__version__ != "0.42.1", reason="the chapter speaks of diffusers 0.42.1"
)

SCALES = [0.5, 1.0, 2.8, 7.5]


def predictions(number):
    rng = torch.Generator().manual_seed(number)
    return torch.randn(number, 2, 3, 8, 8, generator=rng, dtype=torch.float64)


def at_work(guider, step=5, steps=10):
    """Put a guider in the middle of a run, where every window is open."""
    guider.set_state(step, steps, torch.tensor(500))
    return guider


def perturbed(guidance_scale, scale):
    return PerturbedAttentionGuidance(
        guidance_scale,
        perturbed_guidance_scale=scale,
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0,
        perturbed_guidance_layers=[0],
    )


def skipping(guidance_scale, scale):
    return SkipLayerGuidance(
        guidance_scale,
        skip_layer_guidance_scale=scale,
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
        skip_layer_config=LayerSkipConfig(indices=[0], fqn="blocks"),
    )


def smoothed(guidance_scale, scale):
    config = SmoothedEnergyGuidanceConfig(indices=[0], fqn="blocks")
    return SmoothedEnergyGuidance(
        guidance_scale, seg_guidance_scale=scale, seg_guidance_config=config
    )


ADDITIVE = [perturbed, skipping, smoothed]


@pytest.mark.parametrize("scale", SCALES)
def test_the_native_scale_is_w_and_the_original_formulation_is_one_less(scale):
    positive, negative = predictions(2)
    native = at_work(ClassifierFreeGuidance(scale)).forward(positive, negative).pred
    original = at_work(ClassifierFreeGuidance(scale, use_original_formulation=True))
    original = original.forward(positive, negative).pred
    torch.testing.assert_close(native, guide(positive, negative, to_w(scale, "diffusers")))
    w = to_w(scale, "diffusers-original")
    torch.testing.assert_close(original, guide(positive, negative, w))


@pytest.mark.parametrize("make", ADDITIVE)
@pytest.mark.parametrize("scale", SCALES)
def test_beside_cfg_the_second_scale_is_a_push_of_its_own(make, scale):
    positive, unconditional, perturbed_one = predictions(3)
    guider = at_work(make(3.0, scale))
    assert guider.num_conditions == 3
    got = guider.forward(positive, unconditional, perturbed_one).pred
    wanted = combine(positive, [unconditional, perturbed_one], [3.0, 1 + scale])
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("make", ADDITIVE)
@pytest.mark.parametrize("scale", SCALES)
def test_without_cfg_the_same_scale_is_w_itself(make, scale):
    positive, perturbed_one = predictions(2)
    guider = at_work(make(1.0, scale))
    assert guider.num_conditions == 2
    got = guider.forward(positive, None, perturbed_one).pred
    w = to_w(scale, "diffusers-guiders-alone")
    torch.testing.assert_close(got, guide(positive, perturbed_one, w))
    if scale == 1.0:
        torch.testing.assert_close(got, positive)


@pytest.mark.parametrize(
    ("make", "module", "hook", "name"),
    [
        (perturbed, perturbed_attention_guidance, "_apply_layer_skip_hook", "pred_cond_skip"),
        (skipping, skip_layer_guidance, "_apply_layer_skip_hook", "pred_cond_skip"),
        (
            smoothed,
            smoothed_energy_guidance,
            "_apply_smoothed_energy_guidance_hook",
            "pred_cond_seg",
        ),
    ],
)
def test_without_cfg_the_perturbed_batch_is_the_plain_unconditional_one(
    make, module, hook, name, monkeypatch
):
    installed = []
    monkeypatch.setattr(module, hook, lambda *a, **k: installed.append(a))
    guider, (condition, null) = at_work(make(1.0, 2.8)), predictions(2)
    batches = guider.prepare_inputs({"embedding": (condition, null)})
    for _ in batches:
        guider.prepare_models(torch.nn.Identity())
    assert [getattr(b, guider._identifier_key) for b in batches] == ["pred_cond", name]
    assert batches[1].embedding is null
    assert installed == []


@pytest.mark.parametrize(
    ("make", "module", "hook", "times"),
    [
        (perturbed, perturbed_attention_guidance, "_apply_layer_skip_hook", 1),
        (skipping, skip_layer_guidance, "_apply_layer_skip_hook", 1),
        (smoothed, smoothed_energy_guidance, "_apply_smoothed_energy_guidance_hook", 0),
    ],
)
def test_beside_cfg_all_perturb_the_third_batch_but_smoothed_energy_never_does(
    make, module, hook, times, monkeypatch
):
    installed = []
    monkeypatch.setattr(module, hook, lambda *a, **k: installed.append(a))
    guider, (condition, null) = at_work(make(3.0, 2.8)), predictions(2)
    batches = guider.prepare_inputs({"embedding": (condition, null)})
    for _ in batches:
        guider.prepare_models(torch.nn.Identity())
    assert len(batches) == 3
    assert batches[2].embedding is condition
    assert len(installed) == times


def test_the_guider_named_autoguidance_drops_the_condition_and_damages_the_same_network(
    monkeypatch,
):
    damaged = []
    monkeypatch.setattr(auto_guidance, "_apply_layer_skip_hook", lambda *a, **k: damaged.append(a))
    config = LayerSkipConfig(indices=[0], fqn="blocks")
    guider = at_work(AutoGuidance(2.0, auto_guidance_config=config))
    (condition, null), network = predictions(2), torch.nn.Identity()
    batches = guider.prepare_inputs({"embedding": (condition, null)})
    counts = []
    for _ in batches:
        guider.prepare_models(network)
        counts.append(len(damaged))
    assert batches[0].embedding is condition
    assert batches[1].embedding is null  # autoguidance would keep the condition
    assert counts == [0, 1]  # and would call another network, not damage this one
    assert damaged[0][0] is network
