"""What the compiler says of layouts: a real gcc, asked about structs of our own with the command of a build."""

import shutil

import pytest

from ci import offsetof
from ci.judge import Dwarf
from ci.offsetof import UnaskedError, answers, ask, load, save

if shutil.which("gcc") is None:
    pytest.skip("gcc is not installed", allow_module_level=True)

CATALOGUE = {"file.f_inode": ["f_inode"], "net.ns.inum": ["ns.inum", "proc_inum"], "net.old": ["new", "older"],
             "nf_conn.tuplehash1.tuple": ["tuplehash[1].tuple"], "sock.none": ["none"], "flowi6.saddr": ["saddr"]}


@pytest.fixture
def output(tmp_path):
    """Where a kernel was built, as far as the question goes; its structs are those of one header."""
    for header in offsetof.HEADERS:
        (tmp_path / "include" / header).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "include" / header).write_text("")
    (tmp_path / "include/net/sock.h").write_text("""
        #pragma once
        #include <stddef.h>
        #undef offsetof
        struct file { char pad[136]; void *f_inode; };
        struct net { char pad[5]; struct { long x; int inum; } ns; short older; };
        struct tuple { char bytes[40]; };
        struct nf_conn { int a; struct { long next; struct tuple tuple; } tuplehash[2]; };
        struct sock { int only; };
        struct flowi6;
    """)
    command = tmp_path / offsetof._LIKE
    command.parent.mkdir(parents=True)
    command.write_text("savedcmd_net/ipv4/tcp.o := gcc -Wp,-MMD,net/ipv4/.tcp.o.d -I./include -DX='\"y\"' -c -o "
                       "net/ipv4/tcp.o /usr/src/net/ipv4/tcp.c   ; ./objtool net/ipv4/tcp.o\n\nsource_x := y\n")
    return tmp_path


def test_the_compiler_tells_offsets_sizes_and_what_is_not_there(output):
    assert ask(CATALOGUE, output) == {
        "file.f_inode": (136, 8), "net.ns.inum": (16, 4), "net.old": (24, 2), "nf_conn.tuplehash1.tuple": (64, 40),
        "sock.none": None, "flowi6.saddr": None}


def test_of_two_names_the_newer_one_counts(output):
    assert ask({"net.both": ["ns.inum", "older"]}, output) == {"net.both": (16, 4)}


@pytest.mark.parametrize("damage, reason", [
    ("#error broken", "broken"), ("struct sock { int one : 3; };", "redefinition"), ("int f(;", "before")])
def test_any_other_complaint_is_no_answer(output, damage, reason):
    with (output / "include/linux/uio.h").open("w") as header:
        header.write(f"#include <net/sock.h>\n{damage}\n")
    with pytest.raises(UnaskedError, match=reason):
        ask({"sock.only": ["only"]}, output)


def test_a_bitfield_has_no_offset_and_that_is_no_absence(output):
    (output / "include/net/sock.h").write_text("#include <stddef.h>\nstruct sock { int only : 3; };\n")
    with pytest.raises(UnaskedError, match="bit-field"):
        ask({"sock.only": ["only"]}, output)


def test_a_build_without_the_command_is_told(output):
    (output / offsetof._LIKE).write_text("nothing\n")
    with pytest.raises(UnaskedError, match=r"tcp\.o\.cmd holds no compiler's command"):
        ask(CATALOGUE, output)


def test_its_answers_stand_where_dwarf_had_none(tmp_path):
    save({"file.f_inode": (136, 8), "sock.none": None}, tmp_path / "layout.json")
    layout = load(tmp_path / "layout.json")
    unknown = {"state": "unknown", "offset": None, "bit_offset": None, "width": None, "source": "dwarf",
               "verdict": "unverified", "confidence": 0.0, "candidates": [], "reason": "shuffled"}
    said = [{"struct": "file", "member": "f_inode", **unknown}, {"struct": "sock", "member": "none", **unknown}]
    known, absent = answers(layout, said)
    assert known == {"struct": "file", "member": "f_inode", "state": "known", "offset": 136, "bit_offset": None,
                     "width": 8, "source": "compiler", "verdict": "ok", "confidence": 1.0, "candidates": [136],
                     "reason": None}
    assert (absent["state"], absent["verdict"], absent["offset"]) == ("absent", "absent", None)
    judge = Dwarf({"kernel": {}, "fields": said}, "", 1.0).corrected(layout)
    assert judge.fields == [known, absent] and "offsetof" in judge.by
    assert Dwarf(None, "no vmlinux", 1.0).corrected(layout).fields is None
