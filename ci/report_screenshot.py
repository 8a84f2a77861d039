"""The HTML report as a picture, by Debian's Chromium: what stands in the docs is what people see."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright import sync_api as playwright

from ci.tools import find_tool

WIDTH = 1280
# As root there is no sandbox, and without the others Chromium looks for its maker's hosts.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")
_DEADLINE_MS = 120_000
_COLOURS = 128


class BrowserError(Exception):
    """There is no Chromium here, or it did not draw the page."""


@contextmanager
def browser() -> Iterator[playwright.Browser]:
    """Ours alone, with a profile of its own; it ends with the block."""
    path = find_tool("chromium")
    if path is None:
        raise BrowserError("not installed: chromium")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=list(FLAGS), timeout=_DEADLINE_MS)
        try:
            yield launched
        finally:
            launched.close()


def screenshot(report: Path, picture: Path, scheme: Literal["light", "dark"]) -> None:
    """The page from its top to the end of the offsets: times and consoles are for those who open it."""
    try:
        png = _png(report, scheme)
    except playwright.Error as error:
        raise BrowserError(f"chromium: {error.message.splitlines()[0]}") from error
    # In a repository for good: a page of text has few colours, and with a palette takes a third.
    small = Image.open(io.BytesIO(png)).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    temporary = picture.with_name(f".{picture.name}.{os.getpid()}")
    try:
        small.save(temporary, format="PNG", optimize=True)
        temporary.replace(picture)
    finally:
        temporary.unlink(missing_ok=True)


def _png(report: Path, scheme: Literal["light", "dark"]) -> bytes:
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(_DEADLINE_MS)
        page.goto(report.absolute().as_uri())
        box = page.locator("#offsets").bounding_box()
        height = box["y"] + box["height"] + 24 if box else 900
        return page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})


def dark(picture: Path) -> Path:
    """Where the dark one stands."""
    return picture.with_stem(f"{picture.stem}-dark")
