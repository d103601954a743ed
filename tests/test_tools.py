"""The book's own commands, on notebooks made for the purpose."""

import inspect
import json
import math
import struct
import zlib

import nbformat
import pytest

import book
from book import (
    bench,
    execute,
    html,
    ledger,
    library,
    mutations,
    prose,
    references,
    refresh,
    seeds,
    source,
)
from book.__main__ import main
from tests.interruptions import busy, interrupted

CLAIM = """\
claim("2.1 three is three", measured=value, expected=3.0, tol=0.5, breaks="1 + 2 => 1 + 5")"""
# The real claim without the rest of the library: a kernel that imports torch takes seconds.
IMPORT = (
    f"import runpy\nclaim = runpy.run_path({str(book.ROOT / 'guidance_edu/claims.py')!r})['claim']"
)
CHAPTER = [
    ("markdown", "# 2. A finding\n\nIt is 3.0 (claim 2.1)."),
    ("code", IMPORT),
    ("code", "value = 1 + 2"),
    ("code", CLAIM, "claims"),
    ("code", "print('after')"),
]


def png(width=2):
    """Return a palette image of one colour."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 8, 3, 0, 0, 0))
    rest = chunk(b"PLTE", b"\xff\xff\xff") + chunk(b"IDAT", zlib.compress(bytes(width + 1)))
    return b"\x89PNG\r\n\x1a\n" + head + rest + chunk(b"IEND", b"")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Move the book's folders into a temporary one."""
    for module in (book, ledger, seeds, mutations, html, refresh):
        for name in ("CHAPTERS", "FIGURES", "BUILD"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / name.lower())
    folder = tmp_path / "chapters"
    folder.mkdir()
    for module in (ledger, seeds, mutations, html, refresh):
        monkeypatch.setattr(module, "chapters", lambda f=folder, only="": book.chapters(f, only))
    (folder / "references.bib").write_text(
        "@article{a2020, author={Alpha, Ann}, title={One}, journal={J}, year={2020}}"
    )
    return tmp_path


def put(home, notebook, cells, stem="02_x"):
    path = notebook(stem, cells)
    return path.rename(home / "chapters" / path.name)


# Executing


