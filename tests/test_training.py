"""The training loop: what it optimises, and that nothing is lost when it is cut off."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from book import ROOT
from guidance_edu import training
from guidance_edu.ema import PowerEMA
from guidance_edu.training import (
    LOG,
    SNAPSHOTS,
    STATE,
    Run,
    Settings,
    denoising_loss,
    validation_losses,
)
from tests.small_run import Net, batches, small_run
from toy_models.gaussian_mixture import GaussianMixture

SCRIPT = ROOT / "tests" / "small_run.py"


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def averages(run):
    return torch.cat([w.flatten() for a in run.averages.values() for w in a.weights])


def losses(folder):
    lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_the_loss_of_the_best_linear_denoiser_is_one_at_every_level():
    class Linear(torch.nn.Module):
        sigma_data = 0.5

        def forward(self, x, sigma, condition=None):
            return x * 0.25 / (0.25 + sigma[:, None] ** 2)

    rng = torch.Generator().manual_seed(0)
    x0 = torch.randn(200_000, 2, generator=rng) * 0.5
    noise = torch.randn(x0.shape, generator=rng)
    for level in (0.05, 0.5, 20.0):
        sigma = torch.full((len(x0),), level)
        loss = denoising_loss(Linear(), x0, sigma, noise, None)
        # mean of 400,000 squares of a unit normal: standard error .0022
        assert loss.shape == (len(x0),) and abs(float(loss.mean()) - 1) < 0.012


def test_training_finds_the_exact_denoiser(tmp_path):
    world = GaussianMixture([1, 1], [[-1.0], [1.0]], [[[0.09]], [[0.09]]])
    model = training_model(tmp_path)
    x = torch.linspace(-2, 2, 41)[:, None]
    for level in (0.2, 1.0):
        error = model(x, level) - world(x, level)
        assert float(error.square().mean().sqrt()) < 0.08 * max(level, 0.5)


def training_model(folder):
    from toy_models.mlp import MLP, Preconditioned

    def draw(rng, n):
        side = torch.randint(2, (n, 1), generator=rng) * 2.0 - 1
        return side + 0.3 * torch.randn(n, 1, generator=rng), None, {}

    torch.manual_seed(0)
    model = Preconditioned(MLP(32, 3, dimension=1), sigma_data=1.0)
    settings = Settings(512 * 600, batch=512, rate=5e-3, drop=0.0, keep=(1.0,))
    run = Run(model, draw, settings, folder, cpu=True)
    run.train()
    return run.average(0.05)


def test_a_run_cut_in_pieces_is_the_run_in_one_bit_for_bit(tmp_path):
    whole, pieces = small_run(tmp_path / "whole"), None
    whole.train(log_every=1)
    for until in (1, 7, 8, 23, 40):
        pieces = small_run(tmp_path / "pieces")
        pieces.train(until=until, log_every=1)
    assert pieces.step == whole.step == 40
    assert torch.equal(weights(pieces), weights(whole))
    assert torch.equal(averages(pieces), averages(whole))
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")
    for path in (tmp_path / "whole" / SNAPSHOTS).iterdir():
        ours, theirs = load_file(tmp_path / "pieces" / SNAPSHOTS / path.name), load_file(path)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = small_run(tmp_path / "whole", images=16 * 600)
    whole.train(log_every=1)
    code = (
        "import sys; from pathlib import Path; from tests.small_run import small_run\n"
        "small_run(Path(sys.argv[1]), images=16 * 600).train(log_every=1, save_every=3)"
    )
    environment = {**os.environ, "GUIDANCE_EDU_PROGRESS": "0"}
    command = [sys.executable, "-c", code, str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    log = tmp_path / "killed" / LOG
    for _ in range(3000):
        if log.exists() and log.stat().st_size > 3000:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = small_run(tmp_path / "killed", images=16 * 600)
    assert 0 < killed.step < 600
    killed.train(log_every=1)
    assert torch.equal(weights(killed), weights(whole))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    "line", ['{"step": 9, "lo', "5\n", "null\n", '{"nostep": 1}\n', '{"step": "x"}\n']
)
def test_a_half_written_or_damaged_log_line_is_dropped(tmp_path, line):
    run = small_run(tmp_path)
    run.train(until=8, log_every=1)
    with (tmp_path / LOG).open("a") as stream:
        stream.write(line)
    again = small_run(tmp_path)
    again.train(until=10, log_every=1)
    assert len(losses(tmp_path)) == 10


def test_two_processes_train_as_one_with_the_same_batch(tmp_path):
    run = small_run(tmp_path / "one")
    run.train(until=12, log_every=1)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true"}
    command = [*torchrun, str(SCRIPT), str(tmp_path / "two"), "12"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # The sums run in another order: rounding of float32, grown over twelve steps.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    again = small_run(tmp_path / "two")
    assert again.step == 12
    torch.testing.assert_close(weights(again), weights(run), atol=1e-5, rtol=1e-4)


def test_the_averages_are_those_of_the_steps_taken(tmp_path):
    run = small_run(tmp_path)
    mine = PowerEMA(run.model, 0.05)
    for until in range(1, 11):
        run.train(until=until, save_every=100)
        mine.update(run.model)
    torch.testing.assert_close(run.averages[0.05].weights, mine.weights)


def test_snapshots_hold_each_average_in_half_precision(tmp_path):
    from safetensors import safe_open

    run = small_run(tmp_path)
    run.train()
    names = sorted(p.name for p in (tmp_path / SNAPSHOTS).iterdir())
    assert names == [f"{k:09d}_{w}.safetensors" for k in (160, 640) for w in ("0.050", "0.100")]
    with safe_open(tmp_path / SNAPSHOTS / names[-1], framework="pt") as stored:
        about = stored.metadata()
        assert (about["images"], about["width"], about["step"]) == ("640", "0.1", "40")
        parameters = dict(run.model.named_parameters())
        assert set(stored.keys()) == set(parameters)
        for (name, _), average in zip(parameters.items(), run.averages[0.1].weights, strict=True):
            assert torch.equal(stored.get_tensor(name), average.half())


def test_with_and_without_label_dropout_a_run_sees_the_same_images_and_noise(tmp_path, monkeypatch):
    seen = []

    def watch(model, x0, sigma, noise, condition, **extra):
        seen.append((x0, sigma, noise, condition))
        return denoising_loss(model, x0, sigma, noise, condition, **extra)

    monkeypatch.setattr(training, "denoising_loss", watch)
    for drop in (0.5, 0.0):
        small_run(tmp_path / str(drop), drop=drop).train(until=3)
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
        kept = first[3] != Net.null_label
        assert not kept.all() and torch.equal(first[3][kept], second[3][kept])
        assert (second[3] != Net.null_label).all()


def test_the_rate_rises_stays_and_falls():
    settings = Settings(1000 * 10, batch=10, rate=1.0, warmup=100, decay=0.5, floor=0.1)
    rates = [settings.rate_at(k) for k in (0, 49, 99, 400, 500, 750, 960, 999)]
    assert rates == pytest.approx([0.01, 0.5, 1, 1, 1, 0.5, 0.1, 0.1])


def test_validation_losses_are_those_of_the_same_noise_every_time(tmp_path):
    model = small_run(tmp_path).model
    x0, labels, _ = batches(torch.Generator().manual_seed(0), 40)
    first = validation_losses(model, x0, labels, (0.1, 3.0), batch=7)
    assert first == validation_losses(model, x0, labels, (0.1, 3.0), batch=7)
    assert list(first) == ["0.1", "3"] and all(v > 0 for v in first.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 5, "batch": 8}, "expected a batch of 1 to 5, got 8"),
        ({"images": 8, "batch": 0}, "expected a batch of 1 to 8, got 0"),
        ({"images": 64, "rate": 0.0}, "expected rate and clip above 0"),
        ({"images": 64, "drop": 1.0}, r"drop in \[0, 1\)"),
        ({"images": 64, "decay": 0.0}, r"decay in \(0, 1\]"),
        ({"images": 64, "keep": (1.0, 0.5)}, "expected rising shares"),
        ({"images": 64, "keep": (0.0,)}, r"expected rising shares in \(0, 1\]"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_labels_cannot_be_dropped_from_a_model_without_a_null_label(tmp_path, monkeypatch):
    monkeypatch.setattr(Net, "null_label", None)
    with pytest.raises(ValueError, match="null label to drop labels"):
        small_run(tmp_path)


def test_a_folder_with_another_run_is_refused(tmp_path):
    small_run(tmp_path).train(until=2)
    with pytest.raises(ValueError, match="holds another run"):
        small_run(tmp_path, rate=1e-3)


def test_a_damaged_state_says_so_and_is_left_alone(tmp_path):
    small_run(tmp_path).train(until=2)
    path = tmp_path / STATE
    path.write_bytes(path.read_bytes()[:-100])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="state.safetensors is damaged"):
        small_run(tmp_path)
    assert path.read_bytes() == before


def test_one_changed_bit_of_a_state_says_so_and_is_left_alone(tmp_path):
    small_run(tmp_path).train(until=2)
    path = tmp_path / STATE
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="state.safetensors is damaged .* expected sha256"):
        small_run(tmp_path)
    assert path.read_bytes() == changed


def test_a_state_without_its_metadata_says_so_and_is_left_alone(tmp_path):
    small_run(tmp_path).train(until=2)
    path = tmp_path / STATE
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"state.safetensors is damaged .* lacks \['identity'"):
        small_run(tmp_path)
    assert load_file(path).keys() == tensors.keys()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_state(tmp_path):
    small_run(tmp_path).train(until=4)
    state = (tmp_path / STATE).read_bytes()
    run = small_run(tmp_path)
    run.batches = lambda rng, n: (torch.full((n, 3), float("nan")), *batches(rng, n)[1:])
    with pytest.raises((ValueError, FloatingPointError), match="finite"):
        run.train()
    assert (tmp_path / STATE).read_bytes() == state


def test_an_average_that_is_not_kept_is_refused(tmp_path):
    with pytest.raises(KeyError, match=r"keeps averages of \[0.05, 0.1\], not 0.2"):
        small_run(tmp_path).average(0.2)


def test_an_image_network_in_channels_last_is_stored_and_goes_on_bit_for_bit(tmp_path):
    from toy_models.unet import image_denoiser

    def images(rng, n):
        told = {"augmentation": torch.rand(n, 3, generator=rng)}
        x0 = torch.rand(n, 3, 64, 64, generator=rng) * 2 - 1
        return x0, torch.randint(10, (n,), generator=rng), told

    def run(folder):
        torch.manual_seed(0)
        model = image_denoiser(channels=(8, 8, 8), heads=(0, 1, 1), width=8)
        model = model.to(memory_format=torch.channels_last)
        settings = Settings(8, batch=2, warmup=1, keep=(0.5, 1.0))
        return Run(model, images, settings, folder, cpu=True)

    whole = run(tmp_path / "whole")
    whole.train()
    for until in (1, 2, 4):
        pieces = run(tmp_path / "pieces")
        pieces.train(until=until)
    assert len(list((tmp_path / "pieces" / SNAPSHOTS).iterdir())) == 4
    assert torch.equal(weights(pieces), weights(whole))
    assert torch.equal(averages(pieces), averages(whole))
    (strided,) = {
        state["exp_avg"].stride() == parameter.stride()
        for parameter, state in pieces.optimiser.state.items()
    }
    assert strided, "moments in another memory layout than the weights cost time"
