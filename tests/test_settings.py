"""What a reader may set from outside, and what happens when it is set wrongly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from guidance_edu.settings import device, generator, progress, quick_bf16, seed_shift

FEW = limits(max_examples=20, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("DEVICE", "SEED", "PROGRESS"):
        monkeypatch.delenv(f"GUIDANCE_EDU_{name}", raising=False)


def gpu(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)


# Device


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("name", [None, "", "cpu", " CPU "])
def test_the_cpu_is_the_default_whether_or_not_there_is_a_gpu(monkeypatch, there, name):
    gpu(monkeypatch, there)
    if name is not None:
        monkeypatch.setenv("GUIDANCE_EDU_DEVICE", name)
    assert device() == torch.device("cpu")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_DEVICE", "auto")
    gpu(monkeypatch, True)
    assert device() == torch.device("cuda")
    gpu(monkeypatch, False)
    assert device() == torch.device("cpu")


def test_cuda_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_DEVICE", "cuda")
    gpu(monkeypatch, True)
    assert device() == torch.device("cuda")
    gpu(monkeypatch, False)
    with pytest.raises(RuntimeError, match="DEVICE=cuda, but this torch sees no GPU"):
        device()


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:0", "0"])
def test_an_unknown_device_is_named_with_the_known_ones(monkeypatch, name):
    monkeypatch.setenv("GUIDANCE_EDU_DEVICE", name)
    with pytest.raises(ValueError, match=f"to be cpu, cuda or auto, got '{name}'"):
        device()


# Seeds


@pytest.mark.parametrize(("text", "shift"), [(None, 0), ("", 0), ("0", 0), (" 17 ", 17)])
def test_the_shift_is_the_number_in_the_environment(monkeypatch, text, shift):
    if text is not None:
        monkeypatch.setenv("GUIDANCE_EDU_SEED", text)
    assert seed_shift() == shift


@pytest.mark.parametrize("text", ["one", "-1", "1.5", "1e3", "0x10", "٣", "²", "1 2", "+1"])
def test_a_shift_that_is_not_a_number_of_at_least_0_is_refused(monkeypatch, text):
    monkeypatch.setenv("GUIDANCE_EDU_SEED", text)
    with pytest.raises(ValueError, match="expected GUIDANCE_EDU_SEED to be an integer of at least"):
        seed_shift()
    with pytest.raises(ValueError, match="GUIDANCE_EDU_SEED"):
        generator(0)


def draw(rng):
    return torch.randn(5, generator=rng)


@FEW
@given(seed=st.integers(0, 2**40), shift=st.integers(0, 10_000))
def test_a_shift_moves_every_seed_by_as_much(seed, shift):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUIDANCE_EDU_SEED", "0")
        wanted = draw(generator(seed + shift))
        patch.setenv("GUIDANCE_EDU_SEED", str(shift))
        assert torch.equal(draw(generator(seed)), wanted)


def test_a_generator_is_one_of_the_cpu_and_starts_anew_at_every_call():
    rng = generator(3)
    assert isinstance(rng, torch.Generator) and rng.device.type == "cpu"
    first = draw(rng)
    assert torch.equal(first, draw(generator(3)))
    assert not torch.equal(first, draw(rng)) and not torch.equal(first, draw(generator(4)))


def test_a_generator_leaves_the_global_seed_alone():
    before = torch.random.get_rng_state()
    draw(generator(3))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("seed", [1.0, "1", None, True, np.float64(1), torch.tensor(1)])
def test_a_seed_that_is_not_an_integer_is_refused(seed):
    with pytest.raises(TypeError, match="expected an integer seed, got"):
        generator(seed)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="expected a seed of at least 0 and at most 63 bits"):
        generator(seed)


def test_a_shift_out_of_range_is_refused(monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_SEED", "9" * 30)
    with pytest.raises(ValueError, match="at most 63 bits with its shift, got 0 shifted by 999"):
        generator(0)


# Progress


def test_a_progress_bar_passes_every_item_on_and_hides_when_told(monkeypatch, capsys):
    assert list(progress(range(4), "counting")) == [0, 1, 2, 3]
    assert not progress([], "counting").disable
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")
    bar = progress(iter("ab"), "counting", total=2)
    assert bar.disable and list(bar) == ["a", "b"]
    assert capsys.readouterr().err == ""  # nor does a short loop show a bar


def test_a_torch_that_cannot_tell_what_the_cpu_is_good_at_gets_float32(monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_DEVICE", "cpu")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert quick_bf16() is False
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert quick_bf16() is True
