"""DataDog's constants, BTFHub's archives and the debug information of old distributions: real files, and they agree."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from kcompat.errors import BadInput, KcompatError
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State
from offset_db import exchange_datadog, queries
from offset_db.exchange import give, take_in
from offset_db.exchange_merge import absorb
from offset_db.exchange_names import distribution, named_kernel
from offset_db.queries_verify import verify
from offset_db.rows import Remembered, Stored
from tests.kcompat.cli_tools import sock_common

SHARED = Path(__file__).parents[3] / "shared/data"
AT = "2031-01-01T00:00:00Z"
needs_shared = pytest.mark.skipif(not (SHARED / "datadog-constants.json").exists(), reason="shared/data is not here")


def constants(release="4.15.0-42-generic", cindex=0, **values):
    return json.dumps({"constants": [values, values], "kernels": [
        {"distrib": "ubuntu", "version": "18.04", "arch": "arm64", "uname_release": release, "cindex": cindex}]})


def parsed(text):
    (one,) = exchange_datadog.parse(text, "x", AT)
    return one.kernel, {s.offset.field.name: s.offset.offset for s in one.stored}


def archive(path, name="kernel.btf", data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as tar:
        member = tarfile.TarInfo(name)
        content = sock_common() if data is None else data
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return path


def test_datadogs_kernels_are_keyed_by_name_and_marked_so():
    kernel, offsets = parsed(constants(flowi4_uli_offset=48, sock_common_skc_net_offset=48, sizeof_inode=1))

    assert kernel.key == "release-4.15.0-42-generic-ubuntu-18.04-aarch64"
    assert (kernel.release, kernel.machine, distribution(kernel)) == ("4.15.0-42-generic", "aarch64", "ubuntu-18.04")
    assert offsets == {"flowi4.dport": 48, "flowi4.sport": 50, "sock_common.skc_net": 48}


@pytest.mark.parametrize("release, inum", [("4.15.0-42-generic", 136), ("6.18.0-1", None)])
def test_inum_is_not_made_up_where_ns_common_is_another(release, inum):
    assert parsed(constants(release, net_ns_offset=120))[1].get("net.ns.inum") == inum


@pytest.mark.parametrize("text", [
    "[]", "{}", '{"constants": [], "kernels": [{}]}', constants(flowi4_saddr_offset=-1), "[" * 100_000,
    constants(flowi4_saddr_offset="40"), constants("5.4-\ud800", flowi4_saddr_offset=40),
    constants(5, flowi4_saddr_offset=40), *(constants(cindex=index) for index in (-1, True, False, 1.0, "0", 2))])
def test_another_shape_is_bad_input(text):
    with pytest.raises(BadInput, match="not DataDog's constants"):
        list(exchange_datadog.parse(text, "x", AT))


@pytest.mark.parametrize("release, version, name", [
    ("5.10.0-32-amd64", "", "debian"), ("3.10.0-1160.el7.x86_64", "", "centos"), ("5.4.0-1-generic", "", "ubuntu"),
    ("6.1.0", "Linux version 6.1.0 (gcc (Debian 12.2.0-14))", "debian"), ("4.14.1.amzn2.x86_64", "", "amzn"),
    ("6.18.44-fc-v669", "", "")])
def test_release_or_banner_give_the_distribution_away(release, version, name):
    assert distribution(Kernel("ab" * 20, release, version, "x86_64")) == name


def test_a_btfhub_tree_names_its_kernels_and_one_bad_archive_does_not_stop_the_rest(tmp_path, db):
    archive(tmp_path / "ubuntu/18.04/arm64/4.15.0-1-generic.btf.tar.xz")
    bad = archive(tmp_path / "ubuntu/18.04/arm64/4.15.0-2-generic.btf.tar.xz", data=b"no BTF")
    faults = []

    absorbed = take_in(db, tmp_path, faults.append)

    assert [k.key for k in db.kernels()] == ["release-4.15.0-1-generic-ubuntu-18.04-aarch64"]
    assert absorbed.kernels == 1 and [fault.path for fault in faults] == [str(bad)]


def test_a_name_that_is_no_utf8_is_kept_as_text(tmp_path, db):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff/1/x86_64/5.4\xff.btf.tar.xz"))
    assert take_in(db, archive(path)).kernels == 1
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/5.6\xff.btf"))
    path.write_bytes(sock_common())
    take_in(db, path)

    assert sorted(k.release for k in db.kernels()) == ["5.4\ufffd", "5.6\ufffd"]


@pytest.mark.parametrize("name, told", [("kernel.txt", r"without a \.btf file"), ("../../x.btf", None)])
def test_an_archive_is_read_and_never_unpacked(tmp_path, db, name, told):
    path = archive(tmp_path / "a" / "4.15.0-1.x86_64.btf.tar.xz", name)
    if told:
        with pytest.raises(BadInput, match=told):
            take_in(db, path)
    else:
        assert take_in(db, path).kernels == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["4.15.0-1.x86_64.btf.tar.xz", "a", "offsets.db",
                                                           "offsets.db-shm", "offsets.db-wal"]


@needs_shared
def test_an_ubuntu_kernel_is_resolved_from_datadogs_file(db):
    take_in(db, SHARED / "datadog-constants.json")

    one = queries.one(db, "4.15.0-42-generic")

    assert {s.offset.field.name: s.offset.offset for s in one.stored} == {
        "sock_common.skc_family": 16, "sock_common.skc_net": 48, "net.ns.inum": 136, "flowi4.saddr": 40,
        "flowi4.sport": 50, "flowi4.dport": 48, "flowi6.saddr": 56, "flowi6.sport": 78, "flowi6.dport": 76}
    assert len(db.kernels()) == 1339 and verify(db) == []


@needs_shared
def test_what_datadog_gave_goes_back_as_it_came(db):
    ours = {constant for constant, *_ in exchange_datadog._CONSTANTS}
    original = json.loads((SHARED / "datadog-constants.json").read_text())
    take_in(db, SHARED / "datadog-constants.json")

    again = json.loads(give(db, "datadog", None))

    def flat(document):
        return {(k["distrib"], k["version"], k["arch"], k["uname_release"]):
                {name: value for name, value in document["constants"][k["cindex"]].items() if name in ours}
                for k in document["kernels"]}

    assert flat(again) == flat(original)


def layouts():
    """The kernels of layouts-pre-btf.json, as DWARF told them."""
    for release, found in json.loads((SHARED / "layouts-pre-btf.json").read_text()).items():
        offsets = [o for o in (told(f, found) for f in CATALOGUE) if o.state is State.KNOWN]
        yield release, offsets


def told(field, found):
    """Members are listed without their types; what lies below one is known for the structs that are listed too."""
    inner = {"uli": {"ports": 0, "ports.dport": 0, "ports.sport": 2}, "skc_net": {"net": 0}}
    inner |= {"ns": found.get("ns_common", {}).get("members", {}), "__fl_common": found["flowi_common"]["members"]}
    members = found.get(field.struct, {}).get("members", {})
    places = dict(members) | {f"{outer}.{name}": members[outer] + at for outer, parts in inner.items()
                              if type(members.get(outer)) is int for name, at in parts.items() if type(at) is int}
    for path in field.paths:
        if type(places.get(path)) is int:
            return Offset.known(field, places[path], "dwarf")
    return Offset.unknown(field, "dwarf", "not listed")


@needs_shared
def test_every_overlap_of_the_shared_files_agrees_or_is_listed(db):
    take_in(db, SHARED / "datadog-constants.json")
    take_in(db, SHARED)
    named = {k.release: k for k in db.kernels() if k.machine == "x86_64"}
    overlapping = [(named.get(release) or named_kernel(release, "", "x86_64"), offsets)
                   for release, offsets in layouts()]
    absorb(db, [Remembered(kernel, AT, AT, tuple(Stored(o, AT) for o in offsets)) for kernel, offsets in overlapping])

    both = [(r.kernel.release, f) for kernel, offsets in overlapping for r in db.show(kernel.key)
            for f in {s.offset.field for s in r.stored if s.offset.source == "datadog"} & {o.field for o in offsets}]

    assert len({release for release, _ in both}) == 22 and len(both) >= 22 * 6
    assert db.disagreements() == () and verify(db) == []


@needs_shared
def test_a_lie_in_one_of_them_is_listed(db):
    take_in(db, SHARED / "datadog-constants.json")
    kernel = queries.one(db, "4.15.0-42-generic").kernel
    absorb(db, [Remembered(kernel, AT, AT, (Stored(Offset.known(find("skc_net"), 56, "dwarf"), AT),))])

    (found,) = db.disagreements()

    assert {source: o.offset for source, o in found.answers.items()} == {"datadog": 48, "dwarf": 56}


@needs_shared
@pytest.mark.parametrize("btfhub", sorted(SHARED.glob("*.btf.tar.xz")), ids=lambda p: p.name[:16])
def test_minimal_btf_of_another_machines_kernel_says_the_same(db, tmp_path, btfhub):
    # Not `path`: that is the fixture of the database.
    take_in(db, btfhub)
    (held,) = queries.everything(db)
    small = tmp_path / "small.btf"
    small.write_bytes(give(db, "btf", held))

    take_in(db, small)

    (again,) = (r for r in queries.everything(db) if r.kernel != held.kernel)
    assert all(d.before.state is State.ABSENT for d in queries.diff(held, again))


def test_a_kernel_of_many_names_must_be_named_by_its_key(db):
    for machine in ("x86_64", "aarch64"):
        absorb(db, [Remembered(named_kernel("5.4", "ubuntu-20.04", machine), AT, AT, ())])

    with pytest.raises(KcompatError, match=r"'5\.4' is 2 kernels"):
        queries.one(db, "5.4")
    assert queries.one(db, "release-5.4-ubuntu-20.04-x").kernel.machine == "x86_64"
