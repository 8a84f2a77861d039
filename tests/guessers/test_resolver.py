"""The guess as a source: what it is not asked to do for some fields alone."""

from guessers.resolver import GuessResolver
from kcompat.engine import resolve
from kcompat.fields import CONNTRACK, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State

SPARED = [find("nf_conn.status"), find("nf_conn.ct_net")]


class Known:
    name = "db"

    def resolve(self, kernel, wanted):
        yield Offset.known(find("skc_dport"), 12, "db")


def test_no_guess_is_made_for_what_is_spared_alone():
    guesser = GuessResolver()
    guesser.spared = SPARED
    got = resolve(Kernel.running(), [find("skc_dport"), *SPARED], [Known(), guesser]).offsets
    assert guesser.last is None
    assert got[find("skc_dport")].state is State.KNOWN
    # Of no source: it is not written down, and asked for again.
    assert {(got[f].state, got[f].source) for f in SPARED} == {(State.UNKNOWN, "none")}
    assert all(CONNTRACK in got[f].reason for f in SPARED)
