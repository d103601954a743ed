"""Every assignment: the solution gets all points, a blank none, each wrong answer loses some."""

import ast
import csv
import importlib
import os
import re

import nbformat
import pytest
import torch

from book import assignments
from book.__main__ import main
from tests.interruptions import busy, interrupted
from toy_models.practice import FAULTS, practice

NAMES = assignments.names()
BANKS = {
    name: importlib.import_module(f"tests.assignments.part_{number}")
    for number, name in enumerate(NAMES, 1)
}
WRONG = [
    (name, task, what, answer)
    for name, bank in BANKS.items()
    for task, answers in bank.WRONG.items()
    for what, answer in answers.items()
]
TASK = re.compile(r"t\d+-")
every_assignment = pytest.mark.parametrize("name", NAMES)


def mark(nb, submission=None):
    """Grade without a kernel."""
    return assignments.grade(nb, nb if submission is None else submission, assignments.in_process)


def cell(nb, key):
    return next(c for c in nb.cells if c.id == key)


def roles(nb):
    return {c.id: assignments.role(c) for c in nb.cells}


def test_each_part_of_the_book_has_one():
    assert [name[0] for name in NAMES] == ["1", "2", "3", "4", "5"]


@every_assignment
def test_the_solution_gets_full_marks(name):
    grades = mark(assignments.source(name))
    assert not [(m.cell, m.why) for m in grades.marks if m.why]
    assert grades.points == grades.most > 0 and not grades.changed
    assert [m.cell for m in grades.to_read] == [[*roles(assignments.source(name))][-1]]


@every_assignment
def test_the_solution_gets_full_marks_at_another_seed_and_in_another_world(name):
    other = BANKS[name].OTHER
    changed = assignments.source(name, other)
    first = ast.parse(cell(changed, assignments.PARAMETERS).source).body
    assert {line.targets[0].id for line in first} == {v.split(" = ")[0] for v in other}
    grades = mark(changed)
    assert not [(m.cell, m.why) for m in grades.marks if m.why]


@every_assignment
def test_a_blank_gets_nothing(name):
    nb = assignments.source(name)
    grades = mark(nb, assignments.student_version(nb))
    assert grades.points == 0 and grades.most == sum(m.most for m in grades.marks) == 20


@pytest.mark.parametrize(
    ("name", "task", "what", "answer"), WRONG, ids=[f"{n}-{t}-{w}" for n, t, w, _ in WRONG]
)
def test_a_wrong_answer_loses_points_in_its_task(name, task, what, answer):
    """What belongs to other tasks is left out, so that a task's tests stand on their own."""
    nb = assignments.source(name)
    nb.cells = [c for c in nb.cells if not TASK.match(c.id) or c.id.startswith(task)]
    wrong = nbformat.from_dict(nb)
    cell(wrong, f"{task}-answer").source = answer
    grades = mark(nb, wrong)
    assert grades.points < grades.most
    assert not [m.why for m in grades.marks if m.why.startswith(("NameError", "SyntaxError"))]


@every_assignment
def test_each_task_has_wrong_answers_and_stands_on_its_own(name):
    nb = assignments.source(name)
    tasks = sorted({c.id.removesuffix("-answer") for c in nb.cells if c.id.endswith("-answer")})
    assert tasks[:-1] == sorted(BANKS[name].WRONG), "the last one is the written question"
    assert all(len(answers) >= 3 for answers in BANKS[name].WRONG.values())
    for task in tasks[:-1]:
        alone = nbformat.from_dict(nb)
        alone.cells = [c for c in nb.cells if not TASK.match(c.id) or c.id.startswith(task)]
        assert not [m.why for m in mark(alone).marks if m.why], task


