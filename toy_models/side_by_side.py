"""Every method on the 64x64 models under one protocol: chosen on one seed, judged on the others.

The rows come from the records of :mod:`toy_models.sweeps.image_guidance`, and from those that tried
more of a method. All rows of a seed start from the same noise, so a method is compared with its own
unguided model in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from guidance_edu.denoisers import Denoiser
from toy_models.image_reference import jackknife
from toy_models.sweeps import record
from toy_models.sweeps.chapter_12 import MORE
from toy_models.sweeps.image_guidance import (
    JUDGING,
    LAST,
    MAIN,
    NODROP,
    TUNING,
    by_attention,
    by_clock,
    by_mask,
    by_smoothing,
    guided,
    louder,
)

Setting = dict[str, str | float]


@dataclass(frozen=True)
class Method:
    """Where the rows of a method are, which of their columns were tried, and what it needs.

    ``more`` are further records with rows of it: the rows that count, and what goes without saying
    in all of them.
    """

    record: str
    build: Callable[..., Denoiser]
    where: Setting
    knobs: tuple[str, ...]
    needs: str
    model: str = MAIN
    more: tuple[tuple[str, Setting, Setting], ...] = ()


def _trained(name: str, needs: str, more: tuple[tuple[str, Setting, Setting], ...] = ()) -> Method:
    return Method("image_training", guided, {"method": name}, ("w",), needs, more=more)


def _conditioned(name: str, needs: str) -> Method:
    return Method("image_condition", guided, {"method": name}, ("w",), needs, NODROP)


def _weights(name: str) -> tuple[str, Setting, Setting]:
    """Return where the rows of a method are that were tried last, at more weights."""
    return "image_weights", {"method": name}, MORE[name][1]


METHODS: dict[str, Method] = {
    "CFG": _trained("cfg", "condition dropout"),
    "CFG, two models": _conditioned("cfg-separate", "an unconditional model"),
    "ICG": _conditioned("icg", "a condition"),
    "ICG, Gaussian": _conditioned("icg-gaussian", "a condition"),
    "TSG": Method(
        "image_clock", by_clock, {"model": MAIN, "clock": "noise"}, ("size", "w"), "a clock"
    ),
    "slow clock": Method(
        "image_clock",
        by_clock,
        {"model": MAIN, "clock": "level"},
        ("size", "w"),
        "a clock",
        more=(_weights("slow clock"),),
    ),
    "SAG": Method(
        "image_masks",
        by_mask,
        {"model": MAIN, "mask": "attention"},
        ("layer", "blur", "w"),
        "attention",
        more=(_weights("SAG"),),
    ),
    "PAG": Method(
        "image_attention",
        by_attention,
        {"model": MAIN, "rule": "identity"},
        ("layers", "w"),
        "attention",
    ),
    "SEG": Method(
        "image_smoothing",
        by_smoothing,
        {"model": MAIN},
        ("layers", "sigma", "w"),
        "attention",
        more=(("image_middle", {}, {"model": MAIN, "sigma": "inf"}), _weights("SEG")),
    ),
    "autoguidance, early": _trained("autoguidance-early", "an early checkpoint"),
    "autoguidance, small": _trained("autoguidance-small", "a weaker model"),
    "SIMS": _trained(
        "sims", "own samples, fine-tuning", more=(("image_strong", {"method": "sims"}, {}),)
    ),
    # no second answer at all: the noise that the model finds is multiplied by w
    "control": Method(
        "image_louder",
        louder,
        {},
        ("w",),
        "nothing",
        more=(_weights("control"), ("image_control", {}, {})),
    ),
}


def method(name: str) -> Method:
    """Return a method. Errors: KeyError for an unknown name; the message lists all."""
    if name not in METHODS:
        raise KeyError(f"unknown method {name!r}; expected one of: {', '.join(METHODS)}")
    return METHODS[name]


def tried(name: str) -> list[dict]:
    """Return all rows of a method that guide (w above 1), at all seeds."""
    entry = method(name)
    rows = record(entry.record).where(**entry.where)
    for further, where, unsaid in entry.more:
        rows = rows + [row | unsaid for row in record(further).where(**where)]
    return [row for row in rows if row["w"] != 1]


def unguided(model: str) -> dict[int, dict]:
    """Return a model's own row at each seed."""
    rows = record("image_models_small").where(model=model)
    return {row["seed"]: row for row in rows}


def chosen(name: str) -> Setting:
    """Return the setting with the lowest FD at the tuning seed, blind to the other seeds."""
    rows = [row for row in tried(name) if row["seed"] in TUNING]
    best = min(rows, key=lambda row: row["fd"])
    return {knob: best[knob] for knob in method(name).knobs}


