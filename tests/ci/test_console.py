"""The console log is bounded, and its end survives a flood."""

import io

from hypothesis import given
from hypothesis import strategies as st

from ci.console import Console


class Kept(io.BytesIO):
    def close(self):
        self.kept = self.getvalue()


def feed(chunks, limit, tail):
    file = Kept()
    console = Console(file, limit, tail)
    for chunk in chunks:
        console.feed(chunk)
    console.close()
    return file.kept, console


@given(st.lists(st.binary(max_size=50)), st.integers(0, 60), st.integers(1, 40))
def test_never_more_than_limit_and_tail(chunks, limit, tail):
    kept, _ = feed(chunks, limit, tail)
    whole = b"".join(chunks)
    assert kept.startswith(whole[:limit])
    assert len(kept) <= limit + tail + 60
    if len(whole) <= limit:
        assert kept == whole
    elif tail:
        assert kept.endswith(whole[limit:][-tail:])


def test_a_flood_says_how_much_was_left_out():
    kept, console = feed([b"head", b"x" * 100, b"end"], limit=4, tail=10)
    assert kept == b"head\n[ci: log full, 93 bytes left out]\nxxxxxxxend"
    assert console.tail == "xxxxxxxend"
