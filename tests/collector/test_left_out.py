"""Events that the kernel kept from programs are losses where nothing catches up with them."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest

from collector.datasets import httpflow_hooks, netflow_hooks
from collector.datasets.httpflow import Httpflow
from collector.datasets.netflow import Netflow
from collector.http_exchanges import HttpConnections
from collector.tls_hooks import PROGRAMS


def programs(hooks):
    return {hook.program for table in hooks.values() for hook in table}


def losses_of_netflow(left_out):
    """Without a kernel: what programs of these names were kept from."""
    made = object.__new__(Netflow)
    made.loaded = SimpleNamespace(maps={"losses": {}}, left_out=left_out.get)
    made.losses, made._warned_s, made._warned_of = {}, math.inf, Counter()
    made._count_losses()
    return Counter(made.losses)


def losses_of_httpflow(left_out):
    made = object.__new__(Httpflow)
    made.loaded = SimpleNamespace(maps={"losses": {}}, left_out=left_out.get)
    made._rings, made._connections, made._faults = SimpleNamespace(lost=0), HttpConnections(), Counter()
    return Counter(made.losses)


@pytest.mark.parametrize("program", sorted(programs(netflow_hooks.HOOKS)))
def test_of_netflow_only_what_nothing_catches_up_with(program):
    lost = losses_of_netflow({program: 3})
    assert lost["events"] == lost.total() == (3 if program in netflow_hooks.DATAGRAMS else 0)


def test_the_programs_that_count_datagrams_are_hooked():
    assert programs(netflow_hooks.HOOKS).issuperset(netflow_hooks.DATAGRAMS)


@pytest.mark.parametrize("program", sorted(programs(httpflow_hooks.HOOKS) | PROGRAMS))
def test_of_httpflow_all(program):
    first = program.removesuffix("__again")
    lost = losses_of_httpflow({first: 0, program: 3})
    assert lost["http events"] == lost.total() == (3 if program == first else 0)


def test_of_httpflow_only_what_the_second_try_missed_too():
    first = "rawtp__sock_send_length"
    assert losses_of_httpflow({first: 3, f"{first}__again": 1})["http events"] == 1


def test_where_no_program_is_loaded_nothing_is_left_out():
    assert not losses_of_netflow({}) - Counter() and not losses_of_httpflow({}) - Counter()
