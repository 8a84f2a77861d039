"""resolve(): each source is asked only for what is still missing, and the best answer stands."""

from kcompat.engine import resolve
from kcompat.errors import Missing
from kcompat.fields import find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State

KERNEL = Kernel("ab" * 20, "6.1.0-test", "Linux version 6.1.0-test", "x86_64")
DPORT, SRTT, INUM = WANTED = (find("skc_dport"), find("srtt_us"), find("net.ns.inum"))


class Source:
    def __init__(self, name, *answers, error=None):
        self.name, self.answers, self.error, self.asked = name, answers, error, []

    def resolve(self, kernel, wanted):
        self.asked.append(tuple(wanted))
        yield from (a for a in self.answers if a.field in wanted)
        if self.error:
            raise self.error


def test_a_later_source_is_asked_only_for_what_is_missing():
    first = Source("db", Offset.known(SRTT, 7, "db"))
    second = Source("btf", Offset.known(DPORT, 12, "btf"), Offset.known(INUM, 3, "btf"))

    got = resolve(KERNEL, WANTED, [first, second])

    assert second.asked == [(DPORT, INUM)]
    assert [(o.source, o.offset) for o in got.offsets.values()] == [("btf", 12), ("db", 7), ("btf", 3)]
    assert [(a.source, a.asked, a.answered) for a in got.attempts] == [("db", 3, 1), ("btf", 2, 2)]


def test_nobody_is_asked_once_all_is_known():
    second = Source("guess")

    got = resolve(KERNEL, [DPORT], [Source("btf", Offset.known(DPORT, 12, "btf")), second])

    assert second.asked == [] and len(got.attempts) == 1


def test_absent_is_an_answer():
    second = Source("guess", Offset.known(DPORT, 12, "guess"))

    got = resolve(KERNEL, [DPORT], [Source("btf", Offset.absent(DPORT, "btf", "no such member")), second])

    assert got.offsets[DPORT].state is State.ABSENT and second.asked == []


def test_unknown_is_no_answer_and_gives_way():
    first = Source("btf", Offset.unknown(DPORT, "btf", "cannot tell"))

    got = resolve(KERNEL, [DPORT], [first, Source("guess", Offset.known(DPORT, 12, "guess"))])

    assert got.offsets[DPORT].source == "guess" and got.attempts[0].answered == 0


def test_a_disputed_field_stays_unknown_whatever_later_sources_say():
    first = Source("db", Offset.unknown(DPORT, "db", "sources disagree", disputed=True))
    second = Source("btf", Offset.known(DPORT, 12, "btf"))

    got = resolve(KERNEL, [DPORT, SRTT], [first, second])

    assert (got.offsets[DPORT].state, got.offsets[DPORT].reason) == (State.UNKNOWN, "sources disagree")
    assert second.asked == [(SRTT,)]


def test_a_source_that_fails_is_a_reason_and_the_next_is_asked():
    got = resolve(KERNEL, [DPORT, SRTT], [Source("btf", error=Missing("no BTF")),
                                          Source("guess", Offset.known(DPORT, 12, "guess"))])

    assert got.offsets[DPORT].offset == 12
    assert got.attempts[0].reason == "no BTF"
    assert got.offsets[SRTT].reason == "btf: no BTF" and got.offsets[SRTT].source == "none"


def test_what_a_source_said_before_it_failed_is_kept():
    got = resolve(KERNEL, WANTED, [Source("btf", Offset.known(DPORT, 12, "btf"), error=Missing("torn"))])

    assert got.offsets[DPORT].offset == 12
    assert [o.state for o in got.offsets.values()] == ["known", "unknown", "unknown"]


def test_a_field_nobody_spoke_of_is_unknown_with_a_reason():
    got = resolve(KERNEL, [DPORT], [])

    assert (got.offsets[DPORT].state, got.offsets[DPORT].reason) == (State.UNKNOWN, "no source knows it")
    assert got.attempts == ()


def test_answers_come_in_the_order_asked_for():
    source = Source("btf", *(Offset.known(f, 8, "btf") for f in WANTED))

    assert list(resolve(KERNEL, (INUM, DPORT), [source]).offsets) == [INUM, DPORT]