@every_assignment
def test_the_release_holds_no_solution_and_no_hidden_test(name):
    source = assignments.source(name)
    student = assignments.student_version(source)
    nbformat.validate(student)
    text = nbformat.writes(student)
    assert not re.search(r"SOLUTION|HIDDEN|For the teacher", text)
    secret = set()
    for c in source.cells:
        parts = re.findall(r"(?s)### BEGIN [A-Z ]+\n(.*?)### END", c.source)
        kind = assignments.role(c)
        parts += [c.source] if kind.solution and c.cell_type == "markdown" else []
        secret |= {line.strip() for part in parts for line in part.splitlines() if len(line) > 24}
    open_to_all = {line.strip() for c in student.cells for line in c.source.splitlines()}
    assert len(secret) > 30
    shared = secret & open_to_all  # the same line may stand in a visible test as well
    visible = {
        line.strip()
        for c in source.cells
        for line in assignments.HIDDEN.sub("", assignments.SOLUTION.sub("", c.source)).splitlines()
        if assignments.role(c).locked
    }
    assert shared <= visible
    for c in student.cells:
        kind = assignments.role(c)
        if kind.get("solution"):
            code = c.cell_type == "code"
            assert ("raise NotImplementedError()" in c.source) == code
            assert code or c.source == assignments.WRITTEN


@every_assignment
def test_metadata_are_what_nbgrader_reads(name):
    nb = assignments.source(name)
    nbformat.validate(nb)
    assert cell(nb, assignments.PARAMETERS).cell_type == "code"
    keys = [role.grade_id for role in roles(nb).values()]
    assert len(set(keys)) == len(keys)
    for c in nb.cells:
        role, code = assignments.role(c), c.cell_type == "code"
        assert role.grade_id == c.id and role.schema_version == 3 and role.task is False
        assert {"grade", "locked", "solution"} <= set(role)
        assert ("points" in role) == role.grade
        assert role.locked != role.solution, "what is given is locked, what is answered is not"
        assert role.grade <= (role.locked if code else role.solution)
        begins = [c.source.count(f"### BEGIN {w}") for w in ("SOLUTION", "HIDDEN TESTS")]
        ends = [c.source.count(f"### END {w}") for w in ("SOLUTION", "HIDDEN TESTS")]
        assert begins == ends == [int(role.solution and code), int(c.id.endswith("-more"))]
        assert not code or (c.outputs == [] and c.execution_count is None)


@every_assignment
def test_nbgrader_makes_the_same_student_version(name):
    pytest.importorskip("nbgrader")
    from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions

    nb = assignments.source(name)
    ours, theirs = assignments.student_version(nb), nbformat.from_dict(nb)
    for step in (ClearSolutions(), ClearHiddenTests()):
        theirs, _ = step.preprocess(theirs, {})
    assert [c.source for c in ours.cells] == [c.source for c in theirs.cells]


# The commands, on a small assignment


ANSWER = "### BEGIN SOLUTION\nvalue = KNOWN + 1\n### END SOLUTION"
TEST = (
    "assert value > KNOWN\n### BEGIN HIDDEN TESTS\nassert value == KNOWN + 1\n### END HIDDEN TESTS"
)


