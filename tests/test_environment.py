"""environment.yml, pyproject.toml, constraints.txt and the Makefile say the same thing."""

import re
import tomllib

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
    assert "==" not in "".join(lines), "versions live in constraints.txt alone"
    (local,) = [x for x in lines if x.startswith("-e ")]
    assert set(re.findall(r"\[(.*)\]", local)[0].split(",")) <= set(EXTRAS)


def test_environment_yml_names_a_python_that_the_project_admits():
    (python,) = [d for d in ENVIRONMENT["dependencies"] if str(d).startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.partition("=")[2])


def test_the_makefile_installs_the_pinned_torch():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"torch=={PINS['torch']}\n" in makefile


def test_the_version_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_a_change_has_to_pass_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "exec make test" in script.read_text(encoding="utf-8")
