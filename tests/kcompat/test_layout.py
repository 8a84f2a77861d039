import json

import pytest

from kcompat.fields import CATALOGUE, Field
from kcompat.fields import find as field
from kcompat.layout import Array, Member, Opaque, Place, Scalar, Struct, agreed, find, misfit, offset_of
from kcompat.offsets import State
from tests.kcompat.c_sample import SHARED

INT, CHAR, EMPTY = Scalar(4), Scalar(1), Struct("", 0, ())


def struct(*members, name="sock", size=64):
    return Struct(name, size, tuple(members))


def test_find_descends_anonymous_members_and_dots_at_every_level():
    ports = Struct("", 4, (Member("sport", 0, Scalar(2)), Member("dport", 16, Scalar(2))))
    uli = Struct("flowi_uli", 4, (Member("", 0, Struct("", 4, (Member("ports", 0, ports),))),))
    flow = struct(Member("", 64, Struct("", 8, (Member("uli", 32, uli),))))
    assert find(flow, "uli.ports.dport") == Place(14, 2)


def test_find_indexes_arrays_within_their_count():
    tuples = Array(Struct("hash", 8, (Member("tuple", 32, INT),)), 2, 16)
    conn = struct(Member("tuplehash", 16 * 8, tuples))
    assert find(conn, "tuplehash[1].tuple") == Place(28, 4)
    assert find(conn, "tuplehash") == Place(16, 16)
    assert find(conn, "tuplehash[2].tuple") is None
    assert find(conn, "tuplehash.tuple") is None


def test_find_does_not_take_a_path_that_is_none():
    with pytest.raises(ValueError, match=r"a\.\.b"):
        find(struct(Member("a", 0, INT)), "a..b")


@pytest.mark.parametrize(("position", "bits", "place"), [
    (40, 8, Place(5, 1)), (48, 16, Place(6, 2)), (32, 32, Place(4, 4)), (43, 5, Place(5, 1, 3, 5)),
    (44, 8, Place(5, 2, 4, 8)), (40, 24, Place(5, 3, 0, 24)),
])
def test_only_bitfields_of_whole_bytes_become_plain_members(position, bits, place):
    assert find(struct(Member("b", position, INT, bits)), "b") == place


def test_the_pre_5_6_bitfields_of_sock_are_whole_bytes():
    sock = struct(Member("sk_protocol", 8 * 21, INT, 8), Member("sk_type", 8 * 22, INT, 16))
    protocol = offset_of(field("sock.sk_protocol"), sock, "btf")
    kind = offset_of(field("sock.sk_type"), sock, "btf")
    assert (protocol.offset, protocol.width, protocol.bit_offset) == (21, 1, None)
    assert (kind.offset, kind.width, kind.bit_offset) == (22, 2, None)


def test_another_bitfield_keeps_its_bits():
    answer = offset_of(Field("sock", "flag", "u8", (1,), ("flag",), "sock"), struct(Member("flag", 83, INT, 2)), "btf")
    assert (answer.offset, answer.width, answer.bit_offset, answer.bit_size) == (10, 1, 3, 2)


def test_a_bitfield_wider_than_the_field_is_unknown():
    answer = offset_of(Field("sock", "flag", "u8", (1,), ("flag",), "sock"), struct(Member("flag", 83, INT, 9)), "btf")
    assert answer.state is State.UNKNOWN


def test_paths_are_tried_newest_first():
    both = struct(Member("skc_net", 0, Struct("possible_net_t", 8, (Member("net", 0, Scalar(8)),))), name="sock_common")
    answer = offset_of(field("skc_net"), both, "btf")
    assert (answer.offset, answer.evidence["path"]) == (0, "skc_net.net")


def test_an_older_name_is_found():
    answer = offset_of(field("net.ns.inum"), struct(Member("proc_inum", 512, INT), name="net", size=100), "btf")
    assert (answer.offset, answer.evidence["path"]) == (64, "proc_inum")


def test_a_member_of_size_0_is_absent():
    answer = offset_of(field("skc_net"), struct(Member("skc_net", 0, EMPTY), name="sock_common"), "btf")
    assert answer.state is State.ABSENT


@pytest.mark.parametrize("name", ["sock_common.skc_cookie", "sock_common.skc_num"])
def test_a_member_a_whole_struct_has_not_is_absent(name):
    answer = offset_of(field(name), struct(Member("other", 0, INT), name="sock_common"), "btf")
    assert (answer.state, answer.reason) == (
        State.ABSENT, f"BTF has struct sock_common and no member {field(name).member}")


@pytest.mark.parametrize(("given", "reason"), [
    (None, "DWARF has no struct sock_common"),
    (Struct("sock_common", 0, None), "DWARF has struct sock_common only as a forward declaration"),
    (struct(Member("skc_cookie", 8, INT)), "DWARF has skc_cookie at offset 1 with 4 bytes, not 8"),
    (struct(Member("", 0, Struct("x", 8, None))), "DWARF: the members of struct x are not in it"),
])
def test_anything_less_than_a_whole_struct_is_unknown(given, reason):
    answer = offset_of(field("sock_common.skc_cookie"), given, "dwarf")
    assert (answer.state, answer.reason) == (State.UNKNOWN, reason)


def test_find_says_when_it_cannot_tell():
    with pytest.raises(Opaque, match="struct ns_common"):
        find(struct(Member("ns", 0, Struct("ns_common", 24, None))), "ns.inum")


def test_structs_of_one_name_must_agree():
    one, other = struct(Member("sk_mark", 0, INT)), struct(Member("sk_mark", 64, INT))
    assert agreed(field("sk_mark"), [one, one], "btf").offset == 0
    assert agreed(field("sk_mark"), [one, other], "btf").candidates == (0, 8)
    assert agreed(field("sk_mark"), [Struct("sock", 0, None), one], "btf").offset == 0
    assert agreed(field("sk_mark"), [], "btf").state is State.UNKNOWN


def test_a_subtree_shared_by_many_anonymous_members_is_searched_once():
    level = struct(Member("x", 0, CHAR), name="", size=1)
    for _ in range(60):
        level = struct(Member("", 0, level), Member("", 0, level), name="", size=1)
    assert find(level, "x") == Place(0, 1)
    assert find(level, "y") is None


def test_a_member_past_the_end_is_a_misfit():
    assert misfit([Member("a", 0, INT)], 4) is None
    assert misfit([Member("a", 8, INT)], 4) == "a"
    assert misfit([Member("b", 30, INT, 3)], 4) == "b"


def test_real_layouts_of_kernels_before_btf():
    path = SHARED / "data/layouts-pre-btf.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    wanted = {f.name: f for f in CATALOGUE if f.paths == (f.member,)}
    for release, structs in json.loads(path.read_text()).items():
        for name, given in structs.items():
            places = {m: at for m, at in given["members"].items() if isinstance(at, int) and f"{name}.{m}" in wanted}
            real = Struct(name, given["size"], tuple(
                Member(m, at * 8, Scalar(wanted[f"{name}.{m}"].width)) for m, at in places.items()))
            assert misfit(real.members, real.size) is None, release
            assert {m: offset_of(wanted[f"{name}.{m}"], real, "dwarf").offset for m in places} == places, release