def made(key, text, points=0, kind="code", **role):
    role = {"grade": points > 0, "grade_id": key, "schema_version": 3, "task": False} | role
    role = {"locked": True, "solution": False} | role | ({"points": points} if points else {})
    new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
    return new(text, id=key, metadata={"nbgrader": role})


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with one small assignment, and a function that hands in changed copies."""
    nb = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "x"}})
    free = {"locked": False, "solution": True}
    nb.cells = [
        made("parameters", "SEED = 0  # any\nKNOWN = [1, 2][0]\nKNOWN = 1"),
        made("t1-answer", ANSWER, **free),
        made("t1-more", TEST, points=3),
        made("t2-answer", "What to look for.", points=2, kind="markdown", **free),
    ]
    path = tmp_path / "sources" / "1_small" / "1_small.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(nb, path)
    monkeypatch.setattr(assignments, "SOURCES", tmp_path / "sources")
    monkeypatch.setattr(assignments, "BUILD", tmp_path / "_build")

    def hand_in(change=lambda nb: None, name="1_small", student="ann"):
        student_nb = assignments.student_version(nb)
        change(student_nb)
        target = tmp_path / "in" / student / f"{name}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(student_nb, target)
        return target

    return hand_in


def answer(text, key="t1-answer"):
    def change(nb):
        cell(nb, key).source = text

    return change


def twin(nb):
    copy = nbformat.from_dict(nb.cells[2])
    copy["id"] = "twin"
    return copy


def grade_here(monkeypatch):
    monkeypatch.setattr(assignments, "in_kernel", assignments.in_process)


def test_a_submission_is_graded_in_a_kernel_of_its_own(small, capsys):
    assert main(["assignments", "grade", str(small(answer("value = 2\nprint(value)")))]) == 0
    said = capsys.readouterr().out
    assert "3 of 5 points so far" in said and "t2-answer          0 of 2" in said


def test_an_answer_that_fits_the_visible_test_alone_gets_nothing(small, monkeypatch, capsys):
    grade_here(monkeypatch)
    assert main(["assignments", "grade", str(small(answer("value = 9")))]) == 0
    assert "0 of 3  AssertionError" in capsys.readouterr().out


def test_typed_numbers_do_not_survive_another_world(small, monkeypatch, capsys):
    grade_here(monkeypatch)
    for text, points in (("value = 2", 0), ("value = KNOWN + 1", 3)):
        file = str(small(answer(text)))
        assert main(["assignments", "grade", file, "--set", "KNOWN=41"]) == 0
        assert f": {points} of" in capsys.readouterr().out


def test_changed_tests_are_put_back_and_said_so(small, monkeypatch, capsys):
    grade_here(monkeypatch)
    assert main(["assignments", "grade", str(small(answer("value = 9", "t1-more")))]) == 0
    said = capsys.readouterr().out
    assert "0 of 3" in said and "locked cells were changed and put back: t1-more" in said


def test_a_written_answer_is_left_to_be_read(small, monkeypatch, capsys, tmp_path):
    grade_here(monkeypatch)
    marks = tmp_path / "marks.csv"
    file = str(small(answer("Because.", "t2-answer")))
    assert main(["assignments", "grade", file, "--to", str(marks)]) == 0
    assert "t2-answer    to read of 2" in capsys.readouterr().out
    with marks.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["cell"], r["points"], r["most"]) for r in rows] == [
        ("t1-more", "0", "3"),
        ("t2-answer", "", "2"),
    ]


def test_cells_of_the_students_own_are_kept(small, monkeypatch, capsys):
    grade_here(monkeypatch)

    def change(nb):
        nb.nbformat_minor = 4
        for c in nb.cells:
            del c["id"]
        nb.cells.insert(1, nbformat.v4.new_code_cell("mine = 2"))
        nb.cells[1].pop("id")
        nb.cells[2].source = "value = mine"

    assert main(["assignments", "grade", str(small(change))]) == 0
    assert ": 3 of 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "name", "problem"),
    [
        (lambda nb: nb.cells.pop(2), "1_small", "lacks cells of the assignment: ['t1-more']"),
        (
            lambda nb: nb.cells.append(twin(nb)),
            "1_small",
            "repeats cells of the assignment",
        ),
        (lambda nb: None, "2_other", "no assignment '2_other'; there are: 1_small"),
    ],
)
def test_what_cannot_be_graded_is_named_and_stops_nothing(
    small, monkeypatch, capsys, change, name, problem
):
    grade_here(monkeypatch)
    bad, gone = str(small(change, name)), "nowhere/1_small.ipynb"
    good = str(small(answer("value = 2"), student="ben"))
    assert main(["assignments", "grade", bad, gone, good]) == 1
    said = capsys.readouterr()
    assert problem in said.err and f"{gone}: not graded: there is no such file" in said.err
    assert ": 3 of" in said.out


def test_what_a_submission_says_about_its_cells_earns_nothing(small, capsys):
    """Here in a kernel: it is the kernel's client that passes over cells with this tag."""

    def change(nb):
        nb.metadata["language_info"] = {"name": "none"}
        for c in nb.cells:
            c.metadata["tags"] = ["skip-execution", "figure"]
            c.metadata["nbgrader"]["points"] = 50
            if c.cell_type == "code":
                c.execution_count = 1
        nb.cells.append(made("bonus", "pass", points=90))

    assert main(["assignments", "grade", str(small(change))]) == 0
    said = capsys.readouterr().out
    assert ": 0 of 5 points so far" in said and "bonus" not in said
    assert "t1-more            0 of 3  NameError" in said


