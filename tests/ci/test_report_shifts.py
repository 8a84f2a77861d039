"""What the picture compares with what, and what it calls a shift."""

import pytest

from ci.report_facts import count, why
from ci.report_shifts import picture
from tests.ci import matrix_data as data


def references(kernels):
    return {c.kernel.name: c.reference and c.reference.name for c in picture(kernels).columns}


def cell(kernels, name, kernel):
    drawn = picture(kernels)
    (row,) = (row for row in drawn.rows if row.name == name)
    return next(c for c, column in zip(row.cells, drawn.columns, strict=True) if column.kernel.name == kernel)


def test_a_generic_kernel_is_beside_the_one_before_and_others_beside_the_generic_of_their_version():
    found = references(data.whole().kernels)

    assert [found[name] for name in ("5.10", "6.1", "6.12", "6.18")] == [None, "5.10", "6.1", "6.12"]
    assert (found["5.10-rt"], found["6.12-arm64"], found["5.10-noipv6"]) == ("5.10", "6.12", "5.10")
    assert found["given-6.1-fleet"] == "6.1"


def test_without_a_generic_kernel_the_first_of_a_version_is_the_reference():
    kernels = [data.kernel(name, origin="built", flavour="own") for name in ("6.12-a", "6.12-b", "6.12-c")]

    assert references(kernels) == {"6.12-a": None, "6.12-b": "6.12-a", "6.12-c": "6.12-a"}


@pytest.mark.parametrize(("name", "kernel", "kind", "delta"), [
    ("sock_common.skc_daddr", "6.1", "same", 0),
    ("sock.sk_sndbuf", "6.1", "moved", 8),
    ("sock.sk_sndbuf", "5.10-rt", "moved", 40),
    ("tcp_sock.segs_in", "7.2", "moved", -64),
    ("sock.sk_mark", "6.1", "wrong", 8),
    ("tcp_sock.segs_in", "6.1", "ambiguous", 64),
    ("net.ns.inum", "6.1", "unknown", None),
    ("net.ns.inum", "6.12", "first", None),
    ("flowi6.flowi_mark", "6.1", "absent", None),
    ("flowi6.flowi_mark", "6.12", "new", None),
    ("sock.sk_mark", "6.17", "lost", None),
])
def test_cells(name, kernel, kind, delta):
    found = cell(data.whole().kernels, name, kernel)

    assert (found.kind, found.delta) == (kind, delta)


def test_a_wrong_field_is_drawn_where_the_judge_has_it():
    found = cell([data.failing()], "sock.sk_mark", "6.1")

    assert (found.place, found.field.offset) == (508, 500)


def test_every_field_is_counted_once():
    assert count([data.failing()]) == {"right": 43, "wrong": 1, "ambiguous": 1, "unknown": 1}


def test_one_fault_of_many_checks_is_said_once():
    assert why(data.lost()).count("Kernel panic") == 1
    assert why(data.kernel("6.12")) == ""
    assert why(data.kernel("6.12", checks=())) == "asked: nothing was asked of it"
