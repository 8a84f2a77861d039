"""The report as pictures for the docs, drawn by Debian's Chromium, and what is said where there is none."""

import struct

import pytest

from ci import report_screenshot
from ci.report import write_screenshot
from ci.report_screenshot import WIDTH, BrowserError, dark
from tests.ci import matrix_data as data
from tests.ci.test_report_browser import pytestmark as needs_chromium


@needs_chromium
def test_the_pictures_for_the_docs_are_small_and_differ(tmp_path):
    path = tmp_path / "matrix.png"

    write_screenshot(data.whole(), path)

    light, night = path.read_bytes(), dark(path).read_bytes()
    width, height = struct.unpack(">II", light[16:24])
    assert width == WIDTH and height > 1000 and light != night
    assert max(len(light), len(night)) < 400_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["matrix-dark.png", "matrix.png"]


def test_no_browser_is_one_clear_error_and_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(report_screenshot, "find_tool", lambda tool: None)

    with pytest.raises(BrowserError, match="not installed: chromium"):
        write_screenshot(data.whole(), tmp_path / "matrix.png")

    assert list(tmp_path.iterdir()) == []
