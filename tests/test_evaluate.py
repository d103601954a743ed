"""The command that measures one method on the 64x64 models."""

import numpy as np
import pytest
import torch

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


def test_a_method_is_measured_and_its_first_images_are_written(monkeypatch, tmp_path, capsys):
    asked = {}

    def few(denoiser, n):
        asked["denoiser"] = denoiser
        x = torch.randn(50, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 4
        return x.repeat(6, 1, 1, 1)[:n]

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
