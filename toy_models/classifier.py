"""A small classifier of 64x64 photographs: the eyes with which samples are measured.

It names the class of an image, for accuracy, and gives 256 features, for distances between sets of
images. What it learned from and what it is asked to judge are kept apart by file name: see
:func:`seen`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from guidance_edu.checkpoints import load_weights, read_safetensors, write_whole
from guidance_edu.settings import device, progress, quick_bf16
from toy_models.imagenet64 import BOOK, FIFTY, Images, load, to_range, wnids_of

CLASSIFIER = "imagenet64-classifier"
WEIGHTS = Path(__file__).resolve().parent / "weights"
BOOK_NUMBERS, OTHER_NUMBERS = 200, 100
FEATURES = 256


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Shapes:  x [n, c_in, h, w]; result [n, c_out, h / stride, w / stride].
    """

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        plain = c_in == c_out and stride == 1
        self.shortcut = nn.Identity() if plain else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class Classifier(nn.Module):
    """A residual network with batch normalisation; its first ten classes are the book's.

    Shapes:  x [n, 3, 64, 64]; features [n, 256], not negative; logits [n, classes].
    Units:   x in -1 .. 1.
    Source:  He et al. 2015 (arXiv:1512.03385), the plain residual block, at a fifth of the size.
    """

    def __init__(self, classes: int = 200):
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 5, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(48)
        plan = [(48, 1), (96, 2), (96, 1), (192, 2), (192, 1), (FEATURES, 2)]
        widths = [48, *(width for width, _ in plan)]
        self.blocks = nn.Sequential(
            *(Residual(a, b, s) for a, (b, s) in zip(widths[:-1], plan, strict=True))
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return what the head sees: 256 averages over the 4x4 map of the last block."""
        return self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)).float()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of all classes."""
        return self.head(self.features(x))


def seen(file: str) -> bool:
    """Return whether the classifier may learn from an image, judged by its name alone.

    A training image counts if its number (``n01443537_57.JPEG``: 57) is below 200 in one of the
    book's ten classes, any in the forty classes of FIFTY beyond them, and below 100 in all others.
    Validation images never count. So the 300 remaining training images of each of the book's
    classes are new to the classifier, as the validation images are.

    Errors:  ValueError for a name that is not of the published form.
    """
    split, _, name = file.partition("/")
    wnid, _, number = name.removesuffix(".JPEG").partition("_")
    if split not in {"train", "val"} or not number.isdigit():
        raise ValueError(f"expected a name such as train/n01443537_57.JPEG, got {file!r}")
    if split == "val":
        return False
    if wnid in BOOK.values():
        return int(number) < BOOK_NUMBERS
    return wnid in FIFTY.values() or int(number) < OTHER_NUMBERS


def only(images: Images, keep: Callable[[str], bool]) -> Images:
    """Return the images whose file name is kept."""
    rows = [row for row, file in enumerate(images.files) if keep(file)]
    files = tuple(images.files[row] for row in rows)
    return Images(images.pixels[rows], images.labels[rows], files)


def class_order(data: str | Path) -> list[str]:
    """Return the WordNet ids in the order of the classifier's labels: the book's ten first."""
    book = list(BOOK.values())
    return book + sorted(set(wnids_of(data)) - set(book))


def augment(x: Tensor, rng: torch.Generator, shift: int = 8, hole: int = 20) -> Tensor:
    """Mirror half of the images, move each by up to ``shift`` pixels, grey out a square.

    Nothing is resized or recoloured: a network that was taught to overlook blur, noise or a change
    of colour could not measure it.

    Shapes:  x [n, 3, h, w], result alike.
    """
    n, _, h, w = x.shape
    x = torch.where(torch.rand(n, 1, 1, 1, generator=rng) < 0.5, x.flip(3), x)
    moves = torch.randint(0, 2 * shift + 1, (n, 2), generator=rng)
    rows = moves[:, :1] + torch.arange(h)
    columns = moves[:, 1:] + torch.arange(w)
    padded = F.pad(x, (shift,) * 4, mode="reflect").permute(0, 2, 3, 1)
    x = padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    corner = torch.randint(-hole, h, (n, 2), generator=rng)
    inside = [
        (torch.arange(size) >= c[:, None]) & (torch.arange(size) < c[:, None] + hole)
        for size, c in ((h, corner[:, 0]), (w, corner[:, 1]))
    ]
    x = x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[..., None], 0.0)
    return x.permute(0, 3, 1, 2)


def features_of(model: Classifier, pixels: Tensor, batch: int = 100) -> tuple[Tensor, Tensor]:
    """Return features and logits of pictures, in full precision.

    Shapes:  pixels [n, 64, 64, 3] uint8; results [n, 256] and [n, classes], on the CPU.
    """
    where = next(model.parameters()).device
    features, logits = [], []
    with torch.no_grad():
        for part in progress(pixels.split(batch), "features"):
            features.append(model.features(to_range(part).to(where)))
            logits.append(model.head(features[-1]))
    return torch.cat(features).cpu(), torch.cat(logits).cpu()


