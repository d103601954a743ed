"""One style for every figure of the book, and the one way to show it.

Colours have a fixed meaning and are told apart without colour vision (they are taken from the
palette of Okabe & Ito 2008); plots double them by marker or line style.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

TRUTH, POSITIVE, NEGATIVE = "#8c8c8c", "#0072b2", "#e69f00"
GUIDED, FAILURE = "#009e73", "#c1272d"
PAPER, INK = "#ffffff", "#222222"

STYLE = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.prop_cycle": mpl.cycler(color=[POSITIVE, NEGATIVE, GUIDED, FAILURE, TRUTH]),
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "font.size": 10,
    "lines.linewidth": 1.8,
    "image.cmap": "cividis",
}
MAX_BYTES = 150_000
POSTER_BYTES = 500_000  # a figure that is looked at for minutes may weigh more


def figure(columns: int = 1, rows: int = 1, width: float = 8.0, height: float = 3.2, **options):
    """Open a figure in the book's style; returns ``(fig, axes)`` as ``plt.subplots`` does.

    The style stays set for the session, so that titles and texts added later have it too.

    Units:   width of the whole figure and height of one row in inches.
    """
    mpl.rcParams.update(STYLE)
    return plt.subplots(
        rows, columns, figsize=(width, height * rows), layout="constrained", **options
    )


def panel(ax, limits: tuple[float, float, float, float] | None = None) -> None:
    """Turn an axis into a picture of the plane: equal scales, no ticks, given limits.

    Units:   limits are (left, right, bottom, top) in data units.
    """
    ax.set_aspect("equal")
    ax.set(xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_visible(False)
    if limits is not None:
        ax.set(xlim=limits[:2], ylim=limits[2:])


def photographs(ax, pixels: Tensor, columns: int = 10, names: Sequence[str] = ()) -> None:
    """Lay photographs out in rows, one pixel of the picture for each of theirs.

    Shapes:  pixels [n, h, w, 3] uint8; ``names``, one a column, stand above.
    Errors:  ValueError when the photographs do not fill the rows, or names and columns differ.
    """
    if not len(pixels) or len(pixels) % columns or len(names) not in {0, columns}:
        raise ValueError(
            f"expected rows of {columns} photographs and as many names or none, got"
            f" {len(pixels)} and {len(names)}"
        )
    framed = F.pad(pixels.permute(0, 3, 1, 2), (1, 1, 1, 1), value=255)
    rows = framed.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)  # [rows, h, columns, w, 3]
    ax.imshow(rows.flatten(2, 3).flatten(0, 1).numpy(), interpolation="nearest")
    middle = [(k + 0.5) * framed.shape[3] for k in range(columns)]
    ax.set(xticks=middle if names else [], yticks=[])
    ax.set_xticklabels(names, fontsize=7)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def show(
    fig: Figure, alt: str, name: str | None = None, dpi: int = 144, poster: bool = False
) -> None:
    """Display a figure as a small PNG with a text alternative.

    The text becomes the image's alternative in the built book, and is what the notebook tests
    compare, since pixels differ between machines. With a name, the figure is also published to
    the folder that ``GUIDANCE_EDU_FIGURES`` names, where ``make chapters`` sets it.

    Errors:  ValueError when the text says less than eight words, the name is not a plain file
             name, or the PNG exceeds 150 kB (500 kB for a poster).
    """
    if name is not None and not re.fullmatch(r"\w+", name):
        raise ValueError(f"expected a plain file name for a figure, got {name!r}")
    if len(alt.split()) < 8:
        raise ValueError(f"expected alt text that says what is seen, got {alt!r}")
    png, title = _png(fig, dpi, poster), _title(fig)
    plt.close(fig)
    most = POSTER_BYTES if poster else MAX_BYTES
    if len(png) > most:
        raise ValueError(f"expected a PNG of at most {most} bytes, got {len(png)}")
    _publish(png, alt, title, name)
    encoded = base64.b64encode(png).decode()
    display({"image/png": encoded, "text/plain": f"Figure: {alt}"}, raw=True)


def _png(fig: Figure, dpi: int, dithered: bool) -> bytes:
    """Render as an 8-bit palette PNG, which is a third of the size of a full-colour one.

    Dithering keeps photographs smooth, and makes the file larger.
    """
    raw, small = io.BytesIO(), io.BytesIO()
    fig.savefig(raw, format="png", dpi=dpi, metadata={"Software": None})
    image = Image.open(raw).convert("RGB")
    # Refining the palette takes seconds, which only a figure that is worth dithering repays.
    colours = image.quantize(256, kmeans=int(dithered), dither=Image.Dither.NONE)
    if dithered:
        colours = image.quantize(256, palette=colours, dither=Image.Dither.FLOYDSTEINBERG)
    colours.save(small, "PNG", optimize=True)
    return small.getvalue()


def _title(fig: Figure) -> str:
    """Return the title of the figure, or that of its first panel that has one."""
    titles = [ax.get_title(side) for ax in fig.axes for side in ("left", "center", "right")]
    return next((title for title in [fig.get_suptitle(), *titles] if title), "")


def _publish(png: bytes, alt: str, title: str, name: str | None) -> None:
    folder = os.environ.get("GUIDANCE_EDU_FIGURES")
    if not folder or name is None:
        return
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    chapter = os.environ.get("GUIDANCE_EDU_CHAPTER", "")
    entry = {"name": name, "alt": alt, "title": title, "chapter": chapter}
    (target / f"{name}.png").write_bytes(png)
    (target / f"{name}.json").write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
