"""The catalogue: names that find one field each, widths and paths that make sense."""

import re

import pytest

from kcompat.errors import KcompatError
from kcompat.fields import CATALOGUE, find, structs


def test_every_name_and_every_macro_finds_its_field():
    for field in CATALOGUE:
        assert find(field.name) is field
        assert find(field.macro) is field
        assert str(field) == field.name


def test_a_member_name_is_enough_where_one_struct_has_it():
    assert find("skc_dport").name == "sock_common.skc_dport"
    assert find("ns.inum").macro == "net__ns__inum"


def test_a_member_name_two_structs_have_is_refused_with_both():
    with pytest.raises(KcompatError, match=r"'daddr' is ambiguous: flowi4\.daddr, flowi6\.daddr"):
        find("daddr")


def test_an_unknown_name_is_quoted():
    with pytest.raises(KcompatError, match=r"'sock\.nope' is not in the catalogue"):
        find("sock.nope")


def test_structs_are_named_once_in_catalogue_order():
    assert structs()[:7] == ("sock_common", "sock", "inet_sock", "tcp_sock", "net", "flowi4", "flowi6")
    assert structs([find("srtt_us"), find("skc_num"), find("mdev_us")]) == ("tcp_sock", "sock_common")


@pytest.mark.parametrize("field", CATALOGUE, ids=str)
def test_a_field_is_well_formed(field):
    assert field.paths and all(re.fullmatch(r"\w+(\[\d\])?(\.\w+)*", path) for path in field.paths)
    assert field.width == field.widths[0] and set(field.widths) <= {1, 2, 4, 8, 16, 40}
    assert field.byte_order in ("host", "net")
    assert not (field.signed and field.byte_order == "net")


@pytest.mark.parametrize("name, width, order", [
    ("skc_dport", 2, "net"), ("skc_num", 2, "host"), ("inet_sport", 2, "net"), ("skc_v6_daddr", 16, "net"),
    ("bytes_acked", 8, "host"), ("skc_state", 1, "host"), ("flowi4.saddr", 4, "net"), ("flowi6.saddr", 16, "net")])
def test_widths_and_byte_orders_are_the_kernels(name, width, order):
    field = find(name)

    assert (field.width, field.byte_order) == (width, order)
