"""The guide test at 64x64 obeys the law of chapter 3, and sweeps say what they need."""

import pytest
import torch

from guidance_edu.ema import reconstruct
from toy_models import sweeps
from toy_models.snapshots import averaged, train_with_snapshots
from toy_models.sweeps import image_ema, image_guide_test


def products(good, bad):
    return torch.stack([(u * v).mean(1) for u, v in ((good, good), (bad, bad), (good, bad))])


@pytest.mark.parametrize("k", [0.5, 1.5, 3.0])
def test_a_negative_that_errs_k_times_as_far_has_the_best_weight_of_chapter_3(k):
    good = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = image_guide_test._compared(products(good, k * good))
    assert found["w"] == pytest.approx(1 + 1 / (k - 1))
    assert found["rise"] == pytest.approx(k**2 - 1)
    assert found["change"] == pytest.approx(abs(k - 1))
    assert found["gain"] == pytest.approx(1.0)


def test_a_negative_that_errs_at_random_wants_no_guidance():
    rng = torch.Generator().manual_seed(2)
    good = torch.randn(4, 200_000, generator=rng, dtype=torch.float64)
    noise = torch.randn(4, 200_000, generator=rng, dtype=torch.float64)
    found = image_guide_test._compared(products(good, good + 0.5 * noise))
    assert found["w"] == pytest.approx(1.0, abs=0.02)  # the noise of a mean over 8e5 products
    assert found["gain"] < 1e-4


def test_the_record_of_the_guide_test_holds_every_negative_at_every_level():
    rows = sweeps.record("guide_test").rows
    asked = {(name, sigma) for name in image_guide_test.NEGATIVES for sigma in (0.1, 10.0)}
    assert asked <= {(row["negative"], row["sigma"]) for row in rows}


def test_a_missing_run_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m toy_models train imagenet64-main"):
        image_ema.snapshots(tmp_path / "none")


def test_an_average_of_an_earlier_time_is_that_of_the_snapshots():
    last, stored = train_with_snapshots("tree-guide")
    early = averaged(last, stored, 0.08, updates=96)
    wanted = reconstruct(stored, 0.08, 96)
    for parameter, weight in zip(early.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter, weight.to(parameter.dtype))
