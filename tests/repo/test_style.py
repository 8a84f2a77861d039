"""The house style that can be checked: small modules that open with one sentence, print only where it belongs."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("kcompat", "guessers", "offset_db", "collector", "ci")
MODULES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
C_FILES = sorted(p for room in ROOMS for pattern in ("*.bpf.c", "*.h") for p in (ROOT / room).rglob(pattern))
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def named(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_module_is_over_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=named)
def test_a_module_opens_with_one_sentence(path):
    first, *rest = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines() or [""]

    assert first and first.rstrip()[-1] in ".!" and len(first) <= 120
    assert not rest or rest[0] == ""


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[-2] != "ci"], ids=named)
def test_print_is_for_the_command_alone(path):
    calls = [node.lineno for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"]

    assert not calls or path.name.startswith("cli")


@pytest.mark.parametrize("path", C_FILES, ids=named)
def test_bpf_c_says_its_licence_first(path):
    assert "SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)" in path.read_text().splitlines()[0]


def test_every_package_and_every_data_file_is_in_the_wheel():
    """A package that pyproject.toml does not list works here and is missing once installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in MODULES if p.name == "__init__.py"}
    shipped = {p for package, patterns in settings["package-data"].items() for pattern in patterns
               for p in (ROOT / package.replace(".", "/")).glob(pattern)}

    assert set(settings["packages"]) == packages - {"ci"}
    assert set(C_FILES) <= shipped


def test_no_dependency_is_pypis_bcc():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]

    assert not [d for d in wanted if d.startswith("bcc")]
    assert all(any(c in d for c in "<>=~") for d in wanted)
