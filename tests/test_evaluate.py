"""The command that measures one method on the 64x64 models."""

import math

import numpy as np
import pytest
import torch

from toy_models import __main__ as commands
from toy_models import evaluate, side_by_side
from toy_models.__main__ import main


def test_images_stand_in_rows_from_left_to_right():
    x = torch.linspace(-1, 1, 20)[:, None, None, None].expand(20, 3, 4, 5)
    picture = np.asarray(evaluate.sheet(x))
    assert picture.shape == (8, 50, 3)
    assert picture[0, 0, 0] == 0 and picture[-1, -1, 0] == 255
    assert (np.diff(picture[0, ::5, 0].astype(int)) > 0).all()
    with pytest.raises(ValueError, match="multiple of 10 images, got 7"):
        evaluate.sheet(x[:7])


def noise(n):
    x = torch.randn(50, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 4
    return x.repeat(6, 1, 1, 1)[:n]


def test_a_method_is_measured_and_its_first_images_are_written(monkeypatch, tmp_path, capsys):
    asked = {}

    def few(denoiser, n):
        asked["denoiser"] = denoiser
        return noise(n)

    monkeypatch.setattr(evaluate, "drawn", few)
    path = tmp_path / "new" / "pag.png"
    assert main(["evaluate", "pag", "--w", "1.75", "--png", str(path)]) == 0
    assert capsys.readouterr().out.startswith("pag --layers dec.16.0 --w 1.75: FD ")
    assert asked["denoiser"].terms[0].w == 1.75
    assert path.stat().st_size > 1000


def asked_for(monkeypatch, *arguments):
    """Return the method and the setting that a command line asks for, and nothing else of it."""
    found = []
    monkeypatch.setattr(evaluate, "denoiser", lambda name, **setting: found.append((name, setting)))
    monkeypatch.setattr(evaluate, "drawn", lambda denoiser, n: noise(n))
    monkeypatch.setattr(evaluate, "measure", lambda *a: "FD 1.0")
    assert main(["evaluate", *arguments]) == 0
    return found[0]


@pytest.mark.parametrize("name", side_by_side.METHODS)
def test_every_method_of_chapter_12_is_there_at_the_setting_it_chose(name, monkeypatch, capsys):
    word = evaluate.word(name)
    assert asked_for(monkeypatch, word) == (name, side_by_side.chosen(name))
    printed = capsys.readouterr().out.split(":")[0]
    again = asked_for(monkeypatch, *printed.split())[1]  # what is printed can be typed
    assert {key: str(value) for key, value in again.items()} == {
        key: str(value) for key, value in side_by_side.chosen(name).items()
    }


def test_an_option_changes_that_part_of_the_setting_alone(monkeypatch):
    for word, name, typed, changed in (
        ("pag", "PAG", "--layers mid.8 dec.8.0", {"layers": "mid.8 dec.8.0"}),
        ("sag", "SAG", "--layers dec.16.0 --blur 3", {"layer": "dec.16.0", "blur": 3.0}),
        ("seg", "SEG", "--blur inf --w 2", {"sigma": math.inf, "w": 2.0}),
        ("tsg", "TSG", "--size 0.2", {"size": 0.2}),
    ):
        found = asked_for(monkeypatch, word, *typed.split())
        assert found == (name, side_by_side.chosen(name) | changed)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pga"], "unknown method 'pga'; expected one of: none, cfg, cfg-two-models, icg, "),
        (["cfg", "--w", "nan"], "finite"),
        (["tsg", "--blur", "1"], "tsg has no --blur; its options: --size, --w"),
        (["none", "--w", "2"], "none has no --w; its options: none"),
        (["seg", "--blur", "-1"], "expected sigma above 0, got -1.0"),
        (["pag", "--layers", "mid"], "layer 'mid' not found; this network has: enc.16.0"),
    ],
)
def test_wrong_input_is_named(arguments, says, capsys):
    assert main(["evaluate", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_where_the_images_go_is_checked_before_any_is_drawn(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(evaluate, "drawn", lambda *a: pytest.fail("drawn"))
    file = tmp_path / "file"
    file.touch()
    for path, says in (
        (tmp_path, f"expected a file for the images, got the folder {tmp_path}"),
        (file / "a" / "b.png", f"b.png cannot be written: {file} is a file"),
    ):
        assert main(["evaluate", "none", "--png", str(path)]) == 2
        assert says in capsys.readouterr().err


def test_what_was_measured_is_printed_also_where_the_images_cannot_be_written(
    monkeypatch, tmp_path, capsys
):
    def full(files):
        raise OSError("the disk is full")

    monkeypatch.setattr(evaluate, "drawn", lambda denoiser, n: noise(n))
    monkeypatch.setattr(evaluate, "cached", lambda name: None)
    monkeypatch.setattr(evaluate, "measure", lambda *a: "FD 1.0")
    monkeypatch.setattr(evaluate, "write_whole", full)
    assert main(["evaluate", "none", "--png", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr()
    assert said == ("none: FD 1.0\n", "error: the disk is full\n")


@pytest.mark.parametrize("arguments", [["evaluate", "none"], ["train", "tree-main"]])
def test_a_device_that_is_not_there_is_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setenv("GUIDANCE_EDU_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: GUIDANCE_EDU_DEVICE=cuda, but") and said.count("\n") == 1


def test_an_interruption_is_one_line(monkeypatch, capsys):
    def stop(name, options):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_train", stop)
    assert main(["train", "tree-main"]) == 130
    assert capsys.readouterr().err == "python -m toy_models train: interrupted\n"


@pytest.mark.parametrize("names", [["all", "nope"], ["tree-main", "all"]])
def test_all_stands_alone(names, monkeypatch, capsys):
    monkeypatch.setattr(commands, "_train", lambda *a: pytest.fail("trained"))
    assert main(["train", *names]) == 2
    says = f"error: expected 'all' alone or names of recipes, got {' '.join(names)}\n"
    assert capsys.readouterr().err == says
