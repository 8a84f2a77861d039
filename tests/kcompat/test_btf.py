import json
import re
import struct
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcompat.btf import RUNNING, BtfResolver, load
from kcompat.btf_types import Btf
from kcompat.errors import BadInput, KcompatError, Missing
from kcompat.fields import CATALOGUE, Field, structs
from kcompat.layout import Place, agreed, find
from kcompat.offsets import State
from tests.kcompat.btf_builder import BtfBuilder, every_kind
from tests.kcompat.c_sample import BITS, PLAIN, SHARED, compiled, in_bits, need, run, said_by_program
from tests.kcompat.elf_builder import elf

ORDERS = pytest.mark.parametrize("order", ["<", ">"])
BLOB = every_kind().build()


def sample(builder_or_bytes, name="sample", base=None):
    data = builder_or_bytes if isinstance(builder_or_bytes, bytes) else builder_or_bytes.build()
    return Btf(data, "test", base).structs([name])[name][0]


def bpftool_members(path):
    """{name: {((member name, bit position, bits or 0), ...), ...}} of every named struct and union, from bpftool."""
    need("bpftool")
    types = json.loads(run("bpftool", "-j", "btf", "dump", "file", path))["types"]
    by_id = {t["id"]: t for t in types}

    def row(member):
        target, bits = by_id.get(member["type_id"], {}), member.get("bitfield_size", 0)
        while target.get("kind") in ("TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG"):
            target = by_id.get(target["type_id"], {})
        odd = target.get("kind") == "INT" and target["nr_bits"] != target["size"] * 8 and not bits
        shift, bits = (target["bits_offset"], target["nr_bits"]) if odd else (0, bits)
        return member["name"].replace("(anon)", ""), member["bits_offset"] + shift, bits

    named = {}
    for t in types:
        if t["kind"] in ("STRUCT", "UNION") and t["name"] != "(anon)" and t["vlen"]:
            named.setdefault(t["name"], set()).add(tuple(map(row, t["members"])))
    return named


def our_members(path, names):
    found = load(path).structs(names)
    return {name: {tuple((m.name, m.bit_position, m.bit_size or 0) for m in s.members)
                   for s in found[name] if s.members} for name in names}


def one_bad_input(data, names=("sample",), base=None):
    with pytest.raises(BadInput) as caught:
        Btf(data, "corrupt.btf", base).structs(names)
    assert str(caught.value).startswith("corrupt.btf: ") and "\n" not in str(caught.value)
    return caught.value.fault


@ORDERS
def test_a_struct_reached_through_every_kind(order):
    s = sample(every_kind(order))
    places = {path: find(s, path) for path in ("a", "low", "high", "p", "e", "f", "g", "v", "v[2]", "last")}
    assert places == {"a": Place(0, 4), "low": Place(4, 4), "high": Place(4, 4), "p": Place(8, 8), "e": Place(16, 4),
                      "f": Place(24, 8), "g": Place(32, 8), "v": Place(40, 12), "v[2]": Place(48, 4),
                      "last": Place(56, 4)}


@ORDERS
def test_bitfields_with_kind_flag(order):
    b = BtfBuilder(order)
    u32 = b.int("unsigned int", 4)
    b.struct("sample", 8, ("plain", u32, 0, 0), ("odd", u32, 35, 3), ("whole", u32, 48, 16), flag=True)
    assert [find(sample(b), n) for n in ("plain", "odd", "whole")] == [Place(0, 4), Place(4, 1, 3, 3), Place(6, 2)]


@ORDERS
def test_bitfields_encoded_in_the_int_before_kind_flag(order):
    b = BtfBuilder(order)
    odd, whole = b.int("unsigned int", 4, bits=3, shift=3), b.int("unsigned int", 4, bits=16)
    b.struct("sample", 8, ("odd", b.type(8, "typedef_of_odd", odd), 32), ("whole", whole, 48))
    assert [find(sample(b), n) for n in ("odd", "whole")] == [Place(4, 1, 3, 3), Place(6, 2)]


def test_pointers_are_as_wide_as_long():
    b = BtfBuilder()
    b.int("long unsigned int", 4)
    b.struct("sample", 8, ("p", b.array(b.ptr(), 2), 0))
    assert find(sample(b), "p[1]") == Place(4, 4)


@ORDERS
def test_split_btf_continues_its_base(order):
    base = every_kind(order)
    split = BtfBuilder(order, base)
    known = base.next_id - 2
    split.struct("module_struct", 72, ("own", split.ptr(), 0), ("of_base", known, 64))
    found = Btf(split.build(), "split", Btf(base.build(), "base")).structs(["module_struct", "sample"])
    assert find(found["module_struct"][0], "of_base.last") == Place(64, 4)
    assert find(found["sample"][0], "last") == Place(56, 4)