def test_executing_normalises_and_repeats_to_the_byte(notebook, tmp_path):
    cells = [
        ("code", "import sys\nprint('a')\nsys.stdout.flush()\nprint('b', end='')"),
        ("code", "print('c')\nraise ValueError('meant')", "raises-exception"),
        ("code", "import os\nprint(os.environ['GUIDANCE_EDU_PROGRESS'])"),
    ]
    path = notebook("02_x", cells)
    seconds = execute.execute(path, tmp_path / "out" / "02_x.ipynb")
    assert seconds > 0
    nb = source.read(tmp_path / "out" / "02_x.ipynb")
    assert [c.execution_count for c in nb.cells] == [1, 2, 3]
    assert [c.id for c in nb.cells] == ["cell-0", "cell-1", "cell-2"]
    assert nb.metadata == execute.METADATA
    assert nb.cells[0].outputs[0].text == "a\nb" and len(nb.cells[0].outputs) == 1
    assert nb.cells[1].outputs[1].traceback == ["ValueError: meant"]
    assert nb.cells[2].outputs[0].text == "0\n"
    execute.execute(tmp_path / "out" / "02_x.ipynb", tmp_path / "again" / "02_x.ipynb")
    first, second = (tmp_path / d / "02_x.ipynb" for d in ("out", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_failing_cell_is_named_and_leaves_the_stored_notebook_unchanged(home, notebook, capsys):
    path = put(home, notebook, [("code", "1"), ("code", "print('x')\n1 / 0")])
    before = path.read_bytes()
    assert refresh.main() == 1
    said = capsys.readouterr()
    assert "02_x, code cell 2 (id cell-1): ZeroDivisionError: division by zero" in said.err
    assert "nothing was stored" in said.out
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()].count(path.name) == 1
    assert not list(home.rglob("*.part"))


def test_the_callers_ledger_and_claim_mode_do_not_reach_the_kernels(
    notebook, tmp_path, monkeypatch
):
    for name in execute.CONTROLS:
        monkeypatch.setenv(name, "leaked")
    path = notebook("02_x", [("code", "import os\nprint(sorted(os.environ.items()))")])
    execute.execute(path, tmp_path / "out" / "02_x.ipynb")
    shown = source.read(tmp_path / "out" / "02_x.ipynb").cells[0].outputs[0].text
    assert "leaked" not in shown
    assert "('GUIDANCE_EDU_CHAPTER', '02_x')" in shown


def test_an_error_outside_the_cells_stops_one_chapter_alone(notebook, tmp_path, capsys):
    good = notebook("03_x", [("code", "1")])
    bad = tmp_path / "02_x.ipynb"
    bad.write_text("no notebook")
    runs = [execute.Run(p, tmp_path / "out" / p.name) for p in (bad, good)]
    seconds, failures = execute.execute_all(runs, jobs=1)
    assert list(seconds) == [runs[1].target] and list(failures) == [runs[0].target]
    execute.report(failures)
    assert "FAILED 02_x: NotJSONError" in capsys.readouterr().err


def test_an_interruption_stops_the_kernels_and_says_so_in_one_line(home, notebook):
    pid = home / "pid"
    put(home, notebook, [("code", busy(pid))])
    script = (
        "import pathlib, sys, book\n"
        f"home = pathlib.Path({str(home)!r})\n"
        "book.CHAPTERS, book.BUILD = home / 'chapters', home / 'build'\n"
        "from book import ledger\n"
        "ledger.chapters = lambda only='': book.chapters(home / 'chapters', only)\n"
        "from book.__main__ import main\n"
        "sys.exit(main(['claims']))\n"
    )
    assert interrupted(script, pid) == (130, "", "python -m book claims: interrupted\n")


# Storing


def test_what_is_stored_has_the_books_seeds_and_comes_from_the_cpu(home, notebook, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_SEED", "7")
    monkeypatch.setenv("GUIDANCE_EDU_DEVICE", "cuda")
    names = "GUIDANCE_EDU_SEED", "GUIDANCE_EDU_DEVICE"
    path = put(home, notebook, [("code", f"import os\nprint(*map(os.environ.get, {names}))")])
    assert refresh.main() == 0
    assert source.read(path).cells[0].outputs[0].text == "0 cpu\n"


def test_notebooks_are_stored_before_figures(home, notebook, monkeypatch):
    path = put(home, notebook, [("code", "print('new')")])

    def interrupted(*_):
        assert source.read(path).cells[0].outputs[0].text == "new\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(refresh, "store_figures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        refresh.main()


def test_a_figure_name_used_twice_is_refused_before_anything_is_stored(home, notebook):
    write = (
        "import json, os, pathlib\n"
        "folder = pathlib.Path(os.environ['GUIDANCE_EDU_FIGURES'])\n"
        "text = json.dumps({'name': 'ch02_x', 'alt': 'x', 'chapter': '02_x'})\n"
        "done = [(folder / f'{i}.json').write_text(text) for i in range(2)]\n"
    )
    path = put(home, notebook, [("code", write)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="used twice: ch02_x"):
        refresh.main()
    assert path.read_bytes() == before and not (home / "figures").exists()


def test_chapters_are_stored_with_their_figures_and_references(home, notebook, capsys):
    write = (
        "import json, os, pathlib\n"
        "folder = pathlib.Path(os.environ['GUIDANCE_EDU_FIGURES'])\n"
        f"(folder / 'ch02_x.png').write_bytes({png()!r})\n"
        "entry = {'name': 'ch02_x', 'alt': 'One white line', 'chapter': '02_x'}\n"
        "done = (folder / 'ch02_x.json').write_text(json.dumps(entry))\n"
    )
    path = put(home, notebook, [("code", write)])
    figures = home / "figures"
    figures.mkdir()
    (figures / "ch01_gone.png").write_bytes(png())
    (figures / "index.json").write_text(
        json.dumps([{"name": "ch01_gone", "alt": "x", "chapter": "01_gone"}])
    )
    assert refresh.main() == 0
    assert source.read(path).cells[0].execution_count == 1
    assert sorted(p.name for p in figures.iterdir()) == ["README.md", "ch02_x.png", "index.json"]
    assert "![One white line](ch02_x.png)" in (figures / "README.md").read_text()
    assert 'id="a2020"' in (home / "chapters" / "references.md").read_text()
    assert "stored 1 chapters and 1 figures" in capsys.readouterr().out


# The ledger


def entry(number="2.1", measured=3.0, low=2.5, high=3.5, chapter="02_x"):
    return {
        "chapter": chapter,
        "id": number,
        "statement": "s",
        "measured": measured,
        "relation": "expected 3 +- 0.5",
        "expected": 3.0,
        "tolerance": 0.5,
        "low": low,
        "high": high,
        "margin": 1.0,
        "holds": (low is None or low <= measured) and (high is None or measured <= high),
        "seconds": 0.1,
        "breaks": "a => b",
    }


@pytest.mark.parametrize(("answers", "tries"), [(False, 2), (True, 1)])
def test_a_kernel_that_never_answered_is_started_once_more(notebook, monkeypatch, answers, tries):
    calls = []

    def dies(source, target, env, each_cell, started):
        calls.append(source)
        if answers:
            started(None)
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(execute, "execute", dies)
    path = notebook("02_x", CHAPTER)
    _, failures = execute.execute_all([execute.Run(path, path.with_name("out.ipynb"))], 1)
    assert len(calls) == tries and len(failures) == 1


def test_the_ledger_is_printed_and_written(home, notebook, capsys):
    put(home, notebook, CHAPTER)
    assert ledger.main() == 0
    said = capsys.readouterr().out
    assert "three is three" in said and "1 claims, all hold" in said
    assert "broken by  1 + 2 => 1 + 5" in said
    (stored,) = json.loads((home / "build" / "claims.json").read_text())
    assert (stored["id"], stored["measured"], stored["chapter"]) == ("2.1", 3.0, "02_x")


def test_the_ledger_command_fails_with_a_claim_and_still_prints_the_others(home, notebook, capsys):
    second = CLAIM.replace("2.1", "2.2").replace("value", "value + 1")
    put(home, notebook, [*CHAPTER[:3], ("code", second), ("code", CLAIM)])
    assert ledger.main() == 1
    said = capsys.readouterr().out
    assert "2 claims, FAILED: 2.2" in said


def test_claims_are_ordered_by_their_numbers():
    names = ["2.10", "2.9", "10.1"]
    assert sorted(names, key=lambda n: ledger.order({"id": n})) == ["2.9", "2.10", "10.1"]


def test_what_is_written_is_json_that_every_reader_takes(tmp_path):
    data = [{"margin": math.inf, "measured": {1: math.nan, 2: 0.5}, "spread": (-math.inf, 1)}]
    ledger.save(data, tmp_path / "x.json")

    def refuse(word):
        raise AssertionError(word)

    stored = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert stored == [{"margin": None, "measured": {"1": None, "2": 0.5}, "spread": [None, 1]}]


def test_the_distance_to_the_nearest_bound():
    assert ledger.distance(entry(measured=3.1)) == pytest.approx(0.4)
    assert ledger.distance(entry(measured=1.0, low=None, high=1.5)) == pytest.approx(0.5)
    assert ledger.distance(entry(measured=2.0, low=2.5, high=None)) == pytest.approx(-0.5)


# Seeds


def test_the_seeds_table_has_spread_margin_and_failures():
    measured = {1000: 3.0, 2000: 3.1, 3000: 2.9}
    rows = seeds.summarise({s: [entry(measured=m)] for s, m in measured.items()})
    (row,) = rows
    assert row["measured"] == measured
    assert row["spread"] == pytest.approx(0.1)
    assert row["margin"] == pytest.approx(4.0)
    assert row["failed"] == []
    assert "seed 2000" in seeds.show(rows, list(measured))


def test_a_seed_that_fails_or_never_reaches_a_claim_is_named():
    rows = seeds.summarise({1000: [entry(measured=9.0)], 2000: [entry()], 3000: []})
    assert rows[0]["failed"] == [1000, 3000]
    assert "FAILS at 1000, 3000" in seeds.show(rows, [1000, 2000, 3000])


def test_a_claim_that_no_seed_moves_has_infinite_margin():
    (row,) = seeds.summarise({1: [entry()], 2: [entry()]})
    assert row["margin"] == math.inf


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_measured_value_that_is_not_finite_has_no_spread(value):
    bad = entry() | {"measured": value, "holds": False}
    (row,) = rows = seeds.summarise({1: [bad], 2: [entry()]})
    assert math.isnan(row["spread"]) and row["failed"] == [1]
    assert "FAILS at 1" in seeds.show(rows, [1, 2])


def test_seeds_reach_the_chapter(home, notebook, capsys):
    moved = ("code", "import os\nvalue = 3 + int(os.environ['GUIDANCE_EDU_SEED']) / 1e4")
    put(home, notebook, [CHAPTER[1], moved, ("code", CLAIM.replace("0.5", "0.15"))])
    assert seeds.main(seeds=(1000, 2000)) == 1
    said = capsys.readouterr().out
    assert "3.1" in said and "3.2" in said and "FAILED: 2.1" in said


# Mutations


def test_a_mutation_that_a_claim_notices_is_killed_and_the_rest_is_not_run(home, notebook, capsys):
    put(home, notebook, [*CHAPTER[:4], ("code", "1 / 0")])
    assert mutations.main() == 0
    assert "failed, measured 6" in capsys.readouterr().out


def test_mutations_of_some_claims_leave_the_others_alone(home, notebook, capsys):
    second = CLAIM.replace("2.1 ", "2.2 ")
    put(home, notebook, [*CHAPTER[:4], ("code", second, "claims")])
    assert mutations.main(ids=["2.2"]) == 0
    assert "1 mutations, 1 failed, 0 raised, all killed" in capsys.readouterr().out
    assert [path.name for path in (home / "build").iterdir()] == ["mutations.json"]
    with pytest.raises(ValueError, match=r"no claim 2\.7 in the chosen chapters"):
        mutations.main(ids=["2.1", "2.7"])


def test_a_mutation_that_no_claim_notices_survives(home, notebook, capsys):
    loose = CLAIM.replace("tol=0.5", "tol=50.0")
    put(home, notebook, [*CHAPTER[:3], ("code", loose, "claims")])
    assert mutations.main() == 1
    assert "ALIVE: 2.1" in capsys.readouterr().out


def test_a_mutation_that_stops_the_code_counts(home, notebook, capsys):
    broken = CLAIM.replace("1 + 5", "1 + []")
    put(home, notebook, [*CHAPTER[:3], ("code", broken, "claims")])
    assert mutations.main() == 0
    said = capsys.readouterr().out
    assert "The code raised before the claim was measured" in said
    assert "raised TypeError" in said and "1 mutations, 0 failed, 1 raised, all killed" in said


def test_a_mutation_that_ends_the_kernel_is_not_judged(home, notebook, capsys):
    dying = CLAIM.replace("1 + 5", "__import__('os')._exit(1)")
    put(home, notebook, [*CHAPTER[:3], ("code", dying, "claims")])
    assert mutations.main() == 1
    said = capsys.readouterr().out
    assert "NOT JUDGED: the kernel died" in said and "NOT JUDGED: 2.1" in said
    (stored,) = json.loads((home / "build" / "mutations.json").read_text())
    assert (stored["result"], stored["killed"]) == ("not judged", False)


RAISED = execute.ChapterFailed("02_x", "code cell 2 (id a)", "TypeError: no", raised=True)
TIMEOUT = execute.ChapterFailed("02_x", "code cell 2 (id a)", "no end after 600 s")


@pytest.mark.parametrize(
    ("entries", "failure", "result"),
    [
        ([entry(measured=9.0)], None, "failed"),
        ([entry(measured=9.0)], TIMEOUT, "failed"),
        ([entry(), entry(measured=9.0)], None, "failed"),
        ([entry()], None, "alive"),
        ([entry()], RAISED, "alive"),
        ([entry("2.9", measured=9.0)], None, "alive"),
        ([entry("2.9", measured=9.0)], RAISED, "raised"),
        ([entry("2.9", measured=9.0)], TIMEOUT, "not judged"),
    ],
)
def test_only_a_failing_claim_or_an_error_of_a_cell_kills_a_mutation(entries, failure, result):
    claim = source.Claim("02_x", 3, "2.1", "three is three", "1 + 2 => 1 + 5")
    verdict = mutations.judge(claim, entries, failure)
    assert (verdict.result, verdict.killed) == (result, result in ("failed", "raised"))


def test_a_mutation_changes_one_cell_and_never_a_claim(notebook):
    cells = [("code", CLAIM), ("code", "x = 1 + 2"), ("code", "y = 1 + 2")]
    nb = source.read(notebook("02_x", cells))
    assert source.mutate(nb, "1 + 2 => 7") == 1
    assert [c.source for c in nb.cells] == [CLAIM, "x = 7", "y = 1 + 2"]


@pytest.mark.parametrize("breaks", ["nothing", " => x", "a => a", "a => b => c", "zzz => b"])
def test_a_mutation_that_cannot_be_applied_is_refused(notebook, breaks):
    nb = source.read(notebook("02_x", [("code", "a = 1")]))
    with pytest.raises(ValueError):
        source.mutate(nb, breaks)


def test_a_mutation_that_is_no_python_is_refused(notebook):
    nb = source.read(notebook("02_x", [("code", "a = 1")]))
    with pytest.raises(ValueError, match="no valid Python"):
        source.mutate(nb, "1 => )")


@pytest.mark.parametrize(
    "text", ["", '{"cells": [', "5", "[]", '{"nbformat": 4}', '{"nbformat": 4, "cells": [5]}']
)
def test_a_notebook_that_is_not_whole_is_named(home, text, capsys):
    path = home / "chapters" / "02_x.ipynb"
    path.write_text(text)
    with pytest.raises(ValueError, match="02_x.ipynb is not a whole notebook: "):
        source.read(path)
    assert main(["mutations", "--only", "02"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m book mutations: {path} is not a whole notebook: ")


def test_a_claim_without_a_plain_name_is_refused(notebook):
    nb = source.read(notebook("02_x", [("code", 'claim(f"2.{i} x", measured=1.0)')]))
    with pytest.raises(ValueError, match="plain string"):
        source.claims(nb, "02_x")


# Reading what is stored


def test_printed_claims_are_read_from_the_outputs():
    text = "claim 2.1 a: b, c: measured -0.062, between -0.1 and 0.1, holds\nother\n"
    text += "claim 2.12 d: measured 1e+06, above 2, FAILS\n"
    out = nbformat.v4.new_output("stream", name="stdout", text=text)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[out])])
    first, second = source.printed(nb)
    assert (first.id, first.statement, first.measured) == ("2.1", "a: b, c", "-0.062")
    assert first.expected == "between -0.1 and 0.1"
    assert second == source.Line("2.12", "d", "1e+06", "above 2", "FAILS")


def test_what_a_real_claim_prints_is_read(capsys):
    from guidance_edu.claims import claim

    claim("2.1 it is, so", measured=0.0625, expected=0.06, tol=0.01, breaks="a => b")
    out = nbformat.v4.new_output("stream", name="stdout", text=capsys.readouterr().out)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[out])])
    (line,) = source.printed(nb)
    assert line == source.Line("2.1", "it is, so", "0.0625", "expected 0.06 +- 0.01", "holds")
    assert prose.unbacked("It is 0.0625 (claim 2.1).", {"2.1": line}) == []


