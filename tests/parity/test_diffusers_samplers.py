"""What chapter 1 says about the schedulers of diffusers, shown with the schedulers, offline.

The schedulers keep their levels, and Euler its samples, in float32. So a result of size m is
known to a few units of 1e-7 m: all comparisons allow 4e-6 of the largest number that enters.
"""

import inspect
import math
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the package is imported

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers import scheduling_euler_discrete

from guidance_edu import Preconditioned, convert, noise_levels, sample
from guidance_edu.samplers import euler_step, heun_step
from toy_models.worlds import two_modes

# Their schedules go from torch to numpy in a way that numpy 2 only warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KINDS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "denoised"}
LEVELS = [20.0, 3.0, 0.7, 0.05]

every_kind = pytest.mark.parametrize("kind", KINDS)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_float32(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(theirs, ours, *entering):
    size = max(value.abs().max().item() for value in (ours, *entering))
    torch.testing.assert_close(theirs.double(), ours.double(), rtol=0, atol=4e-6 * size)


def preserving(scheduler, t):
    """Return alpha and sigma of a training step; the one before the first is clean."""
    square = scheduler.alphas_cumprod[t].double() if t >= 0 else torch.ones((), dtype=torch.float64)
    return square.sqrt().item(), (1 - square).sqrt().item()


def answer(denoised, x, sigma, kind):
    """Return what a network of this kind answers to x / sqrt(sigma^2 + 1)."""
    root = math.sqrt(sigma**2 + 1)
    return convert(denoised, x / root, sigma / root, "denoised", KINDS[kind], 1 / root)


def euler(levels, kind="epsilon"):
    made = EulerDiscreteScheduler(prediction_type=kind)
    made.set_timesteps(sigmas=[*levels, 0.0])
    made.set_begin_index(0)
    return made


def heun(kind="epsilon", steps=6):
    made = HeunDiscreteScheduler(prediction_type=kind, use_karras_sigmas=True)
    made.set_timesteps(steps)
    made.set_begin_index(0)
    return made


def walk(scheduler, world, x, kind, visited=None):
    """Sample as the pipelines do: scale, call, step. The exact world stands for the network."""
    for i, t in enumerate(scheduler.timesteps):
        # A network gets the level by way of t and the scaled x; the world gets them directly.
        sigma = scheduler.sigmas[i].item()
        seen = scheduler.scale_model_input(x, t).double() * math.sqrt(sigma**2 + 1)
        out = answer(world(seen, sigma), seen, sigma, kind)
        x = scheduler.step(out, t, x).prev_sample.double()
        if visited is not None:
            visited.append(x)
    return x


# predictions


@every_kind
def test_conversion_is_that_of_the_variance_preserving_ddim(kind):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    x, out = draw(4, 3, 8, 8), draw(4, 3, 8, 8, seed=1)
    for t in scheduler.timesteps.tolist():
        alpha, sigma = preserving(scheduler, t)
        theirs = scheduler.step(out, t, x).pred_original_sample
        ours = convert(out, x, sigma, KINDS[kind], "denoised", alpha)
        assert_same(theirs, ours, x)


@every_kind
@pytest.mark.parametrize("make", [lambda kind: euler(LEVELS, kind), heun], ids=["euler", "heun"])
def test_conversion_is_that_of_the_schedulers_in_sigma(make, kind):
    scheduler = make(kind)
    out = draw(4, 3, 8, 8, seed=1)
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i].item()
        x = sigma * draw(4, 3, 8, 8, seed=2)
        theirs = scheduler.step(out, t, x).pred_original_sample
        root = math.sqrt(sigma**2 + 1)
        scaled = convert(out, x / root, sigma / root, KINDS[kind], "denoised", 1 / root)
        assert_same(theirs, scaled, x)
        if kind != "v_prediction":  # v mixes noise and data by alpha, so it depends on the scale
            assert_same(theirs, convert(out, x, sigma, KINDS[kind], "denoised"), x)
        if kind == "v_prediction":
            assert_same(theirs, x / (sigma**2 + 1) - out * sigma / root, x)
            if sigma > 0.5:
                wrong = convert(out, x, sigma, "v", "denoised")
                assert (theirs - wrong).abs().max() > 0.1
        if kind == "sample":
            assert torch.equal(theirs, out)


