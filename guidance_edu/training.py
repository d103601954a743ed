"""Train a denoiser: the loop, its noise levels, its averages, and how to stop and go on.

A run lives in a folder. ``state.safetensors`` holds everything that the next step depends on, so a
run that is killed at any moment goes on from its last state as if nothing had happened, bit for bit
on the same machine. ``log.jsonl`` holds the losses, ``snapshots/`` the averaged weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from guidance_edu.checkpoints import write_whole
from guidance_edu.ema import PowerEMA, take_snapshot
from guidance_edu.settings import generator, progress

# (generator, n) -> x0 [n, ...], condition [n] or None, further arguments of the model by name
Batches = Callable[[torch.Generator, int], tuple[Tensor, Tensor | None, dict[str, Tensor]]]
STATE, LOG, SNAPSHOTS = "state.safetensors", "log.jsonl", "snapshots"


@dataclass(frozen=True)
class Settings:
    """What a run is: everything that decides its result besides the model and the data.

    Units:   ``images`` is how many the model sees in all; ``warmup`` counts steps; ``decay`` is the
             share of the run in which the rate falls to ``floor`` times its height; noise levels
             follow ln sigma ~ N(mean, spread^2); ``widths`` are those of the stored averages;
             ``keep`` are the shares of the run after which they are stored.
    Errors:  ValueError for a run of no steps, or a rate, share or width that makes no sense.
    Source:  Karras et al. 2022, table 1 (noise levels, loss weight); Karras et al. 2024
             (arXiv:2312.02696), sec. 3 (averages).
    """

    images: int
    batch: int = 32
    rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 200
    decay: float = 0.6
    floor: float = 0.02
    clip: float = 1.0
    mean: float = -0.7
    spread: float = 1.2
    drop: float = 0.1
    widths: tuple[float, ...] = (0.05, 0.10)
    keep: tuple[float, ...] = (1.0,)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.images:
            raise ValueError(f"expected a batch of 1 to {self.images}, got {self.batch}")
        if not (self.rate > 0 and self.clip > 0 and 0 <= self.drop < 1 and 0 < self.decay <= 1):
            raise ValueError(
                "expected rate and clip above 0, drop in [0, 1), decay in (0, 1]; got"
                f" {self.rate}, {self.clip}, {self.drop}, {self.decay}"
            )
        if not all(0 < share <= 1 for share in self.keep) or list(self.keep) != sorted(self.keep):
            raise ValueError(f"expected rising shares in (0, 1] in keep, got {self.keep}")

    @property
    def steps(self) -> int:
        """How many steps the run takes."""
        return self.images // self.batch

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = (1 - step / self.steps) / self.decay
        return self.rate * rising * min(1.0, max(falling, self.floor))


def denoising_loss(
    model: Callable, x0: Tensor, sigma: Tensor, noise: Tensor, condition: Tensor | None, **extra
) -> Tensor:
    """Return the loss of each sample: its squared error, weighted so that levels count alike.

    Shapes:  x0, noise [n, ...]; sigma [n]; condition [n] or None; result [n].
    Units:   (sigma^2 + s^2) / (sigma s)^2 times the mean squared error, s = ``model.sigma_data``;
             a network that returns 0 has a loss of 1 on N(0, s^2).
    Source:  Karras et al. 2022, table 1 (lambda).
    """
    shape = (-1, *[1] * (x0.dim() - 1))
    error = model(x0 + sigma.reshape(shape) * noise, sigma, condition, **extra) - x0
    return error.square().flatten(1).mean(1) * loss_weight(sigma, _unwrapped(model).sigma_data)


def loss_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """Return the weight of a squared error at a noise level.

    Shapes:  sigma, result [n].
    Source:  Karras et al. 2022, table 1 (lambda).
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


@torch.no_grad()
def validation_losses(
    model: nn.Module,
    x0: Tensor,
    condition: Tensor | None,
    levels: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
    batch: int = 50,
) -> dict[str, float]:
    """Return the mean weighted loss on held-out samples, noise level by noise level.

    The noise is the same at every call, so that two models differ by their errors alone.

    Shapes:  x0 [n, ...]; condition [n] or None.
    """
    rng, losses = generator(4242), {}
    where = next(model.parameters()).device
    for level in levels:
        total = 0.0
        for start in range(0, len(x0), batch):
            part = x0[start : start + batch]
            noise = torch.randn(part.shape, generator=rng)
            labels = None if condition is None else condition[start : start + batch].to(where)
            sigma = torch.full((len(part),), float(level), device=where)
            loss = denoising_loss(model, part.to(where), sigma, noise.to(where), labels)
            total += float(loss.double().sum())
        losses[f"{level:g}"] = total / len(x0)
    return losses


