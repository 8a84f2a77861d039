"""The live view, driven by textual's pilot; and the command where there is no terminal, or no textual."""

import asyncio
import subprocess
import sys

import pytest

from kcompat.cli_top import Interval
from kcompat.cli_top_screen import Screen
from tests.collector.test_top_rows import flow
from tests.kcompat.cli_tools import ROOT, environment, kcompat, one_line

RECORDS = [flow("curl", "7", read=1000, rtt=40), flow("nginx", "9", peer="10.0.0.3", read=5000, retransmits=3),
           flow("sshd", "11", peer="fd00:1234:5678:9abc:def0:1234:5678:9abc", written=90)]


def driven(*keys, size=(80, 24), take=None, **settings):
    """The screen after these keys, and what its table and its head said."""
    intervals = iter([Interval(RECORDS, 1.0, 0)])

    async def drive():
        screen = Screen(take or (lambda: next(intervals, None)), 2.0, **settings)
        async with screen.run_test(size=size) as pilot:
            for _ in range(200):
                if screen._last:
                    break
                await pilot.pause(0.05)
            for key in keys:
                await pilot.press(key)
            await pilot.pause()
            table = screen.query_one("DataTable")
            cells = [[str(cell) for cell in table.get_row_at(n)] for n in range(table.row_count)]
            return screen, cells, str(screen.query_one("#head").render()), table

    return asyncio.run(asyncio.wait_for(drive(), 120))


def test_the_busiest_flow_is_first_and_all_fits_80_columns():
    _, cells, head, table = driven()

    assert [row[0] for row in cells] == ["nginx", "curl", "sshd"]
    assert cells[0][2] == "10.0.0.3:80" and cells[0][-1] == "3"
    assert "3 flows" in head and max(map(len, head.splitlines())) <= 80
    assert table.virtual_size.width <= 80


@pytest.mark.parametrize("keys, first", [
    (("r",), "sshd"), (("s", "s"), "sshd"), (("s", "s", "s"), "curl"), (("s", "s", "s", "s"), "nginx")])
def test_keys_change_the_order(keys, first):
    assert driven(*keys)[1][0][0] == first


def test_v_goes_through_the_views():
    assert driven("v")[1][0][:2] == ["nginx", "9"]
    assert driven("v", "v")[1][0][0] == "10.0.0.3"
    assert driven("v", "v", "v")[1] == driven()[1]


def test_a_filter_is_typed_and_cleared():
    assert [row[0] for row in driven("slash", *"ngi", "enter")[1]] == ["nginx"]
    assert len(driven("slash", *"ngi", "enter", "escape")[1]) == 3
    # What is typed into the filter is no command.
    assert driven("slash", *"qrs", "enter")[0].having == "qrs"


def test_a_pause_holds_the_picture():
    screen, cells, head, _ = driven("space")

    assert "paused" in head and screen.is_paused and len(cells) == 3


def test_q_ends_it():
    assert driven("q")[0].return_value == 0


def test_what_ends_the_collector_ends_the_view():
    def take():
        raise ValueError("over")

    async def drive():
        screen = Screen(take, 1.0)
        async with screen.run_test() as pilot:
            for _ in range(200):
                if screen._error:
                    break
                await pilot.pause(0.05)
        return screen

    assert str(asyncio.run(drive())._error) == "over"


def test_without_a_terminal_it_says_what_to_do(tmp_path):
    done = kcompat("top", home=tmp_path)

    assert done.returncode == 2 and "--once" in done.stderr


def test_without_textual_it_says_how_to_get_it(tmp_path):
    blocked = ("import sys, os; sys.modules['textual'] = None\n"
               "sys.stdin.isatty = sys.stdout.isatty = lambda: True\n"
               "from kcompat.cli import main; main(['top'], prog_name='kcompat')")
    done = subprocess.run([sys.executable, "-c", blocked], env=environment(tmp_path), cwd=ROOT, text=True,
                          capture_output=True, timeout=60)

    assert done.returncode == 2 and "kcompat[top]" in one_line(done.stderr)