def test_velocity_and_noisy_samples_are_those_of_the_three_schedules():
    clean, noise = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    ddim, times = DDIMScheduler(), torch.tensor([20, 400, 980])
    pairs = torch.tensor([preserving(ddim, t) for t in times.tolist()], dtype=torch.float64).T
    alpha, sigma = (level.reshape(-1, 1, 1, 1) for level in pairs)
    x = alpha * clean + sigma * noise
    assert_same(ddim.add_noise(clean, noise, times), x)
    v = convert(clean, x, pairs[1], "denoised", "v", pairs[0])
    assert_same(ddim.get_velocity(clean, noise, times), v, x)

    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[*LEVELS, 0.0])
    level = torch.tensor(LEVELS[:3], dtype=torch.float64).reshape(-1, 1, 1, 1)
    assert_same(
        scheduler.add_noise(clean, noise, scheduler.timesteps[:3]), clean + level * noise, 0 * x
    )

    flow = FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(sigmas=[0.9, 0.6, 0.2])
    level = torch.tensor([0.9, 0.6, 0.2], dtype=torch.float64).reshape(-1, 1, 1, 1)
    theirs = flow.scale_noise(clean, flow.timesteps, noise)
    assert_same(theirs, (1 - level) * clean + level * noise)


# the input


@pytest.mark.parametrize("make", [lambda: euler(LEVELS), heun], ids=["euler", "heun"])
def test_scaled_input_is_the_variance_preserving_sample(make):
    x = draw(4, 3, 8, 8)
    for i in range(4):
        scheduler = make()
        scheduler.set_begin_index(i)
        sigma = scheduler.sigmas[i].item()
        alpha = 1 / math.sqrt(sigma**2 + 1)
        theirs = scheduler.scale_model_input(x, scheduler.timesteps[i])
        assert_same(theirs, alpha * x, x)
        assert alpha**2 + (alpha * sigma) ** 2 == pytest.approx(1)


@every_kind
def test_every_prediction_is_off_when_the_input_is_not_scaled(kind):
    world = two_modes()

    def network(x, sigma):  # expects the scaled x
        x = x * math.sqrt(sigma**2 + 1)
        return answer(world(x, sigma), x, sigma, kind)

    for i, sigma in enumerate(LEVELS[:3]):
        x = world.sample(500, torch.Generator().manual_seed(0)) + sigma * draw(500, 1)
        scheduler = euler(LEVELS, kind)
        scheduler.set_begin_index(i)
        t = scheduler.timesteps[i]
        right = scheduler.step(network(scheduler.scale_model_input(x, t), sigma), t, x)
        assert_same(right.pred_original_sample, world(x, sigma), x)
        scheduler = euler(LEVELS, kind)
        scheduler.set_begin_index(i)
        wrong = scheduler.step(network(x, sigma), t, x).pred_original_sample
        assert (wrong - world(x, sigma)).abs().mean() > 0.05


def test_t_is_an_index_interpolated_in_log_sigma():
    scheduler = EulerDiscreteScheduler()
    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).double().sqrt().numpy()
    rows = np.arange(len(table))
    scheduler.set_timesteps(sigmas=[*table[[900, 500, 3]].tolist(), 0.0])
    np.testing.assert_allclose(scheduler.timesteps, [900, 500, 3], atol=1e-2)  # the index itself
    levels = np.geomspace(100, 0.0102, 200)  # between the rows of the table
    scheduler.set_timesteps(sigmas=[*levels, 0.0])
    # Near the end of the table neighbouring logarithms differ by 1e-2, their rounding is 1e-6.
    wanted = np.interp(np.log(levels), np.log(table), rows)
    np.testing.assert_allclose(scheduler.timesteps, wanted, atol=1e-3)
    assert np.abs(wanted - np.interp(levels, table, rows)).max() > 0.03