def test_split_btf_without_its_base_says_so():
    split = BtfBuilder(base=every_kind())
    split.struct("module_struct", 8, ("p", split.ptr(), 0))
    assert "needs its base" in one_bad_input(split.build())


def test_a_name_may_be_the_tail_of_another_string():
    b = BtfBuilder()
    u32 = b.int("unsigned int", 4)
    tail = b.string("the_sample") + len("the_")
    b.types += struct.pack("<6I", tail, 4 << 24 | 1, 4, b.string("m"), u32, 0)
    assert find(sample(b), "m") == Place(0, 4)


def test_a_forward_declaration_has_no_members_and_a_definition_wins():
    b = BtfBuilder()
    b.type(7, "sock")
    field = Field("sock", "sk_mark", "__u32", (4,), ("sk_mark",), "sock")
    assert resolve(b.build(), field).state is State.UNKNOWN
    b.struct("sock", 8, ("sk_mark", b.int("unsigned int", 4), 32))
    assert resolve(b.build(), field).offset == 4


def test_a_distilled_base_hides_members():
    b = BtfBuilder()
    b.struct("sock", 8)
    answer = resolve(b.build(), Field("sock", "sk_mark", "__u32", (4,), ("sk_mark",), "sock"))
    assert answer.state is State.UNKNOWN


def resolve(data, field):
    return agreed(field, Btf(data, "test").structs([field.struct]).get(field.struct, ()), "btf")


@ORDERS
@pytest.mark.parametrize("bits", [32, 64])
def test_btf_in_an_elf_section(tmp_path, order, bits):
    path = tmp_path / "vmlinux"
    path.write_bytes(elf([(".BTF", 1, 0, every_kind(order).build())], bits, order))
    assert find(load(path).structs(["sample"])["sample"][0], "last") == Place(56, 4)


@pytest.mark.parametrize("compiler, known", [("gcc (Debian 12.2.0-14) 12.2.0", False), ("clang version 16.0.6", True)])
def test_btf_made_for_what_gcc_has_shuffled_is_not_known(tmp_path, compiler, known):
    path = tmp_path / "vmlinux"
    rodata = f"Linux version 6.12.117 ({compiler})\0 6.12 SMP RANDSTRUCT_e0bc614e4fd035a4\0".encode()
    path.write_bytes(elf([(".rodata", 1, 2, rodata), (".BTF", 1, 0, every_kind().build())]))
    field = Field("sample", "last", "int", (4,), ("last",), "sample")
    answer, = BtfResolver(path).resolve(None, [field])
    assert (answer.state is State.KNOWN) == known
    assert known or "RANDSTRUCT" in answer.reason


def test_an_elf_module_brings_its_distilled_base(tmp_path):
    base = every_kind()
    split = BtfBuilder(base=base)
    split.struct("module_struct", 72, ("of_base", base.next_id - 2, 64))
    path = tmp_path / "module.ko"
    path.write_bytes(elf([(".BTF.base", 1, 0, base.build()), (".BTF", 1, 0, split.build())]))
    assert find(load(path).structs(["module_struct"])["module_struct"][0], "of_base.last") == Place(64, 4)


def test_the_resolver_looks_for_a_modules_struct_beside_the_kernels(tmp_path):
    base = every_kind()
    split = BtfBuilder(base=base)
    split.struct("nf_conn", 16, ("status", 2, 64))
    (tmp_path / "vmlinux").write_bytes(base.build())
    (tmp_path / "nf_conntrack").write_bytes(split.build())
    field = Field("nf_conn", "status", "unsigned long", (8,), ("status",), "nf_conn", module="nf_conntrack")
    answer, = BtfResolver(tmp_path / "vmlinux").resolve(None, [field])
    assert (answer.state, answer.offset, answer.source) == (State.KNOWN, 8, "btf")


def test_unknown_kinds_are_stepped_over_when_the_file_says_how():
    b = BtfBuilder()
    b.type(20, "new", 0, 2, tail=(1, 2, 3, 4, 5))
    b.struct("sample", 4, ("m", b.int("unsigned int", 4), 0))
    layout = bytes(4 * 20) + struct.pack("<BBH", 4, 8, 0)
    plain = b.build(hdr_len=32)
    data = plain[:24] + struct.pack("<II", len(plain) - 24, len(layout)) + plain[24:] + layout
    assert find(sample(data), "m") == Place(0, 4)
    assert one_bad_input(b.build()) == "BTF type 1 is of unknown kind 20"


