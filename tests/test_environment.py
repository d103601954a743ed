"""environment.yml, pyproject.toml, constraints.txt and the Makefile say the same thing."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from book import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"(?m)^([A-Za-z0-9._-]+)==(\S+)$", CONSTRAINTS)
}


def pip_lines():
    return next(d["pip"] for d in ENVIRONMENT["dependencies"] if isinstance(d, dict))


def test_every_line_of_the_constraints_is_one_exact_pin():
    lines = [x for x in CONSTRAINTS.splitlines() if x and not x.startswith("#")]
    assert len(lines) == len(PINS)
    assert [x.partition("==")[0] for x in lines] == sorted(PINS)


def test_no_pin_is_bound_to_one_machine():
    assert not [f"{k}=={v}" for k, v in PINS.items() if "+" in v]


def test_every_requirement_is_pinned_to_a_version_that_it_admits():
    for line in PROJECT["dependencies"] + [r for extra in EXTRAS.values() for r in extra]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name != PROJECT["name"]:
            assert requirement.specifier.contains(Version(PINS[name])), line


def test_environment_yml_lists_what_the_project_requires():
    required = {canonicalize_name(Requirement(r).name) for r in PROJECT["dependencies"]}
    lines = pip_lines()
    assert {canonicalize_name(x) for x in lines if not x.startswith("-")} == required
    assert lines[0] == "-c constraints.txt"
    assert lines[1] == "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert "==" not in "".join(lines), "versions live in constraints.txt alone"
    (local,) = [x for x in lines if x.startswith("-e ")]
    assert set(re.findall(r"\[(.*)\]", local)[0].split(",")) <= set(EXTRAS)


def test_environment_yml_names_a_python_that_the_project_admits():
    (python,) = [d for d in ENVIRONMENT["dependencies"] if str(d).startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.partition("=")[2])


def test_the_makefile_installs_the_pinned_torch():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"torch=={PINS['torch']}\n" in makefile


def make(folder, *arguments):
    """Run make as a shell would, not as a part of the make that runs the tests."""
    if not shutil.which("make"):
        pytest.skip("no make here")
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}
    done = subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_make_passes_its_options_on():
    _, said, _ = make(ROOT, "-n", "test", "bench", "claims", "JOBS=3", "ONLY=tree")
    assert "-m pytest -q -n 3\n" in said
    assert '-m book bench --only "tree"\n' in said
    assert '-m book claims --jobs 3 --only "tree"\n' in said


PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  "-m venv --clear .venv") rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python
    [ -z "$BROKEN" ] ;;
esac
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the Makefile and an interpreter that writes down what it is asked."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    return tmp_path


def test_an_environment_without_its_interpreter_is_made_and_filled_anew(project):
    ask = ("html", f"PYTHON={project / 'python3'}")
    assert make(project, *ask)[0] == 0
    first = (project / "log").read_text()
    assert first.count("venv --clear") == 1 and first.count("-e .[book]") == 1
    assert make(project, *ask)[0] == 0
    assert (project / "log").read_text() == first + "-m book html\n"
    (project / ".venv/bin/python").unlink()
    (project / ".venv/bin/python").symlink_to("gone")
    assert make(project, *ask)[0] == 0
    assert (project / "log").read_text() == first + "-m book html\n" + first


def test_an_environment_that_could_not_be_made_is_removed(project, monkeypatch):
    monkeypatch.setenv("BROKEN", "1")
    code, _, _ = make(project, "html", f"PYTHON={project / 'python3'}")
    assert code != 0 and not (project / ".venv").exists()


def test_no_page_holds_a_placeholder():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    found = [
        f"{name}: {line}"
        for name in listed.stdout.splitlines()
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if re.fullmatch(r"\s*[A-Z]{4,}\s*", line)
    ]
    assert not found


def test_the_version_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_a_change_has_to_pass_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "exec make test" in script.read_text(encoding="utf-8")