class Run:
    """A training run: model, optimiser, averages, random numbers and the step they are at.

    Shapes:  the model is a denoiser with ``sigma_data``; where samples may lose their label
             (``drop`` above 0) it has a ``null_label``.
    Limits:  with several processes (``accelerate launch``, ``torchrun``) each draws the whole
             batch and trains on its share, so that the losses are those of one process up to
             rounding.
    Errors:  ValueError when labels are to be dropped from a model without a null label, when the
             processes do not divide the batch, or when the folder holds another run or a damaged
             state; FloatingPointError when a gradient is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        settings: Settings,
        folder: str | Path,
        data: str = "",
        cpu: bool = False,
    ):
        if settings.drop and getattr(model, "null_label", None) is None:
            raise ValueError("expected a model with a null label to drop labels (drop > 0)")
        self.accelerator = Accelerator(cpu=cpu)
        self.settings, self.batches, self.folder = settings, batches, Path(folder)
        self.data = data
        shares = self.accelerator.num_processes
        if settings.batch % shares:
            raise ValueError(f"expected {shares} processes to divide the batch {settings.batch}")
        self.identity = json.dumps({"settings": asdict(settings), "data": data}, sort_keys=True)
        self.model = model.to(self.accelerator.device).train()
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.rate,
            betas=settings.betas,
            weight_decay=0.0,
            fused=True,
        )
        self.averages = {width: PowerEMA(self.model, width) for width in settings.widths}
        self.rng = generator(settings.seed)
        self.step, self.seconds = 0, 0.0
        if (self.folder / STATE).exists():
            self._restore()
        self.shared, self.optimiser = self.accelerator.prepare(self.model, self.optimiser)

    @property
    def images(self) -> int:
        """How many images the model has seen."""
        return self.step * self.settings.batch

    def train(self, until: int | None = None, save_every: int = 500, log_every: int = 50) -> None:
        """Take steps to the end of the run, or to step ``until``; save now and then.

        Errors:  FloatingPointError when a loss is not finite; the last saved state stays.
        """
        last = self.settings.steps if until is None else min(until, self.settings.steps)
        keep = {max(1, round(share * self.settings.steps)) for share in self.settings.keep}
        losses, clock = [], time.perf_counter()
        for _ in progress(range(self.step, last), "training"):
            losses.append(self._take_step())
            if self.step % log_every == 0:
                self._log(loss=self._mean(losses), rate=self.settings.rate_at(self.step - 1))
                losses = []
            if self.step in keep:
                self._snapshot()
            if self.step % save_every == 0 or self.step == last:
                self.seconds += time.perf_counter() - clock
                clock = time.perf_counter()
                self.save()

    def _take_step(self) -> Tensor:
        settings, device = self.settings, self.accelerator.device
        x0, condition, extra = self.batches(self.rng, settings.batch)
        draws = torch.randn(settings.batch, generator=self.rng)
        sigma = (draws * settings.spread + settings.mean).exp()
        noise = torch.randn(x0.shape, generator=self.rng)
        # Drawn in any case: with and without label dropout a run sees the same images and noise.
        dropped = torch.rand(settings.batch, generator=self.rng) < settings.drop
        if settings.drop:
            condition = torch.where(dropped, self.model.null_label, condition)
        share = settings.batch // self.accelerator.num_processes
        first = share * self.accelerator.process_index
        x0, sigma, noise, condition, extra = (
            _part(value, first, share, device) for value in (x0, sigma, noise, condition, extra)
        )
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate_at(self.step)
        loss = denoising_loss(self.shared, x0, sigma, noise, condition, **extra).mean()
        self.optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        size = self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip)
        if not bool(torch.as_tensor(size).isfinite()):
            raise FloatingPointError(f"the gradient at step {self.step} is not finite ({size})")
        self.optimiser.step()
        for average in self.averages.values():
            average.update(self.model)
        self.step += 1
        return loss.detach()

    def _mean(self, losses: list[Tensor]) -> float:
        return float(self.accelerator.gather(torch.stack(losses)).double().mean())

    def _log(self, **entry: float) -> None:
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / LOG).open("a", encoding="utf-8") as stream:
                line = {"step": self.step, "images": self.images, **entry}
                stream.write(json.dumps(line) + "\n")

    def _snapshot(self) -> None:
        """Store each average at this step, in half precision: what the reconstruction needs."""
        if not self.accelerator.is_main_process:
            return
        names = [name for name, _ in self.model.named_parameters()]
        for width, average in self.averages.items():
            stored = (weight.cpu().contiguous() for weight in take_snapshot(average).weights)
            tensors = dict(zip(names, stored, strict=True))
            path = self.folder / SNAPSHOTS / f"{self.images:09d}_{width:.3f}.safetensors"
            about = {"step": str(self.step), "images": str(self.images), "width": str(width)}
            write_whole({path: write_tensors(tensors, about)})

    def average(self, width: float) -> nn.Module:
        """Put the average of a width in place of the weights and return the model.

        Errors:  KeyError for a width that this run does not keep.
        """
        if width not in self.averages:
            raise KeyError(f"this run keeps averages of {sorted(self.averages)}, not {width}")
        self.averages[width].copy_to(self.model)
        return self.model.eval().requires_grad_(False)

    def save(self) -> None:
        """Write the state; it replaces the last one whole or not at all."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{k}": v for k, v in state.items()}
        for width, average in self.averages.items():
            tensors |= {f"average.{width}.{k}": v for k, v in enumerate(average.weights)}
        tensors["random"] = self.rng.get_state()
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        about = {
            "identity": self.identity,
            "step": str(self.step),
            "seconds": str(self.seconds),
            "sha256": _digest(tensors),
        }
        write_whole({self.folder / STATE: write_tensors(tensors, about)})

    def _restore(self) -> None:
        path = self.folder / STATE
        try:
            with safe_open(path, framework="pt") as stored:
                about = stored.metadata() or {}
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged and was left alone: {error}") from error
        missing = [key for key in ("identity", "step", "seconds", "sha256") if key not in about]
        missing += ["random"] if "random" not in tensors else []
        if missing:
            raise ValueError(f"{path} is damaged and was left alone: it lacks {missing}")
        if (found := _digest(tensors)) != about["sha256"]:
            raise ValueError(
                f"{path} is damaged and was left alone: expected sha256 {about['sha256']} of its"
                f" tensors, got {found}"
            )
        if about["identity"] != self.identity:
            raise ValueError(
                f"{self.folder} holds another run: {about['identity']}; expected {self.identity}"
            )
        groups: dict[str, dict] = {"model": {}, "optimiser": {}, "average": {}}
        self.rng.set_state(tensors.pop("random"))
        for key, value in tensors.items():
            kind, rest = key.split(".", 1)
            groups[kind][rest] = value
        self.model.load_state_dict(groups["model"])
        state: dict[int, dict[str, Tensor]] = {}
        weights = list(self.model.parameters())
        for key, value in groups["optimiser"].items():
            number, name = key.split(".", 1)
            like = weights[int(number)]  # the optimiser is fastest in the weights' memory layout
            value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            state.setdefault(int(number), {})[name] = value
        whole = self.optimiser.state_dict()
        self.optimiser.load_state_dict({**whole, "state": state})
        self.step, self.seconds = int(about["step"]), float(about["seconds"])
        for width, average in self.averages.items():
            average.updates = self.step
            for number, weight in enumerate(average.weights):
                weight.copy_(groups["average"][f"{width}.{number}"])
        self._forget_after()

    def _forget_after(self) -> None:
        """Drop log lines of steps that are about to be taken again."""
        log = self.folder / LOG
        if log.exists() and self.accelerator.is_main_process:
            lines = log.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= self.step]
            write_whole({log: "".join(f"{line}\n" for line in kept).encode()})


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):  # where the run was cut off, or a damaged line
        return float("inf")


def _part(value, first: int, share: int, device: torch.device):
    if isinstance(value, dict):
        return {name: _part(inner, first, share, device) for name, inner in value.items()}
    return None if value is None else value[first : first + share].to(device)


def _unwrapped(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model)


def _digest(tensors: dict[str, Tensor]) -> str:
    """Return the sha256 of tensors and their names."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode())
        whole.update(tensors[name].flatten().view(torch.uint8).numpy())
    return whole.hexdigest()
