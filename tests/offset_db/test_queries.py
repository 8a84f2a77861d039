"""Questions about many kernels, and what verify finds impossible."""

import sqlite3

import pytest

from kcompat.btf import RUNNING, BtfResolver
from kcompat.errors import KcompatError
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State
from offset_db import queries
from offset_db.db import Database
from offset_db.queries_verify import impossible, verify
from offset_db.rows import Remembered, Stored

DADDR, SRTT, COOKIE = find("skc_daddr"), find("srtt_us"), find("skc_cookie")


@pytest.fixture
def fleet(db):
    """Three versions; the field moves once, and one kernel has no cookie."""
    builds = (("4.15.0-9-generic", "x86_64", 1600), ("4.15.0-10-generic", "x86_64", 1600),
              ("4.19.0-1-amd64", "x86_64", 1608), ("4.15.0-9-generic", "aarch64", 1600))
    for n, (release, machine, at) in enumerate(builds):
        cookie = Offset.absent(COOKIE, "btf", "no") if n == 2 else Offset.known(COOKIE, 88, "btf")
        db.record(Kernel(f"{n}" * 40, release, "", machine), [
            Offset.known(SRTT, at, "btf"), Offset.known(SRTT, at, "guess"), cookie])
    return db


def releases(found):
    return [k.release for k in found]


def test_kernels_are_ordered_by_version_and_filtered(fleet):
    def listed(*wanted, **more):
        return [(one.kernel.release, one.known) for one in queries.kernels(fleet, queries.Filter(*wanted, **more))]

    assert listed("4.15*", "x86_64") == [("4.15.0-9-generic", 2), ("4.15.0-10-generic", 2)]
    assert listed(distribution="debian") == [("4.19.0-1-amd64", 1)]
    assert listed(field=COOKIE, state=State.ABSENT) == [("4.19.0-1-amd64", 1)]
    assert len(listed(field=DADDR, state=State.UNKNOWN)) == 4 and listed(field=DADDR) == []


def test_where_finds_places_and_absence(fleet):
    assert releases(queries.where(fleet, SRTT, "1608")) == ["4.19.0-1-amd64"]
    assert releases(queries.where(fleet, COOKIE, "absent")) == ["4.19.0-1-amd64"]
    assert queries.where(fleet, SRTT, "12") == []


def test_history_counts_a_kernel_once_however_many_sources_agree(fleet):
    steps = [(s.machine, s.version, s.offset, s.kernels, s.last) for s in queries.history(fleet, SRTT)]

    assert steps == [("aarch64", "4.15", 1600, 1, "4.15.0-9-generic"), ("x86_64", "4.15", 1600, 2, "4.15.0-10-generic"),
                     ("x86_64", "4.19", 1608, 1, "4.19.0-1-amd64")]


def test_a_refuted_answer_is_no_history(fleet):
    kernel = queries.one(fleet, "2" * 40).kernel
    for source in ("btf", "guess"):
        fleet.quarantine(kernel, SRTT, source, "wrong")

    assert {s.offset for s in queries.history(fleet, SRTT)} == {1600}


def test_diff_tells_what_moved_and_what_only_one_has(fleet):
    found = queries.diff(queries.one(fleet, "111111"), queries.one(fleet, "4.19.0-1-amd64"))

    assert {d.field: (d.before.offset, d.after.offset) for d in found} == {SRTT: (1600, 1608), COOKIE: (88, None)}


@pytest.mark.parametrize("name, told", [("4.15.0-9-generic", "is 2 kernels"), ("9.9", "holds nothing of kernel '9.9'")])
def test_a_name_must_be_one_kernels(fleet, name, told):
    with pytest.raises(KcompatError, match=told):
        queries.one(fleet, name)


@pytest.mark.parametrize("offsets, told", [
    ([Offset.known(DADDR, 1 << 20, "btf")], "no struct is that large"),
    ([Offset.known(DADDR, 0, "btf", width=2)], "with 2 bytes, not 4"),
    ([Offset.known(DADDR, 0, "btf"), Offset.known(find("skc_rcv_saddr"), 2, "btf")], "overlaps"),
    ([Offset.known(find("msg_iter"), 16, "btf"), Offset.known(find("msg_iter.count"), 56, "btf"),
      Offset.known(find("msg_iter.iov"), 52, "btf")], "overlaps"),
    ([Offset.known(find("msg_iter.iov"), 32, "btf"), Offset.known(find("msg_iter.ubuf"), 36, "btf")], "overlaps"),
    ([Offset.known(find("sk_mark"), 8, "btf"), Offset.known(DADDR, 100, "btf")], "which comes first in every kernel"),
])
def test_verify_finds_what_no_compiler_would_lay_out(kernel, offsets, told):
    faults = list(impossible(Remembered(kernel, "", "", tuple(Stored(o, "") for o in offsets))))

    assert faults and all(told in fault.fault for fault in faults)


def test_a_part_lies_in_its_whole_and_a_union_at_one_place(kernel):
    offsets = [Offset.known(find(name), offset, "btf") for name, offset in (
        ("msg_iter", 16), ("msg_iter.iov", 32), ("msg_iter.ubuf", 32), ("msg_iter.count", 40))]

    assert not list(impossible(Remembered(kernel, "", "", tuple(Stored(o, "") for o in offsets))))


def test_sources_are_not_held_against_each_other(kernel):
    offsets = [Offset.known(DADDR, 0, "btf"), Offset.known(find("skc_rcv_saddr"), 2, "guess")]

    assert not list(impossible(Remembered(kernel, "", "", tuple(Stored(o, "") for o in offsets))))


@pytest.mark.skipif(not RUNNING.exists(), reason="no BTF here")
def test_a_real_kernel_is_possible(db):
    kernel = Kernel.running()
    db.record(kernel, BtfResolver().resolve(kernel, CATALOGUE))

    assert verify(db) == []


@pytest.mark.parametrize("damage, told", [
    ("UPDATE offset SET candidates = 'no JSON' WHERE source = 'btf'", "the row of sock_common.skc_cookie from 'btf'"),
    ("DELETE FROM kernel WHERE release LIKE '4.19%'", "a row of a kernel that is not there"),
])
def test_verify_finds_damage_in_the_file(fleet, damage, told):
    fleet.close()
    with sqlite3.connect(fleet.path) as other:
        other.execute("PRAGMA ignore_check_constraints = ON")
        other.execute(damage)
    with Database.open(fleet.path, read_only=True) as db:
        assert any(told in fault.fault for fault in verify(db))


def test_vacuum_gives_room_back(fleet):
    with sqlite3.connect(fleet.path) as other:
        other.execute("CREATE TABLE big AS SELECT zeroblob(1000000) AS b")
        other.execute("DROP TABLE big")
    before = fleet.path.stat().st_size + fleet.path.with_name("offsets.db-wal").stat().st_size

    fleet.vacuum()

    assert fleet.path.stat().st_size < before / 2 and len(fleet.kernels()) == 4