def test_a_test_that_did_not_run_earns_nothing(small):
    nb = assignments.source("1_small")
    grades = assignments.grade(nb, nb, run=lambda nb: {})
    assert grades.points == 0 and grades.marks[0].why == "did not run"


STUBBORN = """\
import time{ignored}
while True:
    try:
        time.sleep(1)
    except BaseException:
        pass
"""


@pytest.mark.parametrize(
    "ignored", ["", "\nimport signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"]
)
def test_a_cell_that_does_not_end_stops_one_submission_alone(small, monkeypatch, capsys, ignored):
    monkeypatch.setattr(assignments, "CELL_SECONDS", 1)
    monkeypatch.setattr(assignments, "PATIENCE", 1)
    bad = str(small(answer(STUBBORN.format(ignored=ignored))))
    good = str(small(answer("value = 2"), student="ben"))
    assert main(["assignments", "grade", bad, good]) == 1
    said = capsys.readouterr()
    assert said.err == f"{bad}: not graded: cell t1-answer does not end\n"
    assert f"{good}: 3 of 5" in said.out


def test_a_submission_has_an_end_of_its_own(small, monkeypatch, capsys):
    monkeypatch.setattr(assignments, "SUBMISSION_SECONDS", 2)
    assert main(["assignments", "grade", str(small(answer(STUBBORN.format(ignored=""))))]) == 1
    says = "not graded: cell t1-answer does not end, and the submission has had its 2 s"
    assert says in capsys.readouterr().err


def test_a_late_cell_is_interrupted_and_the_next_ones_run(small, monkeypatch, capsys):
    monkeypatch.setattr(assignments, "CELL_SECONDS", 1)
    late = "import time\nclass Slow:\n    def __gt__(self, other):\n        time.sleep(60)\n"
    assert main(["assignments", "grade", str(small(answer(f"{late}value = Slow()")))]) == 0
    assert "t1-more            0 of 3  no end after 1 s" in capsys.readouterr().out


def test_an_interruption_stops_the_grading_and_keeps_the_marks(small, tmp_path):
    pid, marks = tmp_path / "pid", tmp_path / "marks.csv"
    files = [
        str(small(answer("value = 2"))),
        str(small(answer(busy(pid)), student="ben")),
        str(small(student="cas")),
    ]
    script = (
        "import pathlib, sys\n"
        "from book import assignments\n"
        f"assignments.SOURCES = pathlib.Path({str(tmp_path / 'sources')!r})\n"
        "from book.__main__ import main\n"
        f"sys.exit(main(['assignments', 'grade', *{files!r}, '--to', {str(marks)!r}]))\n"
    )
    status, out, err = interrupted(script, pid)
    assert (status, err) == (130, "python -m book assignments: interrupted\n")
    assert files[0] in out and files[2] not in out
    with marks.open(newline="", encoding="utf-8") as stream:
        assert {row["file"] for row in csv.DictReader(stream)} == {files[0]}


