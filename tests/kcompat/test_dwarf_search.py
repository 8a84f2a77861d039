import json
import os
import random
import resource
import struct
import sys
import time
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from kcompat import dwarf
from kcompat.btf import BtfResolver
from kcompat.dwarf import load
from kcompat.dwarf_names import places
from kcompat.elf import Elf
from kcompat.errors import BadInput
from kcompat.fields import CATALOGUE
from kcompat.layout import find
from tests.kcompat.c_sample import BITS, PLAIN, compiled, in_bits, need, run, said_by_program
from tests.kcompat.elf_builder import elf

# Every shape of reference from a name to its string: whole and tail-merged, inline, by number, relocated.
TAILS = "struct {0} {{ char c; int {0}; }} a; struct my_{0} {{ long z; int b; }} b; struct in_{0} {{ int q; }} c;"


def one_fault(path, names=("sample",)):
    with pytest.raises(BadInput) as caught:
        load(path, names)
    assert "\n" not in str(caught.value)
    return caught.value.fault


def section(path, name):
    e = Elf(path.read_bytes(), path)
    return e.find(name)


def test_a_name_that_the_linker_kept_only_as_a_tail_is_looked_for_where_it_put_it(tmp_path, monkeypatch):
    path = compiled(tmp_path, "-g", "-shared", "-fPIC", source=TAILS.format("sample"), name="tails.so")
    strings = Elf(path.read_bytes(), path).read(section(path, ".debug_str"))
    assert b"\0sample\0" not in strings and len(list(places(b"sample\0", strings))) == 2
    monkeypatch.setattr("kcompat.dwarf_names.Names.any", lambda *_: pytest.fail("the first search was enough"))
    found = load(path, ["sample", "my_sample"])
    assert (find(found["sample"], "sample").offset, found["my_sample"].size) == (4, 16)


def test_an_unlikely_place_is_searched_too(tmp_path, monkeypatch):
    path = compiled(tmp_path, "-g", "-shared", "-fPIC", source=TAILS.format("sample"), name="tails.so")
    monkeypatch.setattr("kcompat.dwarf_names.Names.likely", lambda *_: iter(()))
    assert find(load(path, ["sample"])["sample"], "sample").offset == 4


@pytest.mark.parametrize(("compiler", "flags"), [
    ("gcc", ("-gdwarf-5",)), ("gcc", ("-gdwarf-4", "-shared", "-fPIC")), ("gcc", ("-g", "-fno-merge-debug-strings")),
    ("clang", ("-gdwarf-5",)), ("clang", ("-gdwarf-5", "-shared", "-fPIC")), ("clang", ("-gdwarf-4",)),
], ids=lambda v: v if isinstance(v, str) else " ".join(v))
@pytest.mark.parametrize("name", ["net", "sample"])
def test_short_and_long_names(tmp_path, compiler, flags, name):
    path = compiled(tmp_path, *flags, compiler=compiler, source=TAILS.format(name))
    assert find(load(path, [name])[name], name).offset == 4


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flags", [("-gdwarf-5",), ("-gdwarf-4",)], ids=" ".join)
def test_of_many_units_only_those_that_define_are_opened(tmp_path, monkeypatch, compiler, flags):
    need("ld")
    parts = [compiled(tmp_path, *flags, compiler=compiler, name=f"{i}.o",
                      source=f"struct sample; struct s{i} {{ struct sample *sample; int x[{i}]; }} v{i};")
             for i in range(1, 8)]
    defining = compiled(tmp_path, *flags, compiler=compiler, name="z.o", source="struct sample { int a, b; } v;")
    run("ld", "-shared", *parts, defining, "-o", tmp_path / "all.so")
    opened, init = [], dwarf.Unit.__init__
    monkeypatch.setattr(dwarf.Unit, "__init__", lambda self, *given: (opened.append(1), init(self, *given))[1])
    assert find(load(tmp_path / "all.so", ["sample"])["sample"], "b").offset == 4
    assert len(opened) == 1


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flags", [("-gdwarf-5",), ("-gdwarf-4",)], ids=" ".join)
def test_units_that_have_the_name_for_something_else_are_not_opened(tmp_path, monkeypatch, compiler, flags):
    need("ld")
    sources = (f"struct s{i} {{ int sample; int x[{i}]; }} v{i}; int f{i}(int sample) {{ return 1; }}" for i in (1, 2))
    parts = [compiled(tmp_path, *flags, compiler=compiler, name=f"{i}.o", source=source)
             for i, source in enumerate(sources)]
    run("ld", "-shared", *parts, "-o", tmp_path / "all.so")
    # Not even the little that is walked of every file.
    monkeypatch.setattr("kcompat.dwarf._MAX_WALKED", 0)
    monkeypatch.setattr("kcompat.dwarf.Unit", None)
    monkeypatch.setattr("kcompat.dwarf_units.Unit", None)
    assert load(tmp_path / "all.so", ["sample"]) == {}


