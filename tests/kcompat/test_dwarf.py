import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcompat.dwarf import DwarfResolver, load
from kcompat.errors import BadInput, Missing
from kcompat.fields import CATALOGUE, Field
from kcompat.layout import find
from kcompat.offsets import State
from tests.kcompat.c_sample import BITS, PLAIN, SOURCE, compiled, in_bits, need, run, said_by_program
from tests.kcompat.elf_builder import elf

FIELD = Field("sample", "common.daddr", "unsigned int", (4,), ("common.daddr",), "sample")


def fault_of(path, names=("sample",)):
    with pytest.raises(BadInput) as caught:
        load(path, names)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return caught.value.fault


@pytest.mark.parametrize("flags", [
    ("-gdwarf-4",), ("-gdwarf-5",), ("-gdwarf-4", "-shared", "-fPIC"), ("-gdwarf-5", "-shared", "-fPIC"),
    ("-gdwarf-4", "-fdebug-types-section"), ("-gdwarf-5", "-fdebug-types-section"),
    ("-gdwarf-4", "-fdebug-types-section", "-shared", "-fPIC"),
    ("-gdwarf-5", "-fdebug-types-section", "-shared", "-fPIC"),
    ("-gdwarf-2", "-gstrict-dwarf"), ("-gdwarf-5", "-gz"), ("-gdwarf-5", "-gdwarf64"),
    ("-gdwarf-5", "-flto", "-ffat-lto-objects"),
], ids=" ".join)
def test_gcc_dwarf_is_what_the_program_prints(tmp_path, flags):
    s = load(compiled(tmp_path, *flags), ["sample"])["sample"]
    assert {p: in_bits(find(s, p)) for p in (*PLAIN, *BITS)} == said_by_program(tmp_path)
    assert find(s, "flexible").width == 0


@pytest.mark.parametrize("flags", [("-gdwarf-4",), ("-gdwarf-5",), ("-gdwarf-5", "-shared", "-fPIC")], ids=" ".join)
def test_clang_dwarf_is_what_the_program_prints(tmp_path, flags):
    s = load(compiled(tmp_path, *flags, compiler="clang"), ["sample"])["sample"]
    assert {p: in_bits(find(s, p)) for p in (*PLAIN, *BITS)} == said_by_program(tmp_path)


@pytest.mark.parametrize("version", [4, 5])
def test_arm64_is_laid_as_x86_64_here(tmp_path, version):
    s = load(compiled(tmp_path, f"-gdwarf-{version}", compiler="aarch64-linux-gnu-gcc",
                      source=SOURCE.replace("#include <st", "//")), ["sample"])["sample"]
    assert {p: in_bits(find(s, p)) for p in (*PLAIN, *BITS)} == said_by_program(tmp_path)


def test_a_declaration_gives_way_to_a_definition_in_a_later_unit(tmp_path):
    need("ld")
    one = compiled(tmp_path, "-g", source="struct sample; struct sample *p;", name="one.o")
    two = compiled(tmp_path, "-g", name="two.o")
    run("ld", "-r", one, two, "-o", tmp_path / "both.ko")
    assert find(load(tmp_path / "both.ko", ["sample"])["sample"], "common.daddr").offset == 4
    answer, = DwarfResolver(one).resolve(None, [FIELD])
    assert (answer.state, answer.reason) == (State.UNKNOWN, "DWARF has struct sample only as a forward declaration")


@pytest.mark.parametrize("strings, known", [
    (("Linux version 5.10 (gcc (Debian 12.2.0-14) 12.2.0)", "5.10 SMP RANDSTRUCT_PLUGIN_e0bc614e4fd035a4"), False),
    (("Linux version 6.12.117 (gcc (Debian 12.2.0-14) 12.2.0)", "6.12 SMP RANDSTRUCT_e0bc614e4fd035a4"), False),
    (("6.12.117 mod_unload RANDSTRUCT_e0bc614e4fd035a4",), False),
    (("Linux version 6.12.117 (Debian clang version 16.0.6)", "6.12.117 RANDSTRUCT_e0bc614e4fd035a4"), True),
    (("Linux version 6.12.117 (gcc (Debian 12.2.0-14) 12.2.0)", "CONFIG_RANDSTRUCT_NONE"), True),
])
def test_what_gcc_has_shuffled_is_not_known(tmp_path, strings, known):
    source = SOURCE + "".join(f'\nconst char string_{n}[] = "{s}";' for n, s in enumerate(strings))
    answer, = DwarfResolver(compiled(tmp_path, "-g", source=source)).resolve(None, [FIELD])
    assert (answer.state is State.KNOWN) == known
    assert known or "RANDSTRUCT" in answer.reason


