"""What goes out comes back the same; what is wrong is refused whole; what contradicts stays visible."""

import json
import os
import sqlite3
import stat
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcompat.btf import BtfResolver
from kcompat.errors import BadInput, KcompatError
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State
from offset_db import exchange_btf, exchange_header, exchange_jsonl
from offset_db.db import Database
from offset_db.exchange import give, take_in, write_whole
from offset_db.exchange_merge import Absorbed, absorb, absorb_whole, merge
from offset_db.queries import everything
from offset_db.rows import Remembered, Stored
from offset_db.trust import TRUSTED

DADDR, DPORT, TYPE, SRTT = (find(name) for name in ("skc_daddr", "skc_dport", "sk_type", "srtt_us"))
AT = "2031-01-01T00:00:00Z"

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
numbers = st.integers(0, 1 << 20)
sources = st.sampled_from((*TRUSTED, "datadog"))
known = st.builds(lambda field, at, source, bit, sure: Offset.known(field, at, source, bit_offset=bit, confidence=sure,
                                                                    evidence={"path": field.paths[0]}),
                  st.sampled_from(CATALOGUE), numbers, sources, st.none() | st.integers(0, 7), st.floats(0, 1))
not_known = st.builds(lambda kind, field, source, reason: kind(field, source, reason),
                      st.sampled_from((Offset.absent, Offset.unknown)), st.sampled_from(CATALOGUE), sources, texts)
stored = st.builds(Stored, known | not_known, texts, st.none() | texts, st.none() | texts, st.none() | texts,
                   st.none() | texts)
kernels = st.builds(Kernel, st.none() | st.text("0123456789abcdef", min_size=40, max_size=40), texts, texts, texts,
                    st.dictionaries(texts, texts, max_size=2))
memories = st.lists(st.builds(
    Remembered, kernels, texts, texts,
    st.lists(stored, max_size=6, unique_by=lambda s: (s.offset.field, s.offset.source)).map(
        lambda found: tuple(sorted(found, key=lambda s: (s.offset.field.name, s.offset.source))))),
    max_size=4, unique_by=lambda r: r.kernel.key)


def remembered(kernel, *offsets, at=AT):
    return Remembered(kernel, at, at, tuple(Stored(o, at) for o in offsets))


def everyone(db):
    return {(s.offset.field.name, s.offset.source): s for r in everything(db) for s in r.stored}


@given(memories)
def test_json_lines_come_back_as_they_went(memory):
    lines = list(exchange_jsonl.lines(memory))

    assert all(line.count("\n") == 1 for line in lines)
    assert list(exchange_jsonl.parse(lines, "x")) == sorted(memory, key=lambda r: r.kernel.key)


def test_the_same_memory_gives_the_same_bytes(tmp_path, kernel, answers):
    held = [remembered(kernel, *answers), remembered(Kernel(None, "5.4", "Linux", "aarch64"), answers[3])]
    with Database.open(tmp_path / "a.db") as one, Database.open(tmp_path / "b.db") as other:
        absorb(one, held)
        for r in reversed(held):
            absorb(other, [Remembered(r.kernel, AT, AT, r.stored[::-1])])

        assert give(one, "jsonl", None) == give(other, "jsonl", None)


def test_an_export_imports_to_the_same_export(tmp_path, db, kernel, answers):
    db.record(kernel, answers)
    db.quarantine(kernel, DADDR, "btf", "an event saw another")
    file = tmp_path / "out.jsonl"
    file.write_bytes(give(db, "jsonl", None))

    with Database.open(tmp_path / "other.db") as other:
        take_in(other, file)

        assert give(other, "jsonl", None) == file.read_bytes()


