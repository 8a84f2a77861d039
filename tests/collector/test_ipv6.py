from types import SimpleNamespace

import pytest

from collector.datasets import ipv6
from collector.datasets.httpflow_running import HttpflowRunning
from collector.datasets.ipv6 import reads_ipv6
from collector.datasets.netflow_running import NetflowRunning
from kcompat.errors import UnknownField
from kcompat.fields import find
from kcompat.offsets import Offset, Offsets

REMOTE, LOCAL = map(find, ("skc_v6_daddr", "skc_v6_rcv_saddr"))
KNOWN = Offset.known(REMOTE, 56, "btf")


def of_local(offset):
    return Offsets([KNOWN, offset])


def test_known_addresses_are_read():
    assert reads_ipv6("netflow", of_local(Offset.known(LOCAL, 72, "btf")))


@pytest.mark.parametrize("disputed", [True, False])
def test_an_unknown_address_is_not_an_absent_one(monkeypatch, disputed):
    monkeypatch.setattr(ipv6, "has_ipv6", lambda: True)
    with pytest.raises(UnknownField, match=r"netflow .*skc_v6_rcv_saddr \(sources disagree\)"):
        reads_ipv6("netflow", of_local(Offset.unknown(LOCAL, "db", "sources disagree", disputed=disputed)))


def test_what_nobody_spoke_of_is_unknown_too(monkeypatch):
    monkeypatch.setattr(ipv6, "has_ipv6", lambda: True)
    with pytest.raises(UnknownField, match="no known offset for"):
        reads_ipv6("netflow", Offsets())


def test_where_no_ipv6_socket_can_be_made_nobody_misses_it(monkeypatch):
    monkeypatch.setattr(ipv6, "has_ipv6", lambda: False)
    assert not reads_ipv6("netflow", Offsets(Offset.unknown(f, "guess", "nothing to look at") for f in (REMOTE, LOCAL)))


def test_a_kernel_built_without_ipv6_is_not_asked(monkeypatch):
    monkeypatch.setattr(ipv6, "has_ipv6", lambda: pytest.fail("asked"))
    assert not reads_ipv6("netflow", Offsets(Offset.absent(f, "btf", "no such member") for f in (REMOTE, LOCAL)))


@pytest.mark.parametrize("running", [NetflowRunning, HttpflowRunning])
def test_nothing_is_compiled_where_it_is_refused(monkeypatch, running):
    monkeypatch.setattr(ipv6, "has_ipv6", lambda: True)
    with pytest.raises(UnknownField, match="refuted"):
        running(SimpleNamespace(offsets=of_local(Offset.unknown(LOCAL, "btf", "refuted by an event"))))