# The pages


def test_prose_is_linked_to_its_claims_outside_code_and_mathematics():
    text = html.link_claims(
        "a (claim 2.1) `(claim 2.1)` $(claim 2.1)$ (claims 2.1, 9.9)", {"2.1": "02_x"}
    )
    assert text.count('href="02_x.html#claim-2-1"') == 2
    assert "`(claim 2.1)`" in text and "$(claim 2.1)$" in text and "9.9)" in text


def test_alt_texts_and_folded_solutions_are_staged(notebook):
    nb = source.read(notebook("02_x", [("code", "1", "solution"), ("code", CLAIM)]))
    data = {"image/png": "", "text/plain": "Figure: two lines"}
    nb.cells[0].outputs = [nbformat.v4.new_output("display_data", data=data)]
    html.add_alt_texts(nb)
    html.fold(nb)
    html.add_links(nb, {"2.1": "02_x"})
    assert nb.cells[0].metadata["mystnb"]["image"]["alt"] == "two lines"
    assert "hide-cell" in source.tags(nb.cells[0])
    assert 'id="claim-2-1"' in nb.cells[1].source


def test_the_code_of_imports_figures_and_claims_is_folded_and_their_outputs_are_not(notebook):
    kinds = [("code", "import a"), ("code", "2", "solution"), ("code", CLAIM, "claims")]
    nb = source.read(notebook("02_x", [*kinds, ("code", "3"), ("code", "4")]))
    image = {"image/png": "", "text/plain": "Figure: two lines"}
    nb.cells[3].outputs = [nbformat.v4.new_output("display_data", data=image)]
    html.fold(nb)
    folded = [[t for t in source.tags(c) if t.startswith("hide")] for c in nb.cells]
    assert folded == [["hide-input"], ["hide-cell"], ["hide-input"], ["hide-input"], []]