@pytest.mark.parametrize("wrong, told", [
    (lambda rows: rows[2].pop("offset"), "line 3: no 'offset'"),
    (lambda rows: rows[2].update(offset=-4), "line 3: -4 is not an offset"),
    (lambda rows: rows[2].update(state="absent"), "line 3: sock_common.skc_daddr: state absent with offset 0"),
    (lambda rows: rows[1].update(machine=7), "line 2: 7 is not text"),
    (lambda rows: rows[2].update(confidence=2), "line 3: 2 is not a confidence"),
    (lambda rows: rows[2].update(kernel="other"), "line 3: an answer that does not follow its kernel"),
    (lambda rows: rows[0].update(version=2), "line 1: not "),
    (lambda rows: rows[1].update(release="\ud800"), "line 2: .*surrogates not allowed"),
    (lambda rows: rows[1].update(modules={"a": "\ud800"}), "line 2: .*surrogates not allowed"),
    (lambda rows: rows[2].update(source="\udfff"), "line 3: .*surrogates not allowed"),
    (lambda rows: rows[2].update(evidence={"\ud800": 1}), "line 3: .*surrogates not allowed"),
    (lambda rows: rows[2].update(evidence=json.loads("[" * 100 + "]" * 100)), "line 3: .* is no evidence"),
    (lambda rows: rows[2].update(evidence={"a": json.loads("[" * 100 + "]" * 100)}), "line 3: .*too deeply"),
    (lambda rows: rows[2].update(evidence={"a": float("inf")}), "line 3: Out of range float"),
    (lambda rows: rows[2].update(candidates=[float("inf")]), "line 3: inf is not an offset"),
    (lambda rows: rows[2].update(candidates=[1.5]), "line 3: 1.5 is not an offset"),
    (lambda rows: rows[2].update(candidates=[None]), "line 3: None is not an offset"),
    (lambda rows: rows[2].update(offset=float("nan")), "line 3: nan is not an offset"),
])
def test_one_wrong_line_takes_nothing_in_and_is_named(tmp_path, db, kernel, wrong, told):
    rows = [json.loads(line) for line in exchange_jsonl.lines([remembered(kernel, Offset.known(DADDR, 0, "btf"))])]
    wrong(rows)
    file = tmp_path / "wrong.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    with pytest.raises(BadInput, match=told):
        take_in(db, file)
    assert db.kernels() == ()


def test_a_file_of_many_kernels_is_taken_whole_or_not_at_all(tmp_path, db):
    """What is wrong only once it is written too, as a table that another program has changed."""
    kernels = [Kernel(f"{at:040x}", f"5.4.{at}", "", "x86_64") for at in range(251)]
    file = tmp_path / "many.jsonl"
    file.write_text("".join(exchange_jsonl.lines(remembered(k, Offset.known(DADDR, 0, "btf")) for k in kernels)))
    db.change(lambda connection: connection.execute(
        "CREATE TRIGGER t BEFORE INSERT ON kernel WHEN NEW.release = '5.4.240' BEGIN SELECT RAISE(ABORT, 'no'); END"))

    with pytest.raises(sqlite3.IntegrityError):
        take_in(db, file)
    assert db.kernels() == ()

    db.change(lambda connection: connection.execute("DROP TRIGGER t"))
    assert take_in(db, file) == Absorbed(251, 251) and len(db.kernels()) == 251


def test_who_else_writes_does_not_wait_while_an_import_is_read_and_loses_nothing_by_it(db, kernel):
    """A lock held meanwhile would be Busy for the deadline of whoever writes; an import of thousands takes longer."""
    other = Kernel("cd" * 20, "5.4", "", "x86_64")

    def told():
        yield remembered(kernel, Offset.known(DADDR, 0, "btf"), Offset.known(DPORT, 12, "btf"))
        with Database.open(db.path) as writer:
            writer.record(kernel, [Offset.known(DADDR, 4, "btf"), Offset.known(TYPE, 8, "guess")])
            writer.record(other, [Offset.known(DADDR, 0, "btf")])
        yield remembered(other, Offset.known(DADDR, 0, "dwarf"))

    assert absorb_whole(db, told()) == Absorbed(2, 3)
    assert {(s.offset.field.member, s.offset.source): s.offset.offset for s in db.offsets(kernel)} == {
        ("skc_daddr", "btf"): 4, ("skc_daddr", "btf elsewhere"): 0, ("skc_dport", "btf"): 12, ("sk_type", "guess"): 8}
    assert {s.offset.source for s in db.offsets(other)} == {"btf", "dwarf"}


@pytest.mark.parametrize("statement", [
    'DROP TABLE "offset"', "ALTER TABLE kernel DROP COLUMN version", "DROP TABLE kernel; CREATE TABLE kernel (name)",
    'DROP TABLE "offset"; CREATE VIEW "offset" AS SELECT * FROM kernel',
    "UPDATE kernel SET release = x'ff'", "UPDATE \"offset\" SET reason = x'ff'", "UPDATE kernel SET modules = 7",
    "UPDATE \"offset\" SET candidates = 7", "UPDATE \"offset\" SET evidence = '[1]'"])
