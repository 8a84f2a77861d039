"""`kcompat db serve` in Debian's Chromium: pages are opened and clicked as people do, and nothing complains."""

import os
import socket
import subprocess
import time

import httpx
import pytest

from ci.report_screenshot import browser
from ci.tools import missing
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from offset_db.db import Database
from tests.kcompat.cli_tools import COMMAND, environment

pytestmark = pytest.mark.skipif(
    os.environ.get("KCOMPAT_REQUIRE_KERNEL") != "1" and missing(["chromium"]) is not None, reason="no chromium here")
OLD = Kernel("a" * 40, "4.15.0-42-generic", "Linux version 4.15.0-42-generic", "x86_64")
NEW = Kernel("b" * 40, "6.1.0-56-arm64", "Linux version 6.1.0-56-arm64", "aarch64")
DEADLINE_MS = 90_000
QUERIES = {
    "kernels": ("?release=4.15", OLD.release), "fields_of_a_kernel": (f"?kernel={NEW.release}", "sock.sk_mark"),
    "where_a_field_lies": ("?field=sock.sk_mark", NEW.release),
    "places_of_a_field": ("?field=sock.sk_mark", "aarch64"), "disagreements": ("", "btf: 0, guess: 4"),
    "refuted": ("", "an event said no"),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a server of two kernels, with a disagreement and a refuted answer."""
    home = tmp_path_factory.mktemp("serve")
    with Database.open(home / "offsets.db") as db:
        db.record(OLD, [Offset.known(f, 8 * n, "btf") for n, f in enumerate(CATALOGUE)])
        db.record(OLD, [Offset.known(find("skc_daddr"), 4, "guess"), Offset.known(find("sk_type"), 1, "guess")])
        db.quarantine(OLD, find("sk_type"), "guess", "an event said no")
        db.record(NEW, [Offset.known(find("sk_mark"), 612, "btf")])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*COMMAND, "--db", str(home / "offsets.db"), "db", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment(home), cwd="/", stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_for(url, process):
    give_up = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < give_up:
        try:
            return httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"no answer from {url}")


@pytest.fixture(scope="module")
def chromium():
    with browser() as launched:
        yield launched


@pytest.fixture
def page(chromium, served):
    """A page whose `said` is all it complained of and `asked` all it requested."""
    opened = chromium.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(DEADLINE_MS)
    opened.said, opened.asked = [], []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("requestfailed", lambda request: opened.said.append(request.url))
    opened.on("request", lambda request: opened.asked.append(request.url))
    yield opened
    opened.close()


def sound(page, served):
    return page.said == [] and all(url.startswith(served) for url in page.asked)


def test_from_the_front_page_to_the_fields_of_a_kernel(page, served):
    page.goto(served)
    page.get_by_role("link", name="offsets", exact=True).first.click()
    page.get_by_role("link", name="kernel", exact=True).first.click()
    page.locator(f"tr:has-text('{OLD.release}') a").first.click()
    # "42 rows from kernel_id in offset", below the kernel's own row.
    page.locator("a[href*='/offset?kernel_id']").first.click()
    page.wait_for_url("**/offset?kernel_id=*")

    fields = set(page.locator("td.col-field").all_inner_texts())
    assert {"sock.sk_mark", "tcp_sock.srtt_us"} <= fields
    assert sound(page, served)


@pytest.mark.parametrize("name", QUERIES)
def test_a_canned_query_is_a_link_and_answers(page, served, name):
    arguments, told = QUERIES[name]
    page.goto(f"{served}/offsets")
    assert page.locator(f"a[href^='/offsets/{name}']").count() >= 1
    page.goto(f"{served}/offsets/{name}{arguments}")

    assert told in page.locator("table.rows-and-columns").inner_text()
    assert sound(page, served)


def test_a_build_id_leads_to_all_that_is_held_of_its_kernel(page, served):
    page.goto(f"{served}/offsets/where_a_field_lies?field=sock.sk_mark")
    page.get_by_role("link", name=OLD.build_id).click()
    page.wait_for_url("**/fields_of_a_kernel?*")

    assert page.locator("h1").inner_text() == "All that is held of one kernel"
    assert page.locator("td.col-field").count() == len(CATALOGUE) + 2
    assert "refuted: an event said no" in page.locator("td.col-reason").all_inner_texts()
    assert sound(page, served)


@pytest.mark.parametrize("table", ["window", "harvested"])
def test_kernel_memory_and_paths_of_the_server_are_not_shown(page, served, table):
    page.goto(f"{served}/offsets")
    assert page.locator(f"a[href='/offsets/{table}']").count() == 0
    assert page.goto(f"{served}/offsets/{table}").status == 403
