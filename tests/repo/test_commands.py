"""Every command has help with an example, and stands in the README."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kcompat.cli import main

ROOT = Path(__file__).parents[2]


def commands(group=main, path=("kcompat",)):
    """(words, command) of the command, its groups and everything below."""
    yield path, group
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))


ALL = list(commands())
ids = [" ".join(words) for words, _ in ALL]


def helped(words):
    done = CliRunner().invoke(main, [*words[1:], "--help"], prog_name="kcompat")
    assert done.exit_code == 0
    return done.stdout


def test_the_commands_of_the_design_are_there():
    assert set(ids) == {"kcompat", "kcompat info", "kcompat resolve", "kcompat guess", "kcompat db", "kcompat db show",
                        "kcompat db kernels", "kcompat db diff", "kcompat db where", "kcompat db history",
                        "kcompat db verify", "kcompat db import", "kcompat db merge", "kcompat db export",
                        "kcompat db pull", "kcompat db vacuum", "kcompat db serve",
                        "kcompat db disagreements", "kcompat harvest", "kcompat render",
                        "kcompat collect", "kcompat compile", "kcompat config", "kcompat config sample",
                        "kcompat config check", "kcompat datasets", "kcompat status", "kcompat top"}


@pytest.mark.parametrize("words, command", ALL, ids=ids)
def test_a_command_has_help_with_an_example(words, command):
    said = helped(words)

    assert command.help and command.help.splitlines()[0].endswith(".")
    assert re.search(r"Examples?:\n", said), said
    assert " ".join(words) in said.partition("Example")[2]
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("words, command", ALL, ids=ids)
def test_an_example_is_a_command_line_that_parses(words, command):
    for line in re.findall(r"^ +(?:sudo )?kcompat (.*)$", helped(words).partition("Example")[2], re.MULTILINE):
        parsed, arguments = main, line.split()
        while isinstance(parsed, click.Group):
            name, parsed, arguments = parsed.resolve_command(click.Context(parsed), arguments)
        parsed.make_context(name, arguments)


@pytest.mark.parametrize("words, command", ALL, ids=ids)
def test_every_option_says_what_it_does(words, command):
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help, parameter.name


@pytest.mark.parametrize("words", [words for words, _ in ALL], ids=ids)
def test_a_command_stands_in_the_readme(words):
    """`kcompat db show|disagreements` names both."""
    *first, last = words

    assert re.search(rf"{' '.join(first)}.*\b{last}\b", (ROOT / "README.md").read_text())


@pytest.mark.parametrize("document", ["README.md", "docs/operations.md"])
def test_documents_have_no_command_there_is_not(document):
    text = (ROOT / document).read_text()
    code = [*re.findall(r"```.*?```", text, re.DOTALL), *re.findall(r"`[^`\n]+`", text)]

    said = {name for part in code for name in re.findall(r"(?:`|\$ |^ *|sudo )kcompat ([a-z]+)", part, re.MULTILINE)}

    assert said and said <= set(main.commands), said - set(main.commands)


def test_the_readme_names_the_make_targets_it_may():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert {"run", "test", "lint", "bench", "venv"} <= targets
    assert set(re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text())) <= targets


def test_every_metric_of_the_operators_page_is_served():
    text, served = (ROOT / "docs/operations.md").read_text(), (ROOT / "collector/metrics.py").read_text()
    named = {name.removesuffix("_total") for name in re.findall(r"\bkcompat_([a-z_]+)", text)}

    assert named and all(f'"{name}"' in served or f'"kcompat_{name}"' in served for name in named)


def test_every_key_of_the_operators_page_is_one():
    from collector.config_keys import keys

    text = (ROOT / "docs/operations.md").read_text()
    named = set(re.findall(r"`(?:--set )?((?:metrics|log|limits|offsets)\.\w+)", text))

    assert named and named <= set(keys())