def test_what_no_kcompat_has_written_is_told_in_one_line(tmp_path, db, kernel, answers, statement):
    with Database.open(tmp_path / "theirs.db") as theirs:
        theirs.record(kernel, answers)
    with closing(sqlite3.connect(tmp_path / "theirs.db")) as theirs:
        theirs.executescript(statement)

    with pytest.raises(BadInput, match=r"theirs\.db: ") as error:
        take_in(db, tmp_path / "theirs.db")
    assert "\n" not in str(error.value) and db.kernels() == ()


def test_damage_in_what_is_merged_is_told_and_moves_nothing(tmp_path, db, kernel, answers):
    with Database.open(tmp_path / "theirs.db") as theirs:
        absorb(theirs, [remembered(Kernel(f"{at:040x}", f"5.4.{at}", "", "x86_64"), *answers) for at in range(300)])
    db.record(kernel, answers)
    raw = bytearray((tmp_path / "theirs.db").read_bytes())
    raw[len(raw) // 2:] = b"\xff" * (len(raw) - len(raw) // 2)
    (tmp_path / "theirs.db").write_bytes(raw)

    with pytest.raises(BadInput, match=r"theirs\.db: "):
        take_in(db, tmp_path / "theirs.db")
    assert db.kernels() == (kernel,) and not list(tmp_path.glob("*.corrupt-*"))


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{", b'{"format": 1}\n', b'{"constants": []}', b"\x9f\xeb",
                                     b"\xfd7zXZ\0", b"\x7fELF", b"SQLite format 3\0", b'{"format"\xff\xff'])
def test_what_is_none_of_it_is_refused_in_one_line(tmp_path, db, content):
    file = tmp_path / "some"
    file.write_bytes(content)

    with pytest.raises(KcompatError) as error:
        take_in(db, file)
    assert "\n" not in str(error.value) and db.kernels() == ()


def test_a_merge_keeps_both_sides_of_a_contradiction(tmp_path, db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "guess"), Offset.unknown(DPORT, "btf", "no BTF")])
    with Database.open(tmp_path / "other.db") as other:
        other.record(kernel, [Offset.known(DADDR, 4, "guess"), Offset.known(DPORT, 12, "btf")])
        for _ in range(2):
            merge(db, other)

    assert {key: s.offset.offset for key, s in everyone(db).items()} == {
        ("sock_common.skc_daddr", "guess"): 0, ("sock_common.skc_daddr", "guess elsewhere"): 4,
        ("sock_common.skc_dport", "btf"): 12}
    (disagreement,) = db.disagreements()
    assert disagreement.field == DADDR


ELSEWHERE = ("btf", "btf elsewhere", "btf elsewhere 2", "btf elsewhere 3")


def merged(db, tmp_path, kernel, *places):
    """Merges a database for each place, which BTF says there; who says what of what is held by then."""
    for number, place in enumerate(places):
        with Database.open(tmp_path / f"other{number}.db") as other:
            other.record(kernel, [Offset.known(DADDR, place, "btf")])
            merge(db, other)
    return {s.offset.offset: s.offset.source for s in db.offsets(kernel)}


def test_of_many_contradictions_none_vanishes(tmp_path, db, kernel):
    assert merged(db, tmp_path, kernel, 0, 4, 8, 4, 12, 0, 8) == dict(zip((0, 4, 8, 12), ELSEWHERE, strict=True))
    (disagreement,) = db.disagreements()
    assert [(source, o.offset) for source, o in disagreement.answers.items()] == [
        *zip(ELSEWHERE, (0, 4, 8, 12), strict=True)]


def test_two_that_merged_each_other_say_no_more_than_they_said(tmp_path, db, kernel):
    merged(db, tmp_path, kernel, 0, 4)
    with Database.open(tmp_path / "back.db") as back:
        (tmp_path / "others").mkdir()
        merged(back, tmp_path / "others", kernel, 4, 0)
        merge(db, back)
        merge(back, db)

        assert [{s.offset.source: s.offset.offset for s in one.offsets(kernel)} for one in (db, back)] == [
            {"btf": 0, "btf elsewhere": 4}, {"btf": 4, "btf elsewhere": 0}]


def test_within_one_file_contradictions_are_kept_too(db, kernel):
    absorb(db, [remembered(kernel, *(Offset.known(DADDR, place, "btf") for place in (0, 4, 0, 8)))])

    assert [(s.offset.source, s.offset.offset) for s in db.offsets(kernel)] == [
        *zip(ELSEWHERE[:3], (0, 4, 8), strict=True)]


