"""A run that takes a second: ``python tests/small_run.py FOLDER STEPS`` (also under torchrun)."""

import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from guidance_edu.denoisers import Preconditioned
from guidance_edu.training import Run, Settings


class Net(nn.Module):
    """Three numbers, two classes, a null label."""

    null_label = 2

    def __init__(self):
        super().__init__()
        self.label, self.layer = nn.Embedding(3, 8), nn.Linear(4, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x, noise, condition=None, shift=None):
        h = self.layer(torch.cat([x, noise[:, None]], 1)) + self.label(condition)
        return self.out(torch.tanh(h)) + (0 if shift is None else shift[:, None])


def batches(rng: torch.Generator, n: int) -> tuple[Tensor, Tensor, dict]:
    labels = torch.randint(2, (n,), generator=rng)
    x0 = torch.randn(n, 3, generator=rng) * 0.2 + labels[:, None]
    return x0, labels, {"shift": torch.rand(n, generator=rng) * 0.01}


def small_run(folder: Path, **options) -> Run:
    torch.manual_seed(0)
    model = Preconditioned(Net())
    options = {"images": 640, "batch": 16, "warmup": 5, "keep": (0.25, 1.0), **options}
    return Run(model, batches, Settings(**options), folder, "two blobs", cpu=True)


if __name__ == "__main__":
    os.environ["GUIDANCE_EDU_PROGRESS"] = "0"
    torch.set_num_threads(1)
    run = small_run(Path(sys.argv[1]))
    run.train(until=int(sys.argv[2]), log_every=1, save_every=4)
