"""Man pages: groff takes them, lexgrog finds whole names, and what they list is what the code has."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from collector.config_keys import PREFIX
from kcompat.cli import main
from kcompat.cli_manual import ENVIRONMENT, FILES, write_man_pages
from tests.kcompat.cli_tools import ROOT
from tests.repo.test_commands import ALL

pytest.importorskip("click_man")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    directory = tmp_path_factory.mktemp("man")
    write_man_pages(main, directory, "1.0", "2026-01-01")
    return directory


def test_every_command_has_one_with_every_section(pages):
    assert {page.name for page in pages.iterdir()} == {f"{'-'.join(words)}.1" for words, _ in ALL}
    for page in pages.iterdir():
        headings = re.findall(r"^\.SH (.*)$", page.read_text(), re.MULTILINE)
        assert set(headings) - {"COMMANDS"} == {"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "FILES",
                                                "ENVIRONMENT", "SEE ALSO"} - ({"OPTIONS"} - set(headings))
        assert page.read_text().startswith('.TH "KCOMPAT') and '"2026-01-01"' in page.read_text()


@pytest.mark.skipif(not shutil.which("lexgrog"), reason="needs man-db")
def test_a_name_is_a_whole_sentence(pages):
    said = subprocess.run(["lexgrog", *sorted(pages.iterdir())], capture_output=True, text=True, check=True, timeout=60)

    found = dict(re.findall(r"/([^/]+)\.1: \"(.*)\"$", said.stdout, re.MULTILINE))
    assert found["kcompat-db-verify"] == ("kcompat-db-verify - Look for damage in the file, and for layouts that no "
                                          "kernel can have")
    for words, command in ALL:
        name, _, short = found["-".join(words)].partition(" - ")
        assert name == "-".join(words) and " ".join(command.help.split()).startswith(f"{short}.")


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
def test_groff_takes_them_and_examples_keep_their_lines(pages):
    for page in pages.iterdir():
        said = subprocess.run(["groff", "-man", "-Tascii", "-P-c", "-ww", page], capture_output=True, text=True,
                              check=True, timeout=60)
        # That a long word does not fill its line is no fault.
        assert all(line.endswith("cannot adjust line") for line in said.stderr.splitlines()), said.stderr
        shown = re.sub(".\b", "", said.stdout)
        assert re.search(r"^ +(sudo )?kcompat", shown.partition("Example")[2], re.MULTILINE), page


def test_what_is_seen_also_is_there(pages):
    for page in pages.iterdir():
        also = page.read_text().partition(".SH SEE ALSO\n")[2]
        named = re.findall(r"\\fB(.*?)\\fP\(1\)", also.replace("\\-", "-"))
        assert named and all((pages / f"{name}.1").exists() for name in named), page


def test_the_variables_are_those_that_are_read():
    code = "".join(path.read_text() for package in ("kcompat", "guessers", "offset_db", "collector")
                   for path in (ROOT / package).rglob("*.py") if path.name != "cli_manual.py")
    read = set(re.findall(r"environ(?:\.get\(|\[)\"((?:KCOMPAT|XDG)_\w+)\"", code)) | {f"{PREFIX}KEY"}

    assert {name for names, _ in ENVIRONMENT for name in names.split(", ")} - {"KUBECONFIG", "NO_COLOR"} == read
    # Under its own name a file is in the code, in what is packaged, or its directory is.
    packaged = "".join(path.read_text() for path in (ROOT / "ci/packaging/kcompat.service", ROOT / "ci/deb.py"))
    for path, _ in FILES:
        assert any(part in code + packaged for part in (path, path.lstrip("/"), Path(path).name)), path


def test_the_readme_says_the_same():
    readme = (ROOT / "README.md").read_text()
    for path, _ in FILES[:4]:
        assert path in readme
    assert all(name in readme for name in ("KCOMPAT_CACHE", "KCOMPAT_RUN", f"{PREFIX}INTERVAL_S"))