@pytest.mark.parametrize("first", [0, 1])
def test_a_source_speaks_for_itself_whoever_has_quoted_it(db, kernel, first):
    said = [Offset.known(DADDR, 4, source) for source in ("btf", "btf elsewhere")]
    absorb(db, [remembered(kernel, said[first])])
    absorb(db, [remembered(kernel, said[1 - first])])

    assert {s.offset.source for s in db.offsets(kernel)} == {"btf"} | ({"btf elsewhere"} if first else set())
    assert db.disagreements() == ()


def test_a_refutation_of_what_was_said_elsewhere_ends_the_dispute(tmp_path, db, kernel):
    merged(db, tmp_path, kernel, 0, 4)
    with Database.open(tmp_path / "other1.db") as other:
        other.quarantine(kernel, DADDR, "btf", "an event saw another")
        merge(db, other)

    assert {s.offset.source: s.quarantine_reason for s in db.offsets(kernel)} == {
        "btf": None, "btf elsewhere": "an event saw another"}
    assert db.disagreements() == ()


def test_where_ours_was_refuted_theirs_is_believed(tmp_path, db, kernel):
    merged(db, tmp_path, kernel, 0, 4)
    db.quarantine(kernel, DADDR, "btf", "an event saw another")
    merged(db, tmp_path, kernel, 4)

    assert {s.offset.source: (s.offset.offset, s.quarantined_at) for s in db.offsets(kernel)} == {
        "btf": (4, None), "btf elsewhere": (4, None)}


def test_more_places_than_any_dispute_needs_are_bounded(db, kernel):
    absorb(db, [remembered(kernel, *(Offset.known(DADDR, place, "btf") for place in range(300)))])

    assert len(db.offsets(kernel)) == 100 and len(db.disagreements()) == 1


def test_what_was_refuted_elsewhere_is_refuted_here(tmp_path, db, kernel):
    answer = Offset.known(DADDR, 0, "btf")
    db.record(kernel, [answer])
    with Database.open(tmp_path / "other.db") as other:
        other.record(kernel, [answer])
        other.quarantine(kernel, DADDR, "btf", "an event saw another")
        merge(db, other)

    (stored,) = db.offsets(kernel)
    assert stored.quarantine_reason == "an event saw another"


def test_a_database_is_not_merged_into_itself(db):
    with pytest.raises(BadInput, match="the database itself"):
        take_in(db, db.path)


def test_a_header_is_c_that_knows_each_kernel(tmp_path, answers):
    held = [remembered(Kernel(c * 40, "4.15 */ #error", "", "x86_64"), *answers[:n]) for c, n in (("a", 1), ("b", 2))]
    (tmp_path / "offsets.h").write_text(exchange_header.render(held))
    source = tmp_path / "use.c"
    source.write_text(f"""
        #define {exchange_header.name("b" * 40)}
        #include "offsets.h"
        #include "offsets.h"
        _Static_assert(OFFSET_{answers[1].field.macro} == 8 && HAVE_{answers[0].field.macro}, "the second kernel");
    """)

    subprocess.run(["gcc", "-fsyntax-only", "-Wall", "-Werror", source], check=True, timeout=30)


def test_a_header_without_a_kernel_chosen_does_not_compile(tmp_path, answers):
    header = tmp_path / "offsets.h"
    header.write_text(exchange_header.render([remembered(Kernel(c * 40, "", "", ""), answers[0]) for c in "ab"]))

    done = subprocess.run(["gcc", "-fsyntax-only", header], capture_output=True, text=True, timeout=30)

    assert done.returncode and "KCOMPAT_KERNEL_<key>" in done.stderr


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "s390x", "i686"])
def test_btf_says_what_is_remembered(tmp_path, machine):
    kernel = Kernel("ab" * 20, "4.14", "", machine)
    offsets = [Offset.known(DADDR, 0, "btf"), Offset.known(DPORT, 12, "guess"), Offset.known(SRTT, 1600, "guess"),
               Offset.known(find("sk_protocol"), 541, "btf", width=1), Offset.known(find("net.ns.inum"), 136, "guess"),
               Offset.known(TYPE, 540, "dwarf", width=1, bit_offset=1, bit_size=3),
               Offset.known(find("flowi4.flowi_mark"), 8, "btf"), Offset.known(find("flowi4.flowi_proto"), 14, "btf"),
               Offset.known(find("skc_v6_daddr"), 56, "btf"), Offset.known(find("skc_bound_dev_if"), 20, "btf")]
    path = tmp_path / "small.btf"
    path.write_bytes(exchange_btf.render(remembered(kernel, *offsets, Offset.absent(find("skc_cookie"), "btf", "no"))))

    again = {o.field: o for o in BtfResolver(path).resolve(kernel, CATALOGUE) if o.state is State.KNOWN}

    assert {f: (o.offset, o.width, o.bit_offset) for f, o in again.items()} == {
        o.field: (o.offset, o.width, o.bit_offset) for o in offsets}


