"""A record says what made it, is whole, and is what its sweep would measure again."""

import json
import os
import re
import subprocess

import pytest
import torch

from book import records
from book.__main__ import main
from guidance_edu.settings import generator, seed_shift
from toy_models import sweeps

CALLS = []


def toy(word: str, w: float) -> dict[str, float]:
    """Measure a toy. And more that nobody reads."""
    CALLS.append((seed_shift(), word, w))
    return {"draw": generator(5).initial_seed() / 3, "double": 2 * w}


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.setattr(sweeps, "SWEEPS", dict(sweeps.all_sweeps()))
    CALLS.clear()
    sweeps.sweep("toy", seeds=(0, 1000), settings=sweeps.grid(word=["a", "b"], w=[1.5, 2.0]))(toy)
    return sweeps.SWEEPS["toy"]


@pytest.fixture
def made(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")
    return records.run(sweep, tmp_path / "records", tmp_path / "keep")


def test_a_record_holds_every_row_and_says_what_made_it(made, sweep):
    stored = sweeps.record("toy", made.parent)
    assert len(stored.rows) == 8
    assert stored.rows[0] == {"seed": 0, "word": "a", "w": 1.5, "draw": 1.66667, "double": 3.0}
    assert stored.what == "Measure a toy. And more that nobody reads."
    versions = {"python", "torch", "numpy", "device", "machine", "commit"}
    assert {*versions, "cpu_seconds"} == set(stored.made)
    assert json.loads(made.read_text())["seeds"] == [0, 1000]
    assert not list(made.parent.glob("*.part"))


@pytest.mark.parametrize("changed", [False, True])
def test_the_commit_says_whether_the_packages_differ_from_it(tmp_path, monkeypatch, changed):
    def git(*words):
        whose = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *whose, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert records.commit() == "unknown"
    for name in ("guidance_edu", "toy_models", "book"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / ("toy_models" if changed else "book") / "a.py").write_text("2\n")
    assert re.fullmatch("[0-9a-f]{12}" + "-changed" * changed, records.commit())


@pytest.mark.parametrize("name", sorted(path.stem for path in sweeps.RECORDS.glob("*.json")))
def test_every_record_names_its_commit(name):
    assert re.fullmatch("[0-9a-f]{12}(-changed)?", sweeps.record(name).made["commit"])


def test_a_rows_seed_is_a_seed_of_the_whole_book(made, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_SEED", "7")
    row = sweeps.record("toy", made.parent).where(seed=1000, word="b", w=2.0)[0]
    again = sweeps.measure("toy", row)
    assert again == {"draw": 335.0, "double": 4.0} == {k: row[k] for k in again}
    assert os.environ["GUIDANCE_EDU_SEED"] == "7"


def test_the_books_seed_is_put_back_after_an_error(monkeypatch):
    monkeypatch.delenv("GUIDANCE_EDU_SEED", raising=False)
    with pytest.raises(ZeroDivisionError), sweeps.book_seed(3):
        assert seed_shift() == 3
        _ = 1 / 0
    assert "GUIDANCE_EDU_SEED" not in os.environ


def test_the_books_seed_picks_the_row(made, monkeypatch):
    stored = sweeps.record("toy", made.parent)
    picked = []
    for seed in range(0, 20000, 1000):
        monkeypatch.setenv("GUIDANCE_EDU_SEED", str(seed))
        assert stored.pick() == stored.pick()
        assert stored.pick(word="b")["word"] == "b"
        picked.append(stored.rows.index(stored.pick()))
    assert len(set(picked)) > 4
    with pytest.raises(KeyError, match="no row"):
        stored.pick(word="c")


def test_an_interrupted_run_goes_on_where_it_stopped(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")
    measured = records.measure

    def stop_at_the_fourth(name, row):
        if len(CALLS) == 3:
            raise KeyboardInterrupt
        return measured(name, row)

    monkeypatch.setattr(records, "measure", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        records.run(sweep, tmp_path, tmp_path / "keep")
    assert not (tmp_path / "toy.json").exists()
    half = next((tmp_path / "keep").iterdir())
    half.write_text(half.read_text()[:-9])  # the last line was being written
    monkeypatch.setattr(records, "measure", measured)
    records.run(sweep, tmp_path, tmp_path / "keep")
    assert len(CALLS) == 3 + 6
    assert not list((tmp_path / "keep").iterdir())
    assert len(sweeps.record("toy", tmp_path).rows) == 8


def test_rows_of_other_code_are_measured_again(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")
    head = {"made": records.made_with(), "sources": "other"}
    lines = [head, [json.dumps({"seed": 0, "word": "a", "w": 1.5}), {"draw": 9.0}, 0.1]]
    (tmp_path / "toy.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    records.run(sweep, tmp_path, tmp_path)
    assert len(CALLS) == 8


@pytest.mark.parametrize("place", ["code.py", "weights/manifest.json"])
def test_rows_of_other_code_or_weights_are_known_by_their_hash(tmp_path, monkeypatch, place):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    path = tmp_path / "toy_models" / place
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    before = records.sources_hash()
    assert records.sources_hash() == before
    path.write_text("[]")
    assert records.sources_hash() != before


def test_a_manifest_stands_for_the_files_beside_it():
    """The hash of the sources reads the manifests alone, so every file must be in one."""
    for suffix in ("weights", "statistics"):
        folder = records.ROOT / "toy_models" / suffix
        listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = {path.stem for path in folder.iterdir() if path.suffix != ".json"}
        assert files <= set(listed) and all(listed[name]["sha256"] for name in files)


HARMED = ["5", "null", '["{}", 5, 1]', '[["a"], {}, 1]', '["{}", {"draw": 1}, null]', "\udcff"]


def test_damaged_lines_of_an_interrupted_run_are_measured_again(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")
    head = json.dumps({"made": records.made_with(), "sources": records.sources_hash()})
    key = json.dumps({"seed": 0, "word": "a", "w": 1.5})
    known = json.dumps([key, {"draw": 9.0, "double": 3.0}, 0.1])
    text = "\n".join([head, *HARMED, known, ""])
    (tmp_path / "toy.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    records.run(sweep, tmp_path, tmp_path)
    assert len(CALLS) == 7 and sweeps.record("toy", tmp_path).rows[0]["draw"] == 9.0


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: [],
        lambda stored: 5,
        lambda stored: {**stored, "rows": []},
        lambda stored: {**stored, "rows": [[]]},
        lambda stored: {**stored, "rows": [1, 2]},
        lambda stored: {**stored, "columns": list(range(5))},
        lambda stored: {**stored, "what": None},
        lambda stored: {**stored, "made": None},
        lambda stored: {k: v for k, v in stored.items() if k != "settings"},
    ],
)
def test_a_record_of_another_form_is_named(made, change):
    made.write_text(json.dumps(change(json.loads(made.read_text()))))
    with pytest.raises(ValueError, match=r"toy.json is not a whole record of a sweep: .+"):
        sweeps.record("toy", made.parent)


def test_a_truncated_record_is_named(made):
    made.write_text(made.read_text()[:-40])
    with pytest.raises(ValueError, match="toy.json is not a whole record of a sweep"):
        sweeps.record("toy", made.parent)


def test_showing_a_record_that_was_not_made_is_one_line(sweep, capsys):
    assert main(["records", "toy", "--show"]) == 2
    says = "python -m book records: no record 'toy': run python -m book records toy\n"
    assert capsys.readouterr().err == says


@pytest.mark.parametrize("command", [["records", "toy"], ["bench", "--only", "tree"]])
def test_a_device_that_is_not_there_is_one_line(sweep, monkeypatch, capsys, command):
    monkeypatch.setenv("GUIDANCE_EDU_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(command) == 2
    says = f"python -m book {command[0]}: GUIDANCE_EDU_DEVICE=cuda, but"
    assert capsys.readouterr().err.startswith(says)


@pytest.mark.parametrize("bad", [{"draw": float("nan"), "double": 1.0}, {"double": 1.0}])
def test_a_row_that_is_not_like_the_others_writes_nothing(sweep, tmp_path, monkeypatch, bad):
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")
    measured = records.measure
    monkeypatch.setattr(
        records, "measure", lambda n, row: bad if row["w"] == 2 else measured(n, row)
    )
    with pytest.raises(ValueError, match="finite numbers"):
        records.run(sweep, tmp_path, tmp_path / "keep")
    assert not (tmp_path / "toy.json").exists()


def test_unknown_names_are_refused(sweep, tmp_path):
    with pytest.raises(KeyError, match=r"unknown sweep.*toy"):
        sweeps.sweep_named("toys")
    with pytest.raises(ValueError, match="unknown sweep"):
        records.main(["toys"])
    with pytest.raises(FileNotFoundError, match="python -m book records toys"):
        sweeps.record("toys", tmp_path)
    with pytest.raises(ValueError, match="new name"):
        sweeps.sweep("toy", seeds=(0,), settings=[{}])(toy)
    with pytest.raises(ValueError, match="seeds and settings"):
        sweeps.sweep("toy_2", seeds=(), settings=[{}])(toy)


STORED = sorted(sweeps.all_sweeps())


@pytest.mark.parametrize("name", STORED)
def test_every_sweep_has_its_record(name):
    # The rows themselves are measured again in the chapters, one at each seed.
    known = sweeps.SWEEPS[name]
    if known.long and not (sweeps.RECORDS / f"{name}.json").exists():
        pytest.skip("a long sweep, not recorded yet")
    stored = sweeps.record(name)
    rows = [{"seed": seed, **setting} for seed in known.seeds for setting in known.settings]
    keys = ["seed", *stored.settings]
    assert [{key: row[key] for key in keys} for row in stored.rows] == rows
    assert stored.what == known.what


def test_every_record_has_its_sweep():
    assert {path.stem for path in sweeps.RECORDS.glob("*.json")} <= set(STORED)


def test_a_long_sweep_runs_only_where_it_is_named(sweep, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(records, "run", lambda s: ran.append(s.name) or sweeps.RECORDS / "x.json")
    sweeps.sweep("toy_long", seeds=(0,), settings=[{"w": 1.0}], long=True)(toy)
    assert records.main([]) == 0
    assert "toy" in ran and "toy_long" not in ran
    assert records.main(["toy_long"]) == 0
    assert ran[-1] == "toy_long"


def test_a_record_is_shown_as_it_is_stored_and_nothing_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(records, "run", lambda sweep: pytest.fail("measured"))
    assert records.main(["image_models"], show=True) == 0
    what, made, head, *rows = capsys.readouterr().out.splitlines()
    stored = sweeps.record("image_models")
    assert what == stored.what and f"torch {stored.made['torch']}" in made
    assert {"model", "fd", "fd_noise", "accuracy"} <= set(head.split())
    assert not any(name.startswith("without") for name in head.split())
    assert [row.split()[1] for row in rows] == [row["model"] for row in stored.rows]
    place = head.split().index("fd")
    assert [float(row.split()[place]) for row in rows] == pytest.approx(
        [row["fd"] for row in stored.rows], rel=1e-3
    )


def test_a_number_cannot_have_the_name_of_a_setting(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")
    monkeypatch.setattr(records, "measure", lambda name, row: {"w": 1.0})
    with pytest.raises(ValueError, match=r"\['w'\] name a setting and a number"):
        records.run(sweep, tmp_path / "records", tmp_path / "keep")
    assert not (tmp_path / "records").exists()