@pytest.mark.parametrize("wrong", [
    {"magic": 0x1234}, {"version": 2}, {"flags": 1}, {"hdr_len": 23}, {"hdr_len": 28}, {"hdr_len": 2**31},
    {"type_len": 2**32 - 1}, {"type_len": 8}, {"type_off": 4}, {"type_off": 1}, {"str_off": 0}, {"str_len": 0},
    {"str_len": 2**32 - 1}, {"str_off": 2**32 - 1}, {"hdr_len": 2**32 - 4, "type_off": 2**32 - 4},
])
def test_a_header_that_lies_is_bad_input(wrong):
    one_bad_input(every_kind().build(**wrong))


@pytest.mark.parametrize(("type_", "fault"), [
    ((4, "sample", 8, 0xFFFFFF), "ends past the type section"),
    ((4, "sample", 8, 1, False, (0xFFFFFF, 1, 0)), "string offset"),
    ((4, "sample", 8, 1, False, (0, 99, 0)), "type id 99"),
    ((4, "sample", 8, 1, False, (0, 2, 0)), "contains itself"),
    ((4, "sample", 2, 1, False, (0, 1, 0)), "ends past the 2 bytes"),
    ((4, "sample", 8, 1, False, (0, 1, 3)), "at bit 3"),
    ((4, "sample", 8, 1, False, (0, 0, 0)), "type id 0"),
    ((4, "sample", 8, 1, True, (0, 1, 33 << 24)), "33 bits"),
    ((0, "sample", 8), "unknown kind 0"),
    ((31, "sample", 8), "unknown kind 31"),
])
def test_a_type_that_cannot_be_is_bad_input(type_, fault):
    b = BtfBuilder()
    b.int("unsigned int", 4)
    b.type(*type_)
    assert fault in one_bad_input(b.build())


def test_a_fault_quotes_no_control_characters():
    b = BtfBuilder()
    b.struct("sample", 1, ("evil\n\x1b[31m", b.int("unsigned int", 4), 0))
    assert "member evil??[31m ends" in one_bad_input(b.build())


def test_a_loop_of_typedefs_and_a_self_array_are_bad_input():
    loop, nest = BtfBuilder(), BtfBuilder()
    loop.struct("sample", 8, ("m", 2, 0))
    loop.type(8, "t", 3)
    loop.type(8, "u", 2)
    nest.struct("sample", 8, ("m", 2, 0))
    nest.array(2, 2)
    assert "contains itself" in one_bad_input(loop.build())
    assert "contains itself" in one_bad_input(nest.build())


def test_a_function_is_not_a_member():
    b = BtfBuilder()
    b.struct("sample", 8, ("m", 2, 0))
    b.type(13)
    assert "has no size" in one_bad_input(b.build())


def test_missing_empty_foreign_and_unreadable_files(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "elf").write_bytes(elf([(".text", 1, 6, b"x")]))
    with pytest.raises(Missing, match="does not exist: give"):
        list(BtfResolver(tmp_path / "none").resolve(None, CATALOGUE))
    for name, fault in (("empty", "empty"), ("elf", "without a .BTF section"), ("", "directory")):
        with pytest.raises(BadInput, match=fault):
            list(BtfResolver(tmp_path / name).resolve(None, CATALOGUE))


@ORDERS
def test_what_only_looks_like_a_struct_is_none(order):
    """Words in the middle of an enum that would make a struct of the wanted name, with a member at 512."""
    b = BtfBuilder(order)
    name, member = b.string("sample"), b.string("m")
    u32 = b.int("unsigned int", 4)
    b.type(6, "values", 4, 4, tail=(name, 4 << 24 | 1, 1024, member, u32, 4096, name, 4 << 24))
    assert "sample" not in Btf(b.build(), "test").structs(["sample"])
    b.struct("sample", 8, ("m", u32, 32))
    assert [find(s, "m") for s in Btf(b.build(), "test").structs(["sample"])["sample"]] == [Place(4, 4)]


def test_what_lies_behind_all_that_was_asked_for_is_not_looked_at():
    b = BtfBuilder()
    b.struct("sample", 4, ("m", b.int("unsigned int", 4), 0))
    b.type(21, "not a kind")
    data = b.build()
    assert find(sample(data), "m") == Place(0, 4)
    # That there is no such struct is said of sound BTF only, and so is that there is one behind the fault.
    assert one_bad_input(data, ["sample", "another"]) == "BTF type 3 is of unknown kind 21"
    b.struct("sample", 8, ("m", 1, 32))
    assert one_bad_input(b.build()) == one_bad_input(b.build()) == "BTF type 3 is of unknown kind 21"


@given(st.binary(max_size=200), st.sampled_from([b"", BLOB[:4], BLOB[:24], BLOB[:200], b"\xeb\x9f\1\0"]))
def test_random_bytes_are_bad_input_or_have_no_such_struct(tail, start):
    try:
        found = Btf(start + tail, "random").structs(["sample", "sock"])
    except BadInput:
        return
    assert "sock" not in found


