"""Everything that speaks of fields derives from the catalogue: names, macros, JSON words, what the C asks for."""

import re
from pathlib import Path

from kcompat.fields import CATALOGUE, find, structs
from kcompat.template import needed, read_source

ROOT = Path(__file__).parents[2]
# Issue 2: the structs every kernel must answer for.
STRUCTS = {"sock_common", "sock", "inet_sock", "tcp_sock", "net", "flowi4", "flowi6"}
SOURCES = sorted(p for room in ("guessers", "collector") for pattern in ("*.bpf.c", "*.h")
                 for p in (ROOT / room).rglob(pattern))


def test_no_two_fields_share_a_name_a_macro_or_json_words():
    for of in (lambda f: f.name, lambda f: f.macro, lambda f: (f.struct, f.member)):
        assert len({of(f) for f in CATALOGUE}) == len(CATALOGUE)


def test_macros_are_c_names():
    assert all(re.fullmatch(r"[a-z]\w*__[a-z]\w*", f.macro) for f in CATALOGUE)


def test_the_structs_of_the_design_are_there():
    assert set(structs()) >= STRUCTS


def test_every_field_the_c_reads_is_in_the_catalogue():
    assert SOURCES
    for path in SOURCES:
        text = path.read_text()
        macros = set(re.findall(r"\bREAD\([^;]*?,\s*(\w+__\w+)\)", text)) | set(re.findall(r"\bHAVE_(\w+)", text))
        assert {find(macro).macro for macro in macros} == macros, path


def test_what_the_c_needs_is_read_off_the_c():
    (netflow,) = (p for p in SOURCES if p.name == "netflow.bpf.c")

    hard, soft = needed(read_source(netflow))

    assert find("skc_dport") in hard and not set(hard) & set(soft)


def test_no_offset_is_spelled_in_the_c():
    for path in SOURCES:
        assert not re.search(r"#\s*define\s+OFFSET_", path.read_text()), path