def test_the_fold_of_claims_names_them(notebook):
    two = CLAIM + "\n" + CLAIM.replace("2.1 ", "2.2 ")
    nb = source.read(notebook("02_x", [("code", "1"), ("code", CLAIM, "claims")]))
    nb.cells.append(nbformat.v4.new_code_cell(two, metadata={"tags": ["claims"]}))
    html.fold(nb)
    said = [cell.metadata["mystnb"]["code_prompt_show"] for cell in nb.cells[1:]]
    assert said == ["How claim 2.1 is checked", "How claims 2.1 to 2.2 are checked"]


def test_docstrings_are_readable_on_a_page_of_any_width():
    text = """Say :func:`~a.b.it` of ``x``
    or of :class:`y`.

        x = 1
            y = 2

    Shapes:  x [n],
             y [m].
    Limits:  none."""
    assert library.readable(inspect.cleandoc(text)) == (
        "Say it of x or of y.\n\n    x = 1\n        y = 2\n\nShapes:  x [n], y [m].\nLimits:  none."
    )


def test_references_are_written_with_their_anchors(tmp_path):
    bib = tmp_path / "r.bib"
    bib.write_text(
        "@article{b, author={Be, Bo and Ce, Cy Dee}, title={{T}wo}, journal={J}, year={2020},"
        " eprint={2001.00001}}\n@article{a, author={Al, A. and others}, title={O}, year={2019}}"
    )
    text = references.markdown(bib, for_sphinx=True)
    assert "(b)=\nBe, B. and Ce, C. D. (2020). *Two.* J." in text
    assert "[arXiv:2001.00001](https://arxiv.org/abs/2001.00001)" in text
    assert "Al, A. et al. (2019)" in text
    assert text.index("(a)=") < text.index("(b)=")