@given(st.integers(0, len(BLOB) - 1))
def test_every_truncation_is_bad_input(length):
    one_bad_input(BLOB[:length])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, len(BLOB) - 1), st.integers(1, 255)), min_size=1, max_size=3))
def test_flipped_bytes_are_bad_input_or_what_bpftool_reads_too(tmp_path, flips):
    data = bytearray(BLOB)
    for at, mask in flips:
        data[at] ^= mask
    path = tmp_path / "flipped.btf"
    path.write_bytes(data)
    try:
        ours = our_members(path, ["sample"])
    except (BadInput, KeyError):
        return
    try:
        theirs = bpftool_members(path)
    except Exception:  # bpftool refuses the file, for a type we never looked at
        return
    assert ours["sample"] <= theirs.get("sample", {()})


def test_a_flip_in_the_running_kernels_btf_never_escapes_as_another_error(tmp_path):
    need_running()
    data, path = bytearray(RUNNING.read_bytes()), tmp_path / "flipped.btf"
    types = struct.unpack_from("<I", data, 12)[0]
    for at in (*range(24), *range(24, types, types // 40), len(data) - 1):
        data[at] ^= 0x55
        path.write_bytes(data)
        data[at] ^= 0x55
        try:
            answers = list(BtfResolver(path).resolve(None, CATALOGUE))
        except KcompatError as error:
            assert isinstance(error, BadInput)
        else:
            assert all(0 <= a.offset < 20000 for a in answers if a.state is State.KNOWN)


def need_running():
    if not RUNNING.exists():
        pytest.skip("this kernel has no BTF")


def test_one_struct_in_ten_of_the_running_kernel_is_as_bpftool_has_it():
    need_running()
    theirs = bpftool_members(RUNNING)
    names = {*sorted(theirs)[::10], *structs()}
    assert len(names) > 100
    assert our_members(RUNNING, names) == {name: theirs[name] for name in names}


def test_the_catalogue_of_the_running_kernel_is_as_pahole_prints_it():
    need_running()
    need("pahole")
    wanted = [f for f in CATALOGUE if len(f.paths) == 1 and f.paths[0] == f.member]
    answers = {a.field: a for a in BtfResolver().resolve(None, wanted) if a.state is State.KNOWN}
    printed = {s: run("pahole", "-F", "btf", "-E", "-C", s, RUNNING) for s in {f.struct for f in answers}}
    told = {f: re.search(rf"\b{f.member}(?:\[\d+\])?;\s*/\*\s+(\d+)\s+(\d+)", printed[f.struct]) for f in answers}
    seen = {f: (int(m[1]), int(m[2])) for f, m in told.items() if m}
    assert len(seen) > 20
    assert {f: (answers[f].offset, answers[f].width) for f in seen} == seen


@pytest.mark.parametrize("flags", [("-gdwarf-4",), ("-gdwarf-5",)], ids=lambda f: f[0])
def test_btf_of_a_compiled_file_is_what_its_program_prints(tmp_path, flags):
    need("pahole")
    path = compiled(tmp_path, *flags)
    run("pahole", "-J", path)
    s = load(path).structs(["sample"])["sample"][0]
    truth = said_by_program(tmp_path)
    assert {p: in_bits(find(s, p)) for p in (*PLAIN, *BITS)} == truth
    assert find(s, "flexible").width == 0


@pytest.mark.parametrize("archive", ["4.19.90-2107.6.0.0248.35.oe1.bclinux.x86_64", "4.19.90-24.4.v2101.ky10.aarch64"])
def test_btfhub_archives_are_as_bpftool_has_them(tmp_path, archive):
    source = SHARED / f"data/{archive}.btf.tar.xz"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    path = tmp_path / f"{archive}.btf"
    with tarfile.open(source) as tar:
        path.write_bytes(tar.extractfile(path.name).read())
    theirs = bpftool_members(path)
    names = structs(f for f in CATALOGUE if not f.module)  # the archives have no module's structs
    assert our_members(path, names) == {name: theirs[name] for name in names}
    answers = {a.field.name: a for a in BtfResolver(path).resolve(None, CATALOGUE)}
    assert [a.reason for a in answers.values() if a.state is State.UNKNOWN and not a.field.module] == []
    assert answers["sock.sk_protocol"].width == 1 and answers["sock.sk_protocol"].bit_offset is None
    assert answers["sock_common.skc_net"].evidence == {"path": "skc_net.net"}


def test_what_has_a_name_is_mentioned_and_a_part_of_a_name_is_not():
    builder = BtfBuilder()
    builder.type(14, "tracepoint_srcu_srcu_data", builder.struct("srcu_data", 8), tail=(0,))

    types = Btf(builder.build(), "test")

    assert types.mentions("tracepoint_srcu_srcu_data") and types.mentions("srcu_data")
    assert not types.mentions("tracepoint_srcu") and not types.mentions("data")
