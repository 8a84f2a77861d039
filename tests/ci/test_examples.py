"""The workflow files users copy: they are YAML, and every command in them is one we have."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from ci.__main__ import main

ROOT = Path(__file__).parents[2]
EXAMPLES = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / "ci" / "examples").glob("*.yml")}


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def commands(example):
    """The words after ``python -m ci`` of each line that has it."""
    lines = (line for text in strings(example) for line in text.splitlines())
    return [shlex.split(found[1]) for line in lines if (found := re.search(r"python -m ci (.*)", line))]


def test_there_is_one_for_github_and_one_for_gitlab():
    assert set(EXAMPLES) == {"github-actions.yml", "gitlab-ci.yml"}
    assert {tuple(words[0] for words in commands(example)) for example in EXAMPLES.values()} == {("run", "report")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_option_is_one_of_the_commands(name):
    for command, *words in commands(EXAMPLES[name]):
        known = {option for parameter in main.commands[command].params for option in parameter.opts}

        assert {word for word in words if word.startswith("-")} <= known


def test_they_run_a_directory_of_kernels_and_one_kernel():
    options = {word for example in EXAMPLES.values() for words in commands(example) for word in words}

    assert {"--kernel-dir", "--kernel", "--modules", "--vmlinux", "--junit", "--html"} <= options


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_make_target_is_there(name):
    targets = {target for text in strings(EXAMPLES[name]) for target in re.findall(r"make -C kcompat (\w+)", text)}

    there = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets and targets <= there


def test_a_red_matrix_still_leaves_its_report():
    github, gitlab = EXAMPLES["github-actions.yml"], EXAMPLES["gitlab-ci.yml"]

    after = [step for step in github["jobs"]["matrix"]["steps"] if "report" in str(step) or "upload" in str(step)]
    assert len(after) == 2 and all(step["if"] == "always()" for step in after)
    assert gitlab["matrix"]["artifacts"]["when"] == "always"
    assert gitlab["matrix"]["artifacts"]["reports"]["junit"] == "results/junit.xml"