def test_btf_has_parts_in_their_whole_and_a_union_where_c_has_one(tmp_path):
    kernel = Kernel("ab" * 20, "6.18", "", "x86_64")
    places = {"msg_name": 0, "msg_iter": 16, "msg_iter.iov": 32, "msg_iter.ubuf": 32, "msg_iter.nr_segs": 48}
    path = tmp_path / "small.btf"
    path.write_bytes(exchange_btf.render(remembered(kernel, *(Offset.known(find(n), o, "btf") for n, o in
                                                              places.items()))))

    again = {o.field: o for o in BtfResolver(path).resolve(kernel, CATALOGUE) if o.state is State.KNOWN}

    assert {f.member: (o.offset, o.width) for f, o in again.items()} == {
        name: (offset, find(name).width) for name, offset in places.items()}


@pytest.mark.parametrize("offsets, told", [
    ((), "no known offset"),
    ((Offset.known(DADDR, 0, "btf"), Offset.known(DPORT, 2, "btf")), "lie on the same bytes"),
])
def test_btf_is_not_made_of_nothing_or_of_nonsense(kernel, offsets, told):
    with pytest.raises(KcompatError, match=told):
        exchange_btf.render(remembered(kernel, *offsets))


def test_a_disputed_field_is_not_given_out(db, kernel):
    db.record(kernel, [Offset.known(DADDR, 0, "btf"), Offset.known(DADDR, 4, "guess"), Offset.known(DPORT, 12, "btf")])
    (held,) = everything(db)

    assert "skc_daddr" not in exchange_header.render([held]) and "skc_dport 12" in exchange_header.render([held])


def test_a_file_appears_complete_or_not_at_all(tmp_path):
    write_whole(tmp_path / "out", b"first")
    with pytest.raises(KcompatError, match="none/out: No such file"):
        write_whole(tmp_path / "none" / "out", b"second")

    assert [p.name for p in tmp_path.iterdir()] == ["out"] and Path(tmp_path / "out").read_bytes() == b"first"


def test_what_is_no_regular_file_is_written_to_and_stays_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", b"first")

    assert os.read(reader, 100) == b"first" and (tmp_path / "pipe").is_fifo()
    os.close(reader)
    with pytest.raises(KcompatError, match="Is a directory"):
        write_whole(tmp_path, b"second")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could take a device's place")
def test_a_device_stays_a_device(tmp_path):
    try:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.close(os.open(tmp_path / "null", os.O_WRONLY))
    except PermissionError:
        pytest.skip("no devices can be made, or used, here")
    (tmp_path / "link").symlink_to("null")

    for name in ("null", "link"):
        write_whole(tmp_path / name, b"nothing")
    assert (tmp_path / "null").is_char_device() and (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_of_proc_is_written_to_and_takes_no_files_place(tmp_path):
    (tmp_path / "begun").write_bytes(b"first ")
    begun = os.open(tmp_path / "begun", os.O_RDWR)
    (tmp_path / "descriptors").symlink_to("/proc/self/fd")
    (tmp_path / "link").symlink_to(tmp_path / "descriptors" / str(begun))

    write_whole(tmp_path / "link", b"second")
    assert os.pread(begun, 100, 0) == b"first second"
    os.close(begun)


@pytest.mark.parametrize("there", [True, False])
def test_the_file_behind_a_link_is_replaced(tmp_path, there):
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to("below/other")
    (tmp_path / "below/other").symlink_to("file")
    if there:
        (tmp_path / "below/file").write_bytes(b"first")

    write_whole(tmp_path / "link", b"second")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "below/file").read_bytes() == b"second"
    assert (tmp_path / "below/other").is_symlink() and len(list(tmp_path.rglob("*"))) == 4


def test_links_in_a_circle_are_told(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(KcompatError, match="a: Too many levels"):
        write_whole(tmp_path / "a", b"first")
