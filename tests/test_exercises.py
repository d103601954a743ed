"""Every exercise: the solution passes, each common wrong answer fails with its hint."""

import importlib
from pathlib import Path

import pytest

from guidance_edu.exercises import CHECKS, check
from guidance_edu.exercises.check import verdict
from tests.notebooks import CHAPTERS, cells, source, tags

BANKS = {
    path.stem: importlib.import_module(f"tests.exercises.{path.stem}")
    for path in sorted((Path(__file__).parent / "exercises").glob("chapter_*.py"))
}
RIGHT = [(n, a) for bank in BANKS.values() for n, a in bank.RIGHT.items()]
WRONG = [
    (n, i, a, hint)
    for bank in BANKS.values()
    for n, answers in bank.WRONG.items()
    for i, (a, hint) in enumerate(answers)
]


@pytest.mark.parametrize(("number", "answer"), RIGHT, ids=[n for n, _ in RIGHT])
def test_a_solution_passes(number, answer):
    assert verdict(number, answer) == "passed"


@pytest.mark.parametrize(
    ("number", "i", "answer", "hint"), WRONG, ids=[f"{n}-{i}" for n, i, _, _ in WRONG]
)
def test_a_wrong_answer_gets_its_hint(number, i, answer, hint):
    said = verdict(number, answer)
    assert said not in {"passed", "not attempted yet"}
    assert hint in said


def test_every_registered_exercise_has_a_bank_and_stands_in_its_chapter():
    for path in CHAPTERS:
        text = "\n".join(source(c) for c in cells(path))
        for number in [n for n in CHECKS if int(n.split(".")[0]) == int(path.stem[:2])]:
            assert text.count(f'check("{number}"') == 2, f"{number}: a stub and a solution"
    assert set(CHECKS) == {n for n, _ in RIGHT} == {n for n, _, _, _ in WRONG}
    assert all(sum(n == m for m, _, _, _ in WRONG) >= 2 for n in CHECKS)


def test_every_exercise_has_a_stub_and_a_folded_solution():
    for path in CHAPTERS:
        kinds = [tag for c in cells(path) for tag in tags(c)]
        assert kinds.count("exercise") == kinds.count("solution")
        for cell in [c for c in cells(path) if "solution" in tags(c)]:
            assert cell["metadata"]["jupyter"]["source_hidden"], "JupyterLab folds it by this"


@pytest.mark.parametrize(("number", "answer"), RIGHT, ids=[n for n, _ in RIGHT])
def test_an_open_exercise_is_not_an_error(number, answer, capsys):
    def stub(*arguments):
        raise NotImplementedError

    check(number, stub if callable(answer) else None)
    assert capsys.readouterr().out == f"exercise {number}: not attempted yet\n"


def test_an_answer_that_crashes_is_reported_not_raised():
    def crash(*arguments):
        return 1 / 0

    numbers = [n for n, a in RIGHT if callable(a)]
    assert all("ZeroDivisionError" in verdict(number, crash) for number in numbers)


@pytest.mark.parametrize("number", ["99.1", "1.99", "one", "1"])
def test_an_unknown_exercise_is_a_clear_error(number):
    with pytest.raises(KeyError, match="unknown exercise"):
        verdict(number, None)