def test_t_is_something_else_in_edm_and_flow():
    edm, flow = EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler()
    edm.set_timesteps(8)
    assert_same(edm.timesteps, noise_levels(8)[:-1].log() / 4)
    flow.set_timesteps(sigmas=[0.9, 0.6, 0.2])
    assert_same(flow.timesteps, torch.tensor([900.0, 600.0, 200.0]))


# steps


@every_kind
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_ddim_is_euler_in_sigma_over_alpha(kind, steps):
    world, x = two_modes(), None
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps.tolist():
        (alpha, sigma), before = preserving(scheduler, t), t - 1000 // steps
        alpha_next, sigma_next = preserving(scheduler, before)
        x = draw(200, 1) if x is None else x
        tau, tau_next = sigma / alpha, sigma_next / alpha_next
        denoised = world(x / alpha, tau)
        out = convert(denoised, x, sigma, "denoised", KINDS[kind], alpha)
        theirs = scheduler.step(out, t, x).prev_sample
        ours = alpha_next * euler_step(lambda y, s, c=None: world(y, s), x / alpha, tau, tau_next)
        assert_same(theirs, ours, x / alpha)
        x = theirs
    assert_same(x, denoised)  # the last step goes all the way down


def test_rectified_flow_is_euler_in_sigma_over_alpha():
    world, x = two_modes(), draw(200, 1)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[0.9, 0.6, 0.2])
    levels = scheduler.sigmas.tolist()
    for t, sigma, target in zip(scheduler.timesteps, levels[:-1], levels[1:], strict=True):
        alpha = 1 - sigma
        denoised = world(x / alpha, sigma / alpha)
        out = convert(denoised, x, sigma, "denoised", "flow", alpha)
        theirs = scheduler.step(out, t, x).prev_sample
        tau, tau_next = sigma / alpha, target / (1 - target)
        ours = (1 - target) * euler_step(lambda y, s, c=None: world(y, s), x / alpha, tau, tau_next)
        assert_same(theirs, ours, x / alpha)
        assert_same(theirs, x + (target - sigma) * ((x - alpha * denoised) / sigma - denoised))
        x = theirs


@every_kind
def test_euler_steps_are_ours(kind):
    world, start = two_modes(), 20.0 * draw(200, 1)
    scheduler, visited = euler(LEVELS, kind), []
    end = walk(scheduler, world, start, kind, visited)
    x = start
    for sigma, target, theirs in zip(LEVELS, [*LEVELS[1:], 0.0], visited, strict=True):
        # Each step starts where theirs did: rounding that the flow magnifies is not a difference.
        assert_same(theirs, euler_step(world, x, sigma, target), x)
        x = theirs
    ours = sample(world, start, [*LEVELS, 0.0], method="euler")
    torch.testing.assert_close(end, ours, rtol=0, atol=1e-3)  # the whole way, with that rounding


@every_kind
def test_one_heun_step_is_two_of_theirs(kind):
    world, scheduler, visited = two_modes(), heun(kind), []
    start = scheduler.sigmas[0].item() * draw(200, 1)
    walk(scheduler, world, start, kind, visited)
    levels = [*scheduler.sigmas[0::2].tolist(), 0.0]
    assert len(visited) == 2 * len(levels) - 3  # the last step, down to 0, is one Euler step
    x = start
    for i, (sigma, target) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        assert_same(visited[2 * i], euler_step(world, x, sigma, target), x)
        if target > 0:
            whole = heun_step(world, x, sigma, target)
            # The second slope divides float32 numbers of the size of x by the target.
            assert_same(visited[2 * i + 1], whole, x * sigma / target)
            x = visited[2 * i + 1]
    assert_same(visited[-1], heun_step(world, x, sigma, 0.0), x)


def test_heun_has_no_churn_and_euler_has_none_by_default():
    assert "s_churn" not in inspect.signature(HeunDiscreteScheduler.step).parameters
    for scheduler in (EulerDiscreteScheduler, EDMEulerScheduler):
        assert inspect.signature(scheduler.step).parameters["s_churn"].default == 0


# levels


