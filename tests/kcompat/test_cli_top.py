"""The live view, driven by textual's pilot; and the command where there is no terminal, or no textual."""

import asyncio
import subprocess
import sys
import time
from typing import NamedTuple

from collector.top_rows import rows
from kcompat.cli_top import Interval, _table
from kcompat.cli_top_screen import Screen
from tests.collector.test_top_rows import flow
from tests.kcompat.cli_tools import ROOT, environment, kcompat, one_line

RECORDS = [flow("curl", "7", read=1000, rtt=40), flow("nginx", "9", peer="10.0.0.3", read=5000, retransmits=3),
           flow("sshd", "11", peer="fd00:1234:5678:9abc:def0:1234:5678:9abc", written=90)]


class Picture(NamedTuple):
    screen: Screen
    cells: list
    head: str
    table: object


def picture(screen):
    table = screen.query_one("DataTable")
    cells = [[str(cell) for cell in table.get_row_at(n)] for n in range(table.row_count)]
    return Picture(screen, cells, str(screen.query_one("#head").render()), table)


def driven(*steps, size=(80, 24)):
    """The last picture, after steps of keys, each with what must be seen before the next: a key takes its time."""
    intervals = iter([Interval(RECORDS, 1.0, 0)])

    async def drive():
        screen = Screen(lambda: next(intervals, None), 2.0)
        async with screen.run_test(size=size) as pilot:
            for keys, good in (((), lambda seen: len(seen.cells) == 3), *steps):
                for key in keys:
                    await pilot.press(key)
                deadline = time.monotonic() + 60
                while not good(seen := picture(screen)):
                    assert time.monotonic() < deadline, (keys, seen.cells, seen.head)
                    await pilot.pause(0.05)
            return seen

    return asyncio.run(drive())


def first(name):
    return lambda seen: bool(seen.cells) and seen.cells[0][0] == name


def test_the_busiest_flow_is_first_and_all_fits_80_columns():
    seen = driven(((), lambda seen: seen.table.virtual_size.height > 3))

    assert [row[0] for row in seen.cells] == ["nginx", "curl", "sshd"]
    assert seen.cells[0][2] == "10.0.0.3:80" and seen.cells[0][-1] == "3"
    assert "3 flows" in seen.head and max(map(len, seen.head.splitlines())) <= 80
    assert seen.table.virtual_size.width <= 80


def test_keys_change_the_order():
    driven(("r", first("sshd")), ("r", first("nginx")), ("ss", first("sshd")), ("s", first("curl")),
           ("s", first("nginx")))


def test_v_goes_through_the_views():
    driven(("v", lambda seen: seen.cells[0][:2] == ["nginx", "9"]), ("v", first("10.0.0.3")),
           ("v", lambda seen: seen.cells[0][2] == "10.0.0.3:80"))


def test_a_filter_is_typed_and_cleared():
    """What is typed into it is no command: q would end it, r turn it round."""
    driven((("slash", *"ngi", "enter"), lambda seen: [row[0] for row in seen.cells] == ["nginx"]),
           (("escape",), lambda seen: len(seen.cells) == 3),
           (("slash", *"qr"), lambda seen: not seen.cells and "'qr'" in seen.head and not seen.screen.is_reversed))


def test_a_pause_holds_the_picture():
    driven((("space",), lambda seen: "paused" in seen.head and len(seen.cells) == 3),
           (("space",), lambda seen: "paused" not in seen.head))


def test_q_ends_it():
    assert driven(("q", lambda seen: seen.screen.return_value == 0)).screen.return_value == 0


def test_what_ends_the_collector_ends_the_view():
    def take():
        raise ValueError("over")

    async def drive():
        screen = Screen(take, 1.0)
        async with screen.run_test() as pilot:
            deadline = time.monotonic() + 60
            while not screen._error and time.monotonic() < deadline:
                await pilot.pause(0.05)
        return screen

    assert str(asyncio.run(drive())._error) == "over"


def test_off_a_terminal_a_long_name_is_folded_and_not_cut():
    name = "a-name-that-is-longer-than-any-line-of-eighty-columns." * 2 + "example"
    said = _table(rows([flow("curl", "7", read=1000, peer=name)], "peer", 1.0), "peer")

    assert "…" not in said and max(map(len, said.splitlines())) < 80
    assert name in "".join(line.split()[0] for line in said.splitlines()[1:])


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
