"""The report for a terminal, for the docs and as a file: what they say, and that a guest's words stay words."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from ci.report import show, write_html, write_markdown
from ci.report_html import html
from ci.report_markdown import markdown
from tests.ci import matrix_data as data


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, text):
        self.text += text


def test_the_page_has_no_script_no_foreign_address_and_forbids_both():
    found = Tags(html(data.matrix(data.hostile()))).seen

    assert {tag for tag, _ in found}.isdisjoint({"script", "img", "iframe", "object", "form"})
    assert {key for _, attrs in found for key in attrs if key.startswith("on") or key == "style"} == set()
    assert {a[k][:1] for _, a in found for k in ("href", "src") if a.get(k, "data:,") != "data:,"} == {"#"}
    (policy,) = (a["content"] for _, a in found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_a_hostile_guests_words_are_shown_without_what_controls():
    page = html(data.matrix(data.hostile()))

    assert "<script>alert(1)</script>" in Tags(page).text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\ud800-\udfff\ufffe]", page)
    page.encode()


def test_every_reason_is_on_the_page_without_hovering():
    text = Tags(html(data.whole())).text

    for said in ("1 failed: test_mark", "AssertionError: 500 == 508", "two places fit every sample", "1672, 1676",
                 "Run /init as init process", "the guess says 500, btf says 508", "no sample reached it"):
        assert said in text


def test_every_link_within_the_page_leads_somewhere():
    found = Tags(html(data.whole())).seen

    targets = {attrs["id"] for _, attrs in found if "id" in attrs}
    assert {attrs["href"][1:] for tag, attrs in found if tag == "a"} <= targets
    assert len(targets) == sum("id" in attrs for _, attrs in found)


def test_the_docs_have_a_row_per_kernel_and_say_what_did_not_pass():
    text = markdown(data.whole(), "kernel-matrix.png")

    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert ["| 6.1", "6.1.48-amd64", "x86_64", "btf", "43", "1", "1", "1"] in [row[:8] for row in rows]
    assert text.index("Kernels of our own") < text.index("| 6.12-nojit") < text.index("Given kernels")
    assert "| boot | 17 | 21.4 | 88.0 |" in text
    assert "- 6.17, could not tell: boot, info, guess" in text
    assert 'srcset="kernel-matrix-dark.png"' in text and 'src="kernel-matrix.png"' in text


def test_a_hostile_guest_writes_no_markdown():
    text = markdown(data.matrix(data.hostile()), None)

    assert not re.search(r"(?<!\\)<script|(?<!\\)\[a\]", text)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ")} == {5, 12}


def test_the_picture_is_named_as_seen_from_the_text(tmp_path):
    write_markdown(data.whole(), tmp_path / "docs" / "m.md", tmp_path / "docs" / "img" / "m.png")

    assert 'src="img/m.png"' in (tmp_path / "docs" / "m.md").read_text()


def test_a_terminal_shows_marks_and_reasons():
    console = Console(width=200, record=True, file=io.StringIO())

    show(data.whole(), console)

    said = console.export_text()
    assert re.search(r"^6\.1 +6\.1\.48-amd64 +✓ +✓ +✓ +✓ +✗ +✗ +✓ +✓ +43/46 +91 *$", said, re.MULTILINE)
    assert "? 6.17: boot, info, guess, btf, tests, collect, shutdown: Kernel panic" in said
    assert "19 kernels in 1834 s: 17 pass, 1 fail, 1 could not tell" in said


def test_a_hostile_guest_moves_no_cursor_and_sets_no_colour():
    console = Console(width=200, record=True, file=io.StringIO())

    show(data.matrix(data.hostile()), console)

    assert not re.search("[\x00\x1b\u202e\ud800]", console.export_text())


def test_a_report_that_cannot_be_put_in_place_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")

    def full(self, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_html(data.whole(), path)

    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
