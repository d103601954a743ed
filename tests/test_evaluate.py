"""The command that measures one method on the 64x64 models."""

import numpy as np
import pytest
import torch

from toy_models import __main__ as commands
from toy_models import evaluate
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
    assert main(["evaluate", "pag", "--w", "1.25", "--png", str(path)]) == 0
    assert capsys.readouterr().out.startswith("pag w = 1.25: FD ")
    assert asked["denoiser"].terms[0].w == 1.25
    assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["pga"], "unknown method 'pga'; expected one of: cfg"), (["cfg", "--w", "nan"], "finite")],
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
    assert said == ("none w = 1: FD 1.0\n", "error: the disk is full\n")


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
