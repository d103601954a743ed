"""Figures: small palette images with a text that says what is seen, in one style."""

from __future__ import annotations

import base64
import io
import json

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from guidance_edu import figures
from guidance_edu.figures import (
    FAILURE,
    GUIDED,
    MAX_BYTES,
    NEGATIVE,
    PAPER,
    POSITIVE,
    TRUTH,
    figure,
    panel,
    show,
)

ALT = "Two curves cross once: the blue one falls, the orange one rises."


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Draw without a window, into a style and a folder of the test's own."""
    for name in ("FIGURES", "CHAPTER"):
        monkeypatch.delenv(f"GUIDANCE_EDU_{name}", raising=False)
    plt.switch_backend("agg")
    with mpl.rc_context():
        yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """What was displayed."""
    data = []
    monkeypatch.setattr(figures, "display", lambda content, raw: data.append(content))
    return data


def curves():
    fig, ax = figure()
    t = np.linspace(0, 1, 50)
    ax.plot(t, 1 - t, label="positive")
    ax.plot(t, t**2, label="negative")
    ax.set_title("They cross once")
    return fig, ax


def image(content):
    return Image.open(io.BytesIO(base64.b64decode(content["image/png"])))


# Showing


def test_a_figure_is_shown_as_a_small_palette_image_with_its_text(shown):
    fig, _ = curves()
    show(fig, ALT)
    (content,) = shown
    assert content["text/plain"] == f"Figure: {ALT}"
    assert len(base64.b64decode(content["image/png"])) < 50_000 < MAX_BYTES == 150_000
    picture = image(content)
    assert (picture.format, picture.mode) == ("PNG", "P")
    assert picture.size == (8 * 144, int(3.2 * 144))


def test_the_fixed_colours_survive_the_palette(shown):
    fig, ax = figure()
    colours = [TRUTH, POSITIVE, NEGATIVE, GUIDED, FAILURE]
    for i, colour in enumerate(colours):
        ax.axhspan(i, i + 1, color=colour)
    show(fig, ALT)
    pixels = np.unique(np.array(image(shown[0]).convert("RGB")).reshape(-1, 3), axis=0)
    for colour in [*colours, PAPER]:
        wanted = np.array(to_rgb(colour)) * 255
        assert np.abs(pixels - wanted).max(1).min() < 3, colour


def test_the_same_figure_gives_the_same_bytes(shown):
    for _ in range(2):
        show(curves()[0], ALT)
    assert shown[0] == shown[1]


def test_a_figure_that_was_shown_is_closed(shown):
    show(curves()[0], ALT)
    assert not plt.get_fignums()