def judged(name: str) -> list[dict]:
    """Return the rows of the chosen setting at the judging seeds."""
    setting = chosen(name)
    return [
        row
        for row in tried(name)
        if row["seed"] in JUDGING and all(row[knob] == setting[knob] for knob in setting)
    ]


def by_weight(name: str) -> dict[float, list[dict]]:
    """Return the rows of all seeds at each weight, from 1 (no guidance) up.

    What else can be set is as chosen.
    """
    setting = {knob: value for knob, value in chosen(name).items() if knob != "w"}
    rows = {1.0: list(unguided(method(name).model).values())}
    for row in sorted(tried(name), key=lambda row: row["w"]):
        if all(row[knob] == value for knob, value in setting.items()):
            rows.setdefault(row["w"], []).append(row)
    return rows


def gain(name: str) -> tuple[float, float]:
    """Return by how much a method lowers the FD of its own model, and the noise of that.

    Both are means over the judging seeds, at the chosen setting.
    """
    return _mean_and_noise([_gained(row, name) for row in judged(name)])


def lead(name: str, other: str) -> tuple[float, float]:
    """Return by how much a method gains more than another one, and the noise of that.

    At each judging seed both start from the same noise: the two gains are compared sample by
    sample, so what the noise does to both is in neither number.
    """
    theirs = {row["seed"]: row for row in judged(other)}
    return _mean_and_noise(
        [_gained(row, name) - _gained(theirs[row["seed"]], other) for row in judged(name)]
    )


def _gained(row: dict, name: str) -> Tensor:
    """Return the fall of FD in a row: on all samples, then without each tenth of them. [11]."""
    alone = unguided(method(name).model)[row["seed"]]
    columns = ["fd", *(f"without_{k}" for k in range(10))]
    return torch.tensor([alone[key] - row[key] for key in columns], dtype=torch.float64)


def _mean_and_noise(falls: list[Tensor]) -> tuple[float, float]:
    noises = [jackknife(fall[1:].tolist()) for fall in falls]
    return float(torch.stack(falls)[:, 0].mean()), math.hypot(*noises) / len(falls)


def luck(name: str) -> float:
    """Return by how much the gain at the tuning seed exceeds what the judges find."""
    setting = chosen(name).items()
    rows = [
        row
        for row in tried(name)
        if row["seed"] in TUNING and all(row[knob] == value for knob, value in setting)
    ]
    return float(torch.stack([_gained(row, name)[0] for row in rows]).mean()) - gain(name)[0]


def mean(name: str, column: str) -> float:
    """Return the mean of a measure over the judging seeds, at the chosen setting."""
    rows = judged(name)
    return sum(row[column] for row in rows) / len(rows)


def denoiser(name: str, **setting) -> Denoiser:
    """Return the guided model of a method at its chosen setting, or with some of it changed."""
    entry = method(name)
    return entry.build(**entry.where, **(chosen(name) | setting))


def cost(guided_model: Denoiser, alone: Denoiser, sigma: float = 1.0) -> float:
    """Return the arithmetic of a guided call as a multiple of the unguided model's.

    Units:   multiplications and additions of matrix products and convolutions, for two images.
    Limits:  no guidance: 1. It counts work, not seconds: ``make bench`` measures those.
    """
    x, labels = torch.zeros(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)
    work = []
    for model in (guided_model, alone):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x, sigma, labels)
        work.append(counter.get_total_flops())
    return work[0] / work[1]


# method -> the negative that stands for it in the record of the guide test, in the layer that was
# chosen where that layer was tested
TESTED = {
    "CFG": "cfg",
    "CFG, two models": "cfg-separate",
    "ICG": "icg",
    "ICG, Gaussian": "icg-gaussian",
    "TSG": "clock noise 0.1",
    "SAG": "input blurred, attention",
    "PAG": f"identity {LAST}",
    "SEG": "smoothed dec.8.0",
    "autoguidance, early": "autoguidance-early",
    "autoguidance, small": "autoguidance-small",
    "SIMS": "sims",
}


def tested(name: str, highest: float = 1.0) -> tuple[float, float]:
    """Return how much more a method's negative errs on photographs, and the best weight there.

    Both are means over the noise levels up to ``highest``, where details are decided.

    Errors:  KeyError for a method that the guide test leaves out.
    """
    rows = record("guide_test").where(negative=TESTED[name])
    rows = [row for row in rows if row["sigma"] <= highest]
    rise, w = (sum(row[column] for row in rows) / len(rows) for column in ("rise", "w"))
    return rise, w
