"""The canary in the real programs: offsets that are off by a field never get as far as a record."""

import os
import re
import threading

import pytest

from collector import pipeline
from collector.canary import Refuted
from collector.config import Options
from kcompat.cli_memory import quarantine
from kcompat.cli_sources import Request
from kcompat.fields import find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, Offsets
from offset_db.db import Database

OPTIONS = Options("box", interval_s=1, loopback=True)


class Sink:
    def __init__(self):
        self.records = []

    def write(self, records):
        self.records += records


def collect(offsets, sink):
    stop = threading.Event()
    stop.set()
    return pipeline.collect(OPTIONS, offsets, sink, stop=stop)


def shifted(oracle, name):
    """Its offset moved by its own width: where in nearly every kernel another field lies."""
    field = find(name)
    return Offsets([Offset.known(f, o.offset + o.width, "test", width=o.width) if f is field else o
                    for f, o in oracle.items()])


@pytest.mark.thorough  # in guests the collector of the matrix is begun, and so proved
def test_true_offsets_pass_and_the_canary_is_in_no_record(oracle):
    sink = Sink()
    collect(oracle, sink)
    # Another collector on this machine has a canary too.
    assert not [r for r in sink.records if r.tags["pid"] == str(os.getpid())
                and re.fullmatch("[0-9a-f]{14}", r.tags["process_name"])]


@pytest.mark.thorough  # shifted, each makes another program, which a guest would have to compile
@pytest.mark.parametrize("name", ["skc_dport", "skc_daddr", "ns.inum"])
def test_a_shifted_offset_is_refuted_and_blamed_before_anything_is_published(oracle, name):
    sink = Sink()
    with pytest.raises(Refuted, match="netflow is off: a connection of our own came out wrong") as refuted:
        collect(shifted(oracle, name), sink)
    assert find(name) in refuted.value.fields
    assert sink.records == []


@pytest.mark.thorough
def test_programs_that_cannot_tell_whose_a_socket_is_are_refuted(oracle):
    """What stands where the family is looked for now and then passes for one: then there are flows, of nobody."""
    sink = Sink()
    with pytest.raises(Refuted, match="netflow is off"):
        collect(shifted(oracle, "skc_family"), sink)
    assert sink.records == []


def test_quarantine_keeps_the_answer_and_its_reason(tmp_path):
    kernel, field = Kernel.running(), find("skc_dport")
    path = tmp_path / "offsets.db"
    with Database.open(path) as db:
        db.record(kernel, [Offset.known(field, 12, "guess"), Offset.known(find("skc_num"), 14, "guess")])
    quarantine(Request(db=path), kernel, (field,), "it came out wrong")
    with Database.open(path) as db:
        held = {s.offset.field: (s.offset.offset, s.quarantine_reason) for s in db.offsets(kernel)}
    assert held == {field: (12, "it came out wrong"), find("skc_num"): (14, None)}