def test_a_name_that_thousands_of_strings_end_in_is_looked_for_where_the_linker_put_it(tmp_path):
    tails = "\n".join(f"struct z{n}_sample {{ int a[{n + 2}]; }} z{n};" for n in range(600))
    source = f"{tails}\nstruct a_sample {{ int x; }} a; struct sample {{ int b; }} s;"
    path = compiled(tmp_path, "-g", "-shared", "-fPIC", source=source, name="many.so")
    assert load(path, ["sample"])["sample"].size == 4


@pytest.mark.parametrize("flags", [("-gz",), ("-gz=zlib-gnu",), ("-gz", "-shared", "-fPIC"),
                                   ("-gz=zlib-gnu", "-shared", "-fPIC")], ids=" ".join)
def test_compressed_sections(tmp_path, flags):
    path = compiled(tmp_path, "-g", *flags)
    s = load(path, ["sample"])["sample"]
    assert {p: in_bits(find(s, p)) for p in (*PLAIN, *BITS)} == said_by_program(tmp_path)


def test_sections_compressed_with_zstd(tmp_path):
    need("objcopy")
    path = compiled(tmp_path, "-g", "-shared", "-fPIC")
    run("objcopy", "--compress-debug-sections=zstd", path, tmp_path / "zstd.so")
    assert section(tmp_path / "zstd.so", ".debug_info").flags & 1 << 11

    s = load(tmp_path / "zstd.so", ["sample"])["sample"]
    assert {p: in_bits(find(s, p)) for p in (*PLAIN, *BITS)} == said_by_program(tmp_path)


@pytest.mark.parametrize(("place", "value", "fault"), [
    (0, 2, "corrupt DWARF: ZstdError"), (0, 77, "compressed with method 77"),
    (8, 1 << 40, "would take 1099511627776 bytes"), (8, 100, "does not decompress to its 100 bytes"),
    (8, 1 << 20, "does not decompress"),
])
def test_compression_that_is_unknown_or_lies_about_the_size(tmp_path, place, value, fault):
    path = compiled(tmp_path, "-g", "-gz=zlib")
    at, data = section(path, ".debug_info").offset + place, bytearray(path.read_bytes())
    data[at:at + (4 if place == 0 else 8)] = value.to_bytes(4 if place == 0 else 8, "little")
    path.write_bytes(data)
    assert fault in one_fault(path)


# One struct of name `sample` and size 8, one member of a type at `ref`; DW_FORM_string names.
ABBREVIATIONS = (b"\1\x11\1\0\0" b"\2\x13\1\1\x13\3\x08\x0b\x0b\0\0" b"\3\x0d\0\3\x08\x49\x13\x38\x0b\0\0"
                 b"\4\x16\0\x49\x13\0\0" b"\5\x24\0\x0b\x0b\0\0" b"\6\x13\0\3\x08\x69\x20\0\0" b"\0")
FIRST = 11