def test_what_is_not_in_the_file_is_unknown_and_what_is_not_in_the_struct_absent(tmp_path):
    path = compiled(tmp_path, "-g")
    nowhere = Field("nowhere", "m", "int", (4,), ("m",), "sample")
    no_member = Field("sample", "m", "int", (4,), ("m",), "sample")
    states = [a.state for a in DwarfResolver(path).resolve(None, [nowhere, no_member, FIELD])]
    assert states == [State.UNKNOWN, State.ABSENT, State.KNOWN]


def test_a_struct_inside_a_function_is_not_taken_for_the_kernels(tmp_path):
    source = "int f(void) { struct sample { int local; } s = {1}; return s.local; }" + SOURCE
    s = load(compiled(tmp_path, "-g", source=source), ["sample"])["sample"]
    assert find(s, "local") is None and find(s, "common.daddr").offset == 4


def test_drgn_lays_the_struct_out_the_same(tmp_path):
    drgn = pytest.importorskip("drgn")
    path = compiled(tmp_path, "-g", "-shared", "-fPIC", "-Wl,--build-id", name="sample.so")
    program = drgn.Program()
    program.extra_module("sample", create=True).try_file(path, force=True)
    theirs = {m.name: m.bit_offset for m in program.type("struct sample").members if m.name}
    assert {m.name: m.bit_position for m in load(path, ["sample"])["sample"].members if m.name} == theirs


@pytest.mark.parametrize("version", [4, 5])
def test_split_dwarf_names_where_its_types_are(tmp_path, version):
    path = compiled(tmp_path, "-g", f"-gdwarf-{version}", "-gsplit-dwarf")
    assert "sample.dwo" in fault_of(path)
    assert "split DWARF" in fault_of(tmp_path / "sample.dwo")


def test_files_without_dwarf_say_so(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("not an ELF file")
    (tmp_path / "stripped").write_bytes(elf([(".text", 1, 6, b"x")]))
    (tmp_path / "alt").write_bytes(elf([(".debug_info", 1, 0, b"x"), (".gnu_debugaltlink", 1, 0, b"x")]))
    faults = {"empty": "empty", "text": "not an ELF", "stripped": "no .debug_info", "alt": "dwz", "": "directory"}
    for name, fault in faults.items():
        assert fault in fault_of(tmp_path / name)
    with pytest.raises(Missing, match="does not exist"):
        list(DwarfResolver(tmp_path / "none").resolve(None, CATALOGUE))


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dwarf")
    return [compiled(directory, f"-gdwarf-{v}", *more).read_bytes()
            for v in (4, 5) for more in ((), ("-fdebug-types-section",), ("-shared", "-fPIC"))]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(which=st.integers(0, 5), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_never_escape_as_another_error(tmp_path, blobs, which, flips):
    data = bytearray(blobs[which])
    for at, mask in flips:
        data[int(at * (len(data) - 1))] ^= mask
    path = tmp_path / "flipped.o"
    path.write_bytes(data)
    try:
        s = load(path, ["sample"]).get("sample")
    except BadInput:
        return
    place = s and s.members and find(s, "common.daddr")
    assert not place or place.offset + place.width <= s.size


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(which=st.integers(0, 5), share=st.floats(0, 1))
def test_every_truncation_is_bad_input(tmp_path, blobs, which, share):
    path = tmp_path / "truncated.o"
    path.write_bytes(blobs[which][:int(share * (len(blobs[which]) - 1))])
    fault_of(path)
