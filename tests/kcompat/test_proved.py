"""Raw BTF of nobody knows which kernel: only what an event bears out is answered."""

import pytest

from kcompat.errors import BadInput
from kcompat.fields import find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State
from kcompat.proved import BORNE_OUT, Proved

DADDR, DPORT, COOKIE = find("skc_daddr"), find("skc_dport"), find("skc_cookie")
KERNEL = Kernel("ab" * 20, "5.4.0", "", "x86_64")


class Told:
    name = "btf"

    def resolve(self, kernel, wanted):
        return [Offset.known(DADDR, 0, "btf"), Offset.known(DPORT, 12, "btf"),
                Offset.absent(COOKIE, "btf", "no such member")]


def ask(tmp_path, held):
    seen = []
    proved = Proved(Told(), tmp_path / "some.btf", lambda kernel, offsets: seen.append(offsets) or held)
    answers = {o.field: o for o in proved.resolve(KERNEL, (DADDR, DPORT, COOKIE))}
    assert [{o.field for o in offsets} for offsets in seen] == [{DADDR, DPORT}]
    return answers


def test_what_is_borne_out_is_known_and_the_rest_is_not(tmp_path):
    answers = ask(tmp_path, {DADDR: True})
    assert (answers[DADDR].state, answers[DADDR].offset, answers[DADDR].confidence) == (State.KNOWN, 0, BORNE_OUT)
    assert answers[DADDR].evidence["tested"] is True
    for field in (DPORT, COOKIE):
        assert answers[field].state is State.UNKNOWN
        assert answers[field].reason == "some.btf does not say which kernel it is of, and no event has shown this"


def test_one_refuted_refutes_the_file(tmp_path):
    with pytest.raises(BadInput, match=r"some\.btf: not of the running kernel: one event refutes 1 .*skc_dport"):
        ask(tmp_path, {DADDR: True, DPORT: False})