def built(tmp_path, entries, abbreviations=ABBREVIATIONS, length=None, version=4, table=0):
    body = struct.pack("<HIB", version, table, 8) + entries
    info = struct.pack("<I", len(body) if length is None else length) + body
    path = tmp_path / "built"
    path.write_bytes(elf([(".debug_info", 1, 0, info), (".debug_abbrev", 1, 0, abbreviations)]))
    return path


def entry(ref, sibling=0, offset=0):
    """The unit, then at 12 `sample` with a member, then at 36 a typedef of `ref`, then at 41 an int."""
    return (b"\1" b"\2" + struct.pack("<I", sibling or 36) + b"sample\0\x08" b"\3m\0" + struct.pack("<IB", ref, offset)
            + b"\0" b"\0\0" b"\4" + struct.pack("<I", ref) + b"\5\4" b"\0")


def test_what_is_built_by_hand_is_read(tmp_path):
    assert find(load(built(tmp_path, entry(41)), ["sample"])["sample"], "m").width == 4


@pytest.mark.parametrize(("given", "fault"), [
    ({"entries": entry(12)}, "contains itself"),
    ({"entries": entry(36)}, "contains itself"),
    ({"entries": entry(41, offset=5)}, "ends past the 8 bytes"),
    ({"entries": entry(2**32 - 1)}, "outside the unit"),
    ({"entries": entry(2)}, "outside the unit"),
    ({"entries": entry(11)}, "has no size"),
    ({"entries": entry(41, sibling=12)}, "lies before it"),
    ({"entries": entry(41, sibling=1)}, "lies before it"),
    ({"entries": entry(41, sibling=2**32 - 1)}, "run past its end"),
    ({"entries": entry(41)[:-1]}, "run past its end"),
    ({"entries": b"\1\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\1 sample\0"}, "over 64 bits"),
    ({"entries": b"\1\6sample\0" + bytes(8) + b"\0", }, ""),
    ({"entries": b"\1\x63 sample\0"}, "abbreviation 99 is not declared"),
    ({"entries": b"\1\2 sample\0", "abbreviations": b"\1\x11\1\0\0\2\x13\1\3\x7f\0\0\0"}, "form 0x7f is not known"),
    ({"entries": entry(41), "length": 0}, "header of the unit at 0"),
    ({"entries": entry(41), "length": 2**32 - 1}, "ends past"),
    ({"entries": entry(41), "length": 2**32 - 5}, "ends past"),
    ({"entries": entry(41), "length": 5}, "header of the unit at 0"),
    ({"entries": entry(41), "version": 6}, "is DWARF 6"),
    ({"entries": entry(41), "table": 2**31}, "outside .debug_abbrev"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_dwarf_that_no_compiler_wrote(tmp_path, given, fault):
    path = built(tmp_path, **given)
    if fault:
        assert fault in one_fault(path)
    else:
        assert load(path, ["sample"])["sample"].members is None


def test_a_unit_of_nothing_but_the_name_ends_soon(tmp_path):
    body = struct.pack("<HIB", 4, 0, 8) + b"\1" + b"sample\0" * 400_000
    path = tmp_path / "names"
    path.write_bytes(elf([(".debug_info", 1, 0, struct.pack("<I", len(body)) + body),
                          (".debug_abbrev", 1, 0, b"\1\x11\1\0\0\0"), (".debug_str", 1, 0, b"sample\0" * 400_000)]))
    started = time.monotonic()
    assert "is not declared" in one_fault(path)
    assert time.monotonic() - started < 10


def plain_walk(path):
    """The layouts that pyelftools alone finds: {((member, offset), ...)} of each definition of `sample`."""
    found = set()
    with path.open("rb") as file:
        info = ELFFile(file).get_dwarf_info()
        for unit in [*info.iter_CUs(), *(info.iter_TUs() if info.has_debug_types() else ())]:
            members = {}
            for die in unit.iter_DIEs():
                if die.tag == "DW_TAG_member" and die.get_parent().tag == "DW_TAG_structure_type":
                    members.setdefault(die.get_parent().offset, []).append(die)
            for die in unit.iter_DIEs():
                name = die.attributes.get("DW_AT_name")
                if die.tag == "DW_TAG_structure_type" and name and name.value == b"sample" and die.offset in members:
                    found.add(tuple(map(member_of, members[die.offset])))
    return found


def member_of(die):
    said = {name.removeprefix("DW_AT_"): a.value for name, a in die.attributes.items()}
    name, start = said.get("name", b"").decode(), said.get("data_member_location", 0) * 8
    if "data_bit_offset" in said and "bit_size" in said:
        return name, said["data_bit_offset"]
    if "bit_offset" in said and "bit_size" in said:
        size = said.get("byte_size") or type_size(die)
        return name, start + size * 8 - said["bit_offset"] - said["bit_size"]
    return name, start


def type_size(die):
    while "DW_AT_byte_size" not in die.attributes:
        die = die.get_DIE_from_attribute("DW_AT_type")
    return die.attributes["DW_AT_byte_size"].value


@pytest.fixture
def little_memory():
    """Whatever takes more than 512 MiB in addition fails with a MemoryError."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (512 << 20), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("flags", [
    ("-gdwarf-4",), ("-gdwarf-5",), ("-gdwarf-4", "-shared", "-fPIC"), ("-gdwarf-5", "-shared", "-fPIC"),
    ("-gdwarf-5", "-fdebug-types-section", "-shared", "-fPIC"),
], ids=" ".join)
def test_flipped_bytes_are_bad_input_or_what_pyelftools_alone_reads(tmp_path, little_memory, flags):
    chance = random.Random(" ".join(flags))
    path = compiled(tmp_path, *flags)
    whole, names = path.read_bytes(), (".debug_info", ".debug_abbrev", ".debug_str", ".rela.debug_info", ".debug_types")
    targets = [s for s in Elf(whole, path).sections if s.name in names and s.size]
    agreed = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            target = chance.choice(targets)
            at = target.offset + chance.randrange(target.size)
            data[at] = chance.choice([0, 127, 128, 255, chance.randrange(256)])
        path.write_bytes(data)
        started = time.monotonic()
        try:
            s = load(path, ["sample"]).get("sample")
        except BadInput as error:
            assert "MemoryError" not in str(error)
            continue
        finally:
            assert time.monotonic() - started < 5
        if s is None or s.members is None:
            continue
        try:
            theirs = plain_walk(path)
        except Exception:  # pyelftools stumbles over an entry we never looked at
            continue
        assert tuple((m.name, m.bit_position) for m in s.members) in theirs
        agreed += 1
    assert agreed > 10


WHOLE = """
import json, re, sys
from pathlib import Path
from kcompat.dwarf import DwarfResolver
from kcompat.fields import CATALOGUE
answers = list(DwarfResolver(Path(sys.argv[1])).resolve(None, CATALOGUE))
# Not ru_maxrss: that one remembers the process that forked us.
peak_kb = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps([{a.field.name: [a.offset, a.width, a.bit_offset] for a in answers}, peak_kb / 1024]))
"""


def test_a_real_kernel_is_as_its_own_btf_says_in_little_memory():
    roots = [Path(root) for root in (os.environ.get("KCOMPAT_CACHE"), "/tmp/kc/dbg") if root]
    vmlinux = next((path for root in roots for path in root.rglob("usr/lib/debug/boot/vmlinux-*")), None)
    if vmlinux is None:
        pytest.skip("no debug package's vmlinux lies in $KCOMPAT_CACHE or /tmp/kc/dbg")
    places, peak_mb = json.loads(run(sys.executable, "-c", WHOLE, vmlinux))
    btf = {a.field.name: [a.offset, a.width, a.bit_offset] for a in BtfResolver(vmlinux).resolve(None, CATALOGUE)}
    assert places == btf
    assert peak_mb < 300