@pytest.mark.parametrize("steps", [1, 2, 8, 40])
def test_karras_levels_are_ours(steps):
    for rho in (3.0, 7.0):
        edm = EDMEulerScheduler(rho=rho)
        edm.set_timesteps(steps)
        # Single precision, relative: the levels span five orders of magnitude.
        ours = noise_levels(steps, rho=rho).float()
        torch.testing.assert_close(edm.sigmas, ours, rtol=1e-6, atol=0)
    scheduler = EulerDiscreteScheduler(use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(scheduler.sigmas, noise_levels(steps).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_karras_levels_end_by_default_where_the_training_schedule_ends(make):
    scheduler = make(use_karras_sigmas=True)
    scheduler.set_timesteps(8)
    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).double().sqrt()
    ours = noise_levels(8, table[-1].item(), table[0].item()).float()
    theirs = scheduler.sigmas
    if make is HeunDiscreteScheduler:  # all levels but the first and the last are there twice
        theirs = torch.cat([theirs[0::2], theirs[-1:]])
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=0)


# EDM in diffusers


@pytest.mark.parametrize(("kind", "sign"), [("epsilon", 1), ("v_prediction", -1)])
def test_epsilon_in_edm_is_the_raw_network_and_v_its_negative(kind, sign):
    scheduler = EDMEulerScheduler(prediction_type=kind, sigma_data=0.7)
    scheduler.set_timesteps(8)
    raw, seen = draw(4, 3, 8, 8, seed=1), []

    class Network(torch.nn.Module):
        def forward(self, x, noise, condition):
            seen.append((x, noise))
            return raw

    model = Preconditioned(Network(), sigma_data=0.7)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        x = sigma * draw(4, 3, 8, 8)
        ours = model(x, sigma)
        assert_same(scheduler.scale_model_input(x, t), seen[-1][0])
        assert_same(t, seen[-1][1][0])
        theirs = scheduler.step(sign * raw, t, x).pred_original_sample
        assert_same(theirs, ours, x)
        noise = convert(sign * raw, x, sigma, "epsilon", "denoised")
        if sigma > 1:
            assert (theirs - noise).abs().max() > 0.1  # it is not the noise


# churn after the call


class Late(EulerDiscreteScheduler):
    """The scheduler as it is, with churn 0.4 in each of two steps."""

    def step(self, model_output, timestep, sample, generator=None, **rest):
        return super().step(
            model_output, timestep, sample, s_churn=2 * 0.4, generator=generator, return_dict=False
        )


class Early(EulerDiscreteScheduler):
    """What it would be if the noise came before the call: the network sees the noise."""

    def scale_model_input(self, sample, timestep):
        self._init_step_index(timestep)
        sigma = self.sigmas[self.step_index]
        self.sigmas = self.sigmas.clone()
        self.sigmas[self.step_index] = 1.4 * sigma
        fresh = scheduling_euler_discrete.randn_tensor(sample.shape, generator=self.rng)
        self.raised = sample + (1.4**2 - 1) ** 0.5 * sigma * fresh
        return super().scale_model_input(self.raised, timestep)

    def step(self, model_output, timestep, sample, generator=None, **rest):
        return super().step(model_output, timestep, self.raised, return_dict=False)


class Point(ModelMixin, ConfigMixin):
    """The exact network for data that are one point, 0: all that it sees is noise."""

    @register_to_config
    def __init__(self, in_channels=3, sample_size=200, num_class_embeds=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t, class_labels=None, return_dict=False):
        self.events.append("network")
        self.seen.append(x.clone())
        sigma = self.scheduler.sigmas[self.scheduler.step_index].item()
        x = x * math.sqrt(sigma**2 + 1)
        kind = self.scheduler.config.prediction_type
        return (answer(0 * x, x, sigma, kind),)


