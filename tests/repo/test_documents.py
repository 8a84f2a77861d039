"""The documentation stays true: links lead somewhere, pages are in the site, commands and pictures are current."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from kcompat.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])
NAMES = [page.name for page in PAGES]


def anchors(page):
    """As MkDocs and GitHub make them of headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_pictures_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'(?:src|srcset)="([^"]+)"', text)]:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_are_there(page):
    rooms = "docs|ci|collector|guessers|kcompat|tests|benchmarks"
    for name in re.findall(rf"`((?:{rooms})/[\w./-]+\.\w+)`", page.read_text()):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_every_page_is_in_the_site_once():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages(value)]

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(pages(site["nav"])) == sorted(page.name for page in DOCS.glob("*.md")) and site["strict"]


def command_lines(page):
    """Of kcompat, in blocks of code and in running text; placeholders are words in capitals."""
    text = page.read_text()
    blocks = "\n".join(re.findall(r"```(?:\w*)\n(.*?)```", text, re.DOTALL))
    spans = re.findall(r"`((?:sudo )?kcompat [^`]+)`", re.sub(r"\s*\n\s*", " ", re.sub(r"```.*?```", "", text,
                                                                                      flags=re.DOTALL)))
    typed = re.findall(r"^(?:\$ )?(?:sudo )?(?:\.venv/bin/)?(kcompat .*)$", blocks, re.MULTILINE)
    return [line for line in [*typed, *spans]
            if not re.search(r"[|…]|runs already|\.\.\.|\\|\[", line)]


@pytest.mark.parametrize("page", [DOCS / name for name in ("quick-start.md", "troubleshooting.md", "extending.md",
                                                           "operations.md", "index.md", "comparison.md")],
                         ids=lambda page: page.name)
def test_command_lines_parse(page):
    for line in command_lines(page):
        words = shlex.split(line.removeprefix("sudo ").partition(">")[0])[1:]
        parsed, context = main, click.Context(main)
        while isinstance(parsed, click.Group):
            words = [word for at, word in enumerate(words) if word != "--db" and words[at - 1:at] != ["--db"]]
            if not words:
                break
            _, parsed, words = parsed.resolve_command(context, words)
        if not isinstance(parsed, click.Group) and any(word.startswith("-") for word in words):
            known = {option for parameter in parsed.params for option in (*parameter.opts, *parameter.secondary_opts)}
            assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, line


def test_commands_of_the_quick_start_that_need_no_root_do_what_it_says(tmp_path):
    """The others are in tests/kernel and tests/kcompat, with what they print."""
    def ran(*words):
        return subprocess.run([sys.executable, "-c", "from kcompat.cli import main; main(prog_name='kcompat')", *words],
                              cwd=tmp_path, capture_output=True, text=True, timeout=60)

    page = (DOCS / "quick-start.md").read_text()
    assert "kcompat config sample > kcompat.toml" in page and "kcompat config check kcompat.toml" in page
    (tmp_path / "kcompat.toml").write_text(ran("config", "sample").stdout)
    assert ran("config", "check", "kcompat.toml").stdout == "kcompat.toml: fine\n"
    assert "tcp_established" in ran("datasets").stdout


def test_the_pictures_are_those_of_the_recorded_guess(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import pictures

    from guessers.recording import load

    samples = [sock.sample for sock in load(pictures.RECORDING).haul.socks]
    for member, rows in pictures.PICTURES.items():
        assert (DOCS / f"guess-{member}.svg").read_text() == pictures.picture(member, rows, samples), "make docs"
    assert len(list(DOCS.glob("guess-*.svg"))) == len(pictures.PICTURES)


def test_the_redaction_of_the_operators_page_is_one(tmp_path):
    import tomllib

    from collector.redaction import Redactions

    (block,) = re.findall(r"```toml\n(redact.*?)```", (DOCS / "operations.md").read_text(), re.DOTALL)
    rules = Redactions.parse(tomllib.loads(block)["redact"])
    assert rules.path("/users/ada/keys") == "/users/***/keys"
    assert rules.command("mysql --password=x1 -u a") == "mysql --password=*** -u a"