@cache
def load_classifier(folder: Path = WEIGHTS) -> Classifier:
    """Return the shipped classifier on the book's device.

    Errors:  KeyError, FileNotFoundError or ValueError for missing, damaged or misfitting weights.
    """
    return load_weights(folder, CLASSIFIER, Classifier()).to(device())


def train_classifier(
    data: str | Path,
    folder: str | Path,
    seed: int = 300,
    number: int = 256_000,
    batch: int = 64,
    learning_rate: float = 0.12,
    keep_every: int = 500,
) -> tuple[Classifier, dict]:
    """Train on the packed images that :func:`seen` allows; return the model and its card.

    A run that was stopped goes on from ``folder / "classifier.safetensors"``. What a step sees
    depends on the seed and its number alone, so that a stopped run ends as an unbroken one.

    Errors:  FileNotFoundError where the data are not packed; ValueError where none may be seen, or
             the checkpoint belongs to another run; FloatingPointError where the loss diverges.
    Source:  label smoothing: Szegedy et al. 2015 (arXiv:1512.00567), sec. 7; a square greyed out:
             DeVries & Taylor 2017 (arXiv:1708.04552).
    """
    order = class_order(data)
    images = only(load(data, "train", order), seen)
    if not len(images):
        raise ValueError(f"no image in {data} may be shown to the classifier")
    # The book's classes count twice: they are the ones that will be told apart.
    pool = torch.cat([torch.arange(len(images)), (images.labels < len(BOOK)).nonzero()[:, 0]])
    steps = math.ceil(number / batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(len(order)).to(device(), memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    path = Path(folder) / "classifier.safetensors"
    run = torch.tensor([seed, number, batch, len(order), int(images.sha256()[:12], 16)])
    start, before, running = _restore(path, model, optimizer, run)
    clock = time.process_time()
    for step in progress(range(start, steps), "classifier"):
        rows = _rows(pool, step, batch, seed)
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        x = augment(to_range(images.pixels[rows]), rng).to(device())
        for group in optimizer.param_groups:
            warm, left = (step + 1) / (0.05 * steps), (steps - step) / (0.95 * steps)
            group["lr"] = learning_rate * min(warm, left, 1.0)
        model.train()
        with torch.autocast(device().type, torch.bfloat16, enabled=quick_bf16()):
            logits = model(x.contiguous(memory_format=torch.channels_last))
            labels = images.labels[rows].to(device())
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        value = float(loss.detach())
        running = value if math.isnan(running) else running + (value - running) / 200
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is not finite at step {step}; the model diverged")
        if (step + 1) % keep_every == 0 or step + 1 == steps:
            spent = before + time.process_time() - clock
            _keep(path, model, optimizer, run, step + 1, spent, running)
            print(f"step {step + 1} of {steps}: loss {running:.3f}, {spent:.0f} s", flush=True)
    card = {
        "recipe": {
            "name": "imagenet64-classifier",
            "what": "features and accuracy",
            "batch": batch,
        },
        "seed": seed,
        "images_seen": steps * batch,
        "data": f"{len(images)} training images of {len(order)} classes, none of the reference",
        "data_sha256": images.sha256(),
        "classes": order,
        "training_loss": round(running, 4) if math.isfinite(running) else None,
        "seconds": round(before + time.process_time() - clock, 1),
    }
    return model.eval().requires_grad_(False).cpu(), card


def _rows(pool: Tensor, step: int, batch: int, seed: int) -> Tensor:
    """Return the rows of one step: the pool in a fresh order every time it has been used up."""
    first = step * batch
    rows = []
    while len(rows) < batch:
        turn, place = divmod(first + len(rows), len(pool))
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed + turn))
        rows += pool[order[place : place + batch - len(rows)]].tolist()
    return torch.tensor(rows)


def _keep(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.SGD,
    run: Tensor,
    step: int,
    spent: float,
    loss: float,
) -> None:
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    for number, parameter in enumerate(model.parameters()):
        tensors[f"momentum.{number}"] = optimizer.state[parameter]["momentum_buffer"]
    tensors |= {"run": run, "step": torch.tensor(step)}
    tensors |= {"seconds": torch.tensor(spent), "loss": torch.tensor(loss)}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_whole({path: write_tensors(tensors)})


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.SGD, run: Tensor
) -> tuple[int, float, float]:
    """Fill model and optimizer from a checkpoint, if any; return its step, seconds and loss."""
    if not path.exists():
        return 0, 0.0, math.nan
    tensors = read_safetensors(path)
    if not torch.equal(tensors["run"], run):
        raise ValueError(f"{path} belongs to another run (seed, length, batch or data differ)")
    model.load_state_dict(
        {key[6:]: value for key, value in tensors.items() if key.startswith("model.")}
    )
    for number, parameter in enumerate(model.parameters()):
        stored = tensors[f"momentum.{number}"].to(parameter.device)
        optimizer.state[parameter]["momentum_buffer"] = stored.clone()
    loss = float(tensors.get("loss", math.nan))
    return int(tensors["step"]), float(tensors["seconds"]), loss
