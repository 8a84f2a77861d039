"""Command lines out of pieces of memory: whole, once, and as the dataset's fields have them."""

import re
import struct

from hypothesis import given
from hypothesis import strategies as st

from collector.command_lines import LONGEST, Typed, assemble, record
from collector.record import to_json, to_line_protocol
from collector.redaction import NO_REDACTIONS, Redactions

PIECE, TEXT, PARTS = 64, 256, 17
NOON_NS = 1_700_000_000_123_456_789


def parts(text, lead=0, junk=b"\xaa", time_ns=1, thread=7, pid=5, uid=0, readable=None):
    """What the program would leave in the map of a line in memory: as bash.bpf.c does it."""
    memory = (junk * lead + text + b"\0").ljust(PARTS * TEXT + PIECE, junk)
    if readable is not None:
        memory = memory[:readable // PIECE * PIECE]
    made = []
    for number in range(PARTS):
        piece = memory[number * TEXT:(number + 1) * TEXT]
        made.append((struct.pack("<QII", time_ns, thread, number),
                     struct.pack("<IIII16s256s", pid, uid, lead, len(piece), b"bash", piece)))
        if len(piece) < TEXT or b"\0" in piece[-PIECE:]:
            break
    return made


@given(st.binary(max_size=LONGEST + 300).map(lambda text: text.replace(b"\0", b"x")), st.integers(0, PIECE - 1),
       st.sampled_from([b"\0", b"\xaa"]), st.randoms(use_true_random=False))
def test_a_line_is_whole_wherever_it_lies_in_memory(text, lead, junk, rng):
    pieces = parts(text, lead, junk)
    rng.shuffle(pieces)
    (line,) = assemble(pieces)

    assert line == Typed(1, 7, 5, 0, "bash", text[:LONGEST], len(text) > LONGEST)


def test_a_line_at_the_end_of_memory_is_whole():
    """The piece behind it cannot be read."""
    (line,) = assemble(parts(b"x" * 60, lead=3, readable=64))

    assert line.text == b"x" * 60 and not line.is_cut


def test_parts_without_their_first_are_a_line_that_is_cut():
    first, second, *_ = parts(b"x" * 600)
    (line,) = assemble([first, second])

    assert line.text == b"x" * 512 and line.is_cut


def test_lines_come_in_order_and_apart():
    made = assemble([*parts(b"second", time_ns=2), *parts(b"first", time_ns=1), *parts(b"other", time_ns=2, thread=8)])

    assert [line.text for line in made] == [b"first", b"second", b"other"]


def test_what_two_programs_see_at_once_is_one_line_and_typed_again_it_is_two():
    made = assemble([*parts(b"ls", time_ns=1000), *parts(b"ls", time_ns=6000), *parts(b"ls", time_ns=10**9)])

    assert [line.time_ns for line in made] == [1000, 10**9]


def test_a_record_in_full():
    made = record(Typed(1, 7, 5, 0, "bash", b"ls /", False), "root", "box", NOON_NS, NO_REDACTIONS)

    assert made.measurement == "bash" and made.time == NOON_NS
    assert made.tags == {"host": "box", "source": "bash"}
    assert {name: made.fields[name] for name in ("cmd", "pid", "user")} == {"cmd": "ls /", "pid": "5", "user": "root"}
    assert re.fullmatch(r"\S+T\S+(Z|[+-]\d\d:\d\d) pid:`5` user:`root` cmd:`ls /`", made.fields["message"])


@given(st.binary(max_size=80))
def test_any_bytes_are_a_record_any_sink_can_write_unless_blank(text):
    made = record(Typed(1, 7, 5, 0, "bash", text, False), "root", "box", NOON_NS, NO_REDACTIONS)

    assert (made is None) == (not text.decode(errors="backslashreplace").strip())
    if made:
        assert "\n" not in to_json(made) and "\n" not in to_line_protocol(made)
        assert made.fields["cmd"].encode() is not None


@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.binary(min_size=288, max_size=288)), max_size=8))
def test_any_parts_are_lines(pieces):
    for line in assemble(pieces):
        assert len(line.text) <= LONGEST and b"\0" not in line.text


def test_what_is_redacted_is_in_no_field():
    made = record(Typed(1, 7, 5, 0, "bash", b"login s3cret", False), "root", "box", NOON_NS,
                  Redactions.parse(["command=s3cret"]))

    assert made.fields["cmd"] == "login ***" and "s3cret" not in to_json(made)