def test_what_was_not_graded_has_a_row_that_says_so(small, monkeypatch, tmp_path, capsys):
    def silent(nb):
        raise RuntimeError

    monkeypatch.setattr(assignments, "in_kernel", silent)
    marks, file = tmp_path / "marks.csv", str(small())
    assert main(["assignments", "grade", file, "--to", str(marks)]) == 1
    assert capsys.readouterr().err == f"{file}: not graded: RuntimeError\n"
    with marks.open(newline="", encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    assert row == {
        "file": file,
        "cell": "",
        "points": "",
        "most": "",
        "why": "not graded: RuntimeError",
    }


def test_where_the_marks_go_is_checked_before_anything_is_graded(
    small, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(assignments, "in_kernel", lambda nb: pytest.fail("graded"))
    file = str(small())
    for to, problem in (
        (tmp_path / "nope" / "marks.csv", f"there is no folder {tmp_path / 'nope'}"),
        (tmp_path, f"expected a CSV file for the marks, got the folder {tmp_path}"),
    ):
        assert main(["assignments", "grade", file, "--to", str(to)]) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_file_for_the_marks_that_cannot_be_written_is_named(small, tmp_path, capsys):
    marks = tmp_path / "marks.csv"
    marks.touch(mode=0o400)
    assert main(["assignments", "grade", str(small()), "--to", str(marks)]) == 2
    assert f"{marks} cannot be written" in capsys.readouterr().err


def test_values_that_the_solution_cannot_pass_mark_nobody_down(small, monkeypatch, capsys):
    grade_here(monkeypatch)
    file = str(small(answer("value = KNOWN + 1")))
    assert main(["assignments", "grade", file, "--set", "KNOWN='a'"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "t1-more: NameError" in said.err
    assert "with KNOWN='a' the book's own solution of 1_small does not get full marks" in said.err


def test_a_release_cannot_go_to_a_file(small, tmp_path, capsys):
    file = tmp_path / "README.md"
    file.write_text("mine")
    for to in (file, file / "deeper"):
        assert main(["assignments", "release", "--to", str(to)]) == 2
        assert f"expected a folder to write to, got the file {file}" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_a_release_replaces_nothing_that_differs(small, tmp_path, capsys):
    assert main(["assignments", "release"]) == 0
    target = tmp_path / "_build" / "assignments" / "1_small" / "1_small.ipynb"
    assert "SOLUTION" not in target.read_text() and main(["assignments", "release", "1"]) == 0
    work = target.read_text().replace("YOUR CODE HERE", "my work")
    target.write_text(work)
    assert main(["assignments", "release"]) == 2
    assert "is there and differs" in capsys.readouterr().err and target.read_text() == work
    assert main(["assignments", "release", "--to", str(tmp_path / "sources")]) == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["release", "9"], "no assignment begins with '9'"),
        (["release", "--set", "WORLD=1"], "no parameter 'WORLD'; there are: SEED, KNOWN"),
        (["release", "--set", "SEED=two"], "expected a plain Python value after '='"),
        (["grade"], "expected the notebooks to grade"),
    ],
)
def test_wrong_arguments_are_clear_errors(small, arguments, problem, capsys):
    assert main(["assignments", *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_values_are_set_where_the_parameters_stand(small):
    nb = assignments.source("1_small", ["SEED=7", "KNOWN = [3]"])
    assert cell(nb, "parameters").source.splitlines() == [
        "SEED = 7  # any",
        "KNOWN = [1, 2][0]",
        "KNOWN = [3]",
    ]


# The models of the last assignment


def test_a_seed_draws_one_case_and_every_fault_in_one_world():
    assert {practice(seed).fault for seed in range(40)} == set(FAULTS)
    cases = [practice(3, fault) for fault in FAULTS]
    means = [case.world.marginal.means for case in cases]
    assert all(m.equal(means[0]) for m in means)
    clean, labels = cases[0].draw(50, torch.Generator().manual_seed(0))
    again = practice(3, FAULTS[0]).draw(50, torch.Generator().manual_seed(0))
    assert clean.equal(again[0]) and labels.equal(again[1])
    for case in cases:
        wrong = (case.model(clean, 0.3, labels) - case.world(clean, 0.3, labels)).abs().max()
        assert (float(wrong) < 1e-12) == (case.fault == "none")
        for negative in case.negatives.values():
            assert negative(clean, 0.3, labels).shape == clean.shape


def test_an_unknown_fault_is_a_clear_error():
    with pytest.raises(ValueError, match="unknown fault 'tired'"):
        practice(0, "tired")
