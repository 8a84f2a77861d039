"""The HTML report in Debian's Chromium, light and dark: what only a browser knows."""

import os

import pytest

from ci.report import write_html
from ci.report_screenshot import WIDTH, browser
from ci.tools import missing
from tests.ci import matrix_data as data
from tests.ci.test_report_junit import RUNS

pytestmark = pytest.mark.skipif(
    os.environ.get("KCOMPAT_REQUIRE_KERNEL") != "1" and missing(["chromium"]) is not None, reason="no chromium here")
SCHEMES = ("light", "dark")
CONTRAST = (data.HERE / "contrast.js").read_text()


@pytest.fixture(scope="module")
def chromium():
    with browser() as launched:
        yield launched


@pytest.fixture
def opened(chromium, tmp_path):
    """Opens the report of a run; `page.said` is all it logged and `page.asked` all it requested."""

    def open_(result, scheme="light", width=WIDTH):
        write_html(result, tmp_path / "report.html")
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("dialog", lambda dialog: page.said.append(dialog.message))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        return page

    return open_


def colour(page, selector, of):
    return page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{of}")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("run", RUNS)
def test_it_asks_for_nothing_complains_of_nothing_and_fits(opened, run, scheme):
    page = opened(RUNS[run], scheme)

    assert page.said == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in page.asked if url.startswith("file:")]) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_can_be_read(opened, scheme):
    page = opened(data.whole(), scheme)
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")

    assert page.evaluate(CONTRAST) == []


def test_light_and_dark_differ_and_the_outcomes_within_each(opened):
    seen = {}
    for scheme in SCHEMES:
        page = opened(data.whole(), scheme)
        cells = [colour(page, f".grid td.{kind}", "backgroundColor") for kind in ("same", "up1", "down1", "wrong")]
        seen[scheme] = [colour(page, "body", "backgroundColor"), *cells]

    assert all(len(set(colours)) == 5 for colours in seen.values())
    assert set(seen["light"]).isdisjoint(seen["dark"])


def test_twenty_six_kernels_fit_without_scrolling(opened):
    kernels = data.whole().kernels
    more = [data.kernel(f"6.12-more-{n}", origin="given") for n in range(26 - len(kernels))]

    page = opened(data.matrix(*kernels, *more))

    grid = page.locator("table.grid").bounding_box()
    assert grid["x"] >= 0 and grid["x"] + grid["width"] <= WIDTH


@pytest.mark.parametrize("count", [1, 19, 60])
def test_a_telephone_scrolls_the_tables_and_not_the_page(opened, count):
    page = opened(data.matrix(*(data.kernel(f"6.12-{n}") for n in range(count))), width=400)

    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_only_what_differs_can_be_shown_without_a_script(opened):
    page = opened(data.matrix(*(data.kernel(v, v) for v in ("6.1", "6.12", "6.17", "6.18", "7.2"))))
    still, moving = page.get_by_text("skc_daddr", exact=True), page.get_by_text("sk_mark", exact=True)
    assert still.is_visible()

    page.locator("#only-moving").check()

    assert not still.is_visible() and moving.is_visible()


def test_a_kernels_link_opens_what_is_said_of_it(opened):
    page = opened(data.whole())
    console = page.locator("details", has_text="Why the arm64 kernel is slow")
    assert not console.get_by_text("Why the arm64 kernel is slow").is_visible()

    page.locator(".matrix a", has_text="6.12-arm64").click()

    page.get_by_text("Why the arm64 kernel is slow").wait_for(state="visible", timeout=10_000)


def test_a_keyboard_reaches_the_tables(opened):
    page = opened(data.whole())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"

    regions = page.get_by_role("region")

    assert {regions.nth(n).get_attribute("tabindex") for n in range(regions.count())} == {"0"}
    assert page.get_by_role("rowheader", name="sk_mark", exact=True).count() == 1
    assert page.get_by_role("columnheader", name="6.12-rt").count() >= 1