def run_pipeline(make, monkeypatch, kind="epsilon"):
    """Let a pipeline of diffusers go from sigma 10 to 9 to 0; return what was seen on the way."""
    scheduler = make(prediction_type=kind, use_karras_sigmas=True, sigma_max=10.0, sigma_min=9.0)
    network = Point()
    network.events, network.seen, network.scheduler = [], [], scheduler
    scheduler.rng = torch.Generator().manual_seed(1)
    real = scheduling_euler_discrete.randn_tensor

    def noted(*args, **options):
        network.events.append("noise")
        return real(*args, **options)

    monkeypatch.setattr(scheduling_euler_discrete, "randn_tensor", noted)
    pipeline = ConsistencyModelPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    start = 10.0 * draw(1, 3, 200, 200).float()
    states = []
    pipeline(
        num_inference_steps=2,
        latents=start / scheduler.init_noise_sigma,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
        callback=lambda i, t, x: states.append(x),
    )
    return start, states[0], network


def test_pipelines_add_the_churn_after_the_call(monkeypatch):
    start, after, network = run_pipeline(Late, monkeypatch)
    assert network.events[:2] == ["network", "noise"]
    # The network saw the sample as it was before the fresh noise.
    assert_same(network.seen[0], start / math.sqrt(101), start)
    # 120 000 numbers: the spread is known to 11 / sqrt(240 000) = 0.02.
    assert after.std().item() == pytest.approx(11.0, abs=0.1)
    fresh = draw_float32(start.shape, 1)
    epsilon = start / 10.0
    assert_same(after, start + math.sqrt(96) * fresh + (9 - 14) * epsilon, start)


def test_churn_before_the_call_would_be_seen_and_leave_the_right_noise(monkeypatch):
    start, after, network = run_pipeline(Early, monkeypatch)
    assert network.events[:2] == ["noise", "network"]
    assert (network.seen[0] - start / math.sqrt(101)).abs().max() > 1
    assert after.std().item() == pytest.approx(9.0, abs=0.1)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_late_churn_lets_the_noise_grow_for_predicted_noise_alone(kind, monkeypatch):
    # Their slope is (x - D) / sigma with the fresh noise in x; only D is out of date.
    _, after, network = run_pipeline(Late, monkeypatch, kind)
    assert network.events[:2] == ["network", "noise"]
    assert after.std().item() == pytest.approx(9.0, abs=0.1)


def test_churn_that_comes_late_leaves_the_guess_behind():
    # With prediction_type="sample" the guess is that of the sample before the noise.
    world, x, sigma = two_modes(), draw(200, 1), 2.0
    scheduler = euler([sigma, 1.0], "sample")
    fresh = draw_float32(x.shape, 1)
    raised, level = x + math.sqrt(1.4**2 - 1) * sigma * fresh, 1.4 * sigma
    theirs = scheduler.step(
        world(x, sigma).float(),
        scheduler.timesteps[0],
        x,
        s_churn=2 * 0.4,
        generator=torch.Generator().manual_seed(1),
    ).prev_sample
    late = raised + (1.0 - level) * (raised - world(x, sigma)) / level
    assert_same(theirs, late, raised)
    assert (theirs - euler_step(world, raised, level, 1.0)).abs().max() > 0.1


@pytest.mark.parametrize(("churn", "gamma"), [(0.3, 0.1), (0.9, 0.3), (30.0, math.sqrt(2) - 1)])
@pytest.mark.parametrize("make", [EulerDiscreteScheduler, EDMEulerScheduler])
def test_churn_is_spread_over_all_steps_and_bounded(make, churn, gamma):
    scheduler = make()
    scheduler.set_timesteps(3)
    x, out = draw(1, 1, 200, 200).float(), torch.zeros(1, 1, 200, 200)
    sigma, target = scheduler.sigmas[:2].tolist()
    rng = torch.Generator().manual_seed(1)
    step = scheduler.step(out, scheduler.timesteps[0], x, s_churn=churn, generator=rng)
    top, fresh = (1 + gamma) * sigma, draw_float32(x.shape, 1)
    raised = x + math.sqrt(top**2 - sigma**2) * fresh
    denoised = step.pred_original_sample
    assert_same(step.prev_sample, raised + (target - top) * (raised - denoised) / top, raised)


def test_no_pipeline_asks_for_churn():
    folder = Path(diffusers.__file__).parent / "pipelines"
    files = list(folder.rglob("*.py"))
    assert len(files) > 100
    assert not [path.name for path in files if "churn" in path.read_text(encoding="utf-8")]