def test_a_read_only_folder_of_figures_is_staged_writable(home, notebook):
    put(home, notebook, CHAPTER)
    (home / "chapters" / "index.md").write_text("# Book")
    figures = home / "figures"
    figures.mkdir()
    (figures / "a.png").write_bytes(png())
    (figures / "README.md").write_text("# Figures")
    for path in (figures / "a.png", figures):
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        html.stage(home / "chapters", home / "staged")
    finally:
        figures.chmod(0o755)
    staged = home / "staged" / "figures"
    assert [p.name for p in staged.iterdir()] == ["a.png"]
    assert staged.stat().st_mode & 0o200 and (staged / "a.png").stat().st_mode & 0o200


# Speed


def test_a_race_on_a_gpu_waits_for_each_contestant(monkeypatch):
    import torch

    from guidance_edu import settings

    said = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("done"))
    monkeypatch.setattr(settings, "device", lambda: torch.device("cuda"))
    bench.race(lambda: said.append("a"), lambda: said.append("b"), repeats=1)
    assert said == ["a", "done", "b", "done"] * 2
    monkeypatch.setattr(settings, "device", lambda: torch.device("cpu"))
    said.clear()
    bench.race(lambda: said.append("a"), repeats=1)
    assert said == ["a", "a"]


# The command line


def test_a_chapter_that_is_not_there_is_refused_with_those_that_are(tmp_path, capsys):
    (tmp_path / "02_x.ipynb").write_text("{}")
    with pytest.raises(ValueError, match="no chapter begins with '07'; there are: 02_x"):
        book.chapters(tmp_path, only="07")
    assert main(["claims", "--only", "99"]) == 2
    assert "no chapter begins with '99'" in capsys.readouterr().err