@pytest.mark.parametrize("alt", ["", "   ", "Figure 1", "one two three four five six seven"])
def test_a_text_that_says_too_little_is_refused(shown, alt, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_FIGURES", str(tmp_path))
    with pytest.raises(ValueError, match="expected alt text that says what is seen, got"):
        show(curves()[0], alt, name="ch02_x")
    assert not shown and not list(tmp_path.iterdir())


def test_a_text_cannot_be_left_out():
    with pytest.raises(TypeError, match="alt"):
        show(curves()[0])


def test_an_image_that_is_too_large_is_refused(shown, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_FIGURES", str(tmp_path))
    fig, ax = figure()
    ax.imshow(np.random.default_rng(0).random((400, 1000, 3)), aspect="auto")
    with pytest.raises(ValueError, match="expected a PNG of at most 150000 bytes, got [0-9]{6}"):
        show(fig, ALT, name="ch02_x")
    assert not shown and not list(tmp_path.iterdir()) and not plt.get_fignums()


def test_a_poster_may_weigh_more(shown):
    fig, ax = figure(width=8, height=3)
    ax.imshow(np.random.default_rng(0).random((150, 600, 3)), aspect="auto")
    show(fig, ALT, poster=True)
    assert MAX_BYTES < len(base64.b64decode(shown[0]["image/png"])) < 500_000


# Publishing


def test_a_named_figure_is_published_with_what_an_index_needs(shown, tmp_path, monkeypatch):
    folder = tmp_path / "new" / "figures"
    monkeypatch.setenv("GUIDANCE_EDU_FIGURES", str(folder))
    monkeypatch.setenv("GUIDANCE_EDU_CHAPTER", "02_x")
    show(curves()[0], ALT, name="ch02_cross")
    assert sorted(path.name for path in folder.iterdir()) == ["ch02_cross.json", "ch02_cross.png"]
    published = (folder / "ch02_cross.png").read_bytes()
    assert published == base64.b64decode(shown[0]["image/png"])
    assert json.loads((folder / "ch02_cross.json").read_text(encoding="utf-8")) == {
        "name": "ch02_cross",
        "alt": ALT,
        "title": "They cross once",
        "chapter": "02_x",
    }


def test_the_title_of_the_whole_figure_comes_before_that_of_a_panel(shown, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_FIGURES", str(tmp_path))
    fig, axes = figure(columns=2)
    axes[1].set_title("A panel")
    show(fig, ALT, name="panel")
    fig, axes = figure(columns=2)
    axes[1].set_title("A panel")
    fig.suptitle("All of it")
    show(fig, ALT, name="whole")
    show(figure()[0], ALT, name="none")
    titles = {p.stem: json.loads(p.read_text())["title"] for p in tmp_path.glob("*.json")}
    assert titles == {"panel": "A panel", "whole": "All of it", "none": ""}


def test_without_a_name_or_a_folder_nothing_is_published(shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    show(curves()[0], ALT, name="ch02_cross")
    monkeypatch.setenv("GUIDANCE_EDU_FIGURES", str(tmp_path))
    show(curves()[0], ALT)
    assert len(shown) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x.png", "a b"])
def test_a_name_that_is_not_plain_is_refused(name, shown):
    with pytest.raises(ValueError, match="expected a plain file name for a figure, got"):
        show(curves()[0], ALT, name=name)
    assert not shown


# Style


def test_the_style_reaches_what_is_drawn_later():
    _, ax = curves()
    first, second = ax.lines
    assert (first.get_color(), second.get_color()) == (POSITIVE, NEGATIVE)
    assert first.get_linewidth() == 1.8
    assert ax.get_title("left") == "They cross once"
    assert not ax.legend().get_frame_on()
    assert not ax.spines["top"].get_visible()


def test_colours_with_a_meaning_are_told_apart_by_lightness_or_hue():
    colours = [np.array(to_rgb(c)) for c in (TRUTH, POSITIVE, NEGATIVE, GUIDED, FAILURE)]
    for i, a in enumerate(colours):
        for b in colours[:i]:
            assert np.linalg.norm(a - b) > 0.3


def test_figure_has_the_panels_and_the_size_that_were_asked_for():
    fig, axes = figure(columns=3, rows=2, width=9.0, height=3.0, sharex=True)
    assert axes.shape == (2, 3) and tuple(fig.get_size_inches()) == (9.0, 6.0)


def test_a_panel_is_a_picture_of_the_plane():
    _, ax = figure()
    panel(ax, (-1.0, 2.0, -3.0, 4.0))
    assert ax.get_aspect() == 1 and (ax.get_xlim(), ax.get_ylim()) == ((-1, 2), (-3, 4))
    assert not ax.get_xticks().size and not any(s.get_visible() for s in ax.spines.values())


def test_photographs_lie_in_rows_under_their_names():
    pixels = (torch.arange(6 * 4 * 5 * 3) % 251).byte().reshape(6, 4, 5, 3)
    fig, ax = figures.figure()
    figures.photographs(ax, pixels, columns=3, names=["a", "b", "c"])
    shown = ax.images[0].get_array()
    assert shown.shape == (2 * 6, 3 * 7, 3)
    assert (shown[7:11, 15:20] == pixels[5].numpy()).all() and (shown[6] == 255).all()
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]
    for wrong in ({"columns": 4}, {"columns": 3, "names": ["a"]}):
        with pytest.raises(ValueError, match="expected rows of"):
            figures.photographs(ax, pixels, **wrong)
