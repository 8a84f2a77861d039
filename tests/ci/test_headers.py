"""Headers become a judge: a real gcc and the product's own reader, on headers of our own; apt is played."""

import json
import shutil
import subprocess

import pytest

from ci import apt, headers
from ci.apt import FetchError
from ci.fetch import Image
from ci.headers import compile_layout, layout_source, with_headers
from ci.kernels import Entry
from ci.offsetof import HEADERS
from ci.product import ProductError, read_dwarf

if shutil.which("gcc") is None:
    pytest.skip("gcc is not installed", allow_module_level=True)

RELEASE, VERSION = "4.4.0-9-generic", "4.4.0-9.1"
BUILD_ID = "ab" * 20
BANNER = f'Linux version {RELEASE} (me@here) (gcc "5") #9-Ubuntu SMP (Ubuntu {VERSION}-generic 4.4.262)'
ENTRY = Entry("4.4-ubuntu", ("old", "new"), r"linux-image-4\.4\.0-\d+-generic", "generic", "x86_64",
              distribution="ubuntu")
FIELDS = ("sock.sk_protocol", "sock.sk_mark", "net.ns.inum")
STRUCTS = """
#pragma once
struct net { char pad[5]; struct { long x; int inum; } ns; };
struct sock { int before; unsigned int sk_padding : 8, sk_protocol : 8, sk_type : 16;
#ifdef CC_HAVE_ASM_GOTO
int only_with_asm_goto;
#endif
#ifdef CONFIG_MARK
int sk_mark;
#endif
};
static inline int calls_what_is_nowhere(void) { extern int nowhere(void); return nowhere(); }
"""
INDEX = f"""Package: linux-headers-{RELEASE}
Version: {VERSION}
Depends: linux-hwe-headers-4.4.0-9, libc6 (>= 2.14)

Package: linux-hwe-headers-4.4.0-9
Version: {VERSION}

Package: linux-hwe-headers-4.4.0-9
Version: 4.4.0-9.0

"""


def tree(root):
    """Headers as a kernel's package has them; its configuration is asked for by ``kconfig.h``."""
    for header in HEADERS:
        path = root / "include" / header
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STRUCTS if header == "net/sock.h" else "")
    (root / "include/linux/kconfig.h").write_text("#define CONFIG_MARK 1\n")
    return root


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Where the headers come from: two packages, of which the one for this flavour depends on the other."""
    class Mirror:
        index, taken = INDEX, []

        def download(self, package, suite, architecture, cache, into):
            self.taken.append((suite, package.name, package.version))
            root = into / package.name
            if package.name == f"linux-headers-{RELEASE}":
                tree(root / "usr/src" / package.name)
            (root / "DEBIAN").mkdir(parents=True)
            (root / "DEBIAN/control").write_text(f"Package: {package.name}\nVersion: 1\nArchitecture: all\n"
                                                 "Maintainer: a\nDescription: a\n")
            subprocess.run(["dpkg-deb", "-b", root, into / f"{package.name}.deb"], check=True, capture_output=True)
            return into / f"{package.name}.deb"

    played = Mirror()
    played.taken = []
    monkeypatch.setattr(apt, "index", lambda suite, *_: played.index if suite == "new" else "")
    monkeypatch.setattr(apt, "download", played.download)
    monkeypatch.setattr(headers, "identity", lambda vmlinuz: {"build_id": BUILD_ID, "version": BANNER})
    monkeypatch.setattr(headers, "catalogue", lambda: {name: [] for name in FIELDS})
    return played


@pytest.fixture
def image(tmp_path):
    return Image("linux-image", VERSION, RELEASE, tmp_path / "vmlinuz", ("a note",))


def places(vmlinux):
    dwarf, _ = read_dwarf(vmlinux, "headers")
    assert dwarf.name == "headers"
    return dwarf.said["kernel"], {f"{f['struct']}.{f['member']}": (f["offset"], f["bit_offset"])
                                  for f in dwarf.said["fields"] if f["state"] == "known"}


def test_what_it_makes_is_read_as_the_kernels_own_vmlinux(tmp_path):
    compile_layout(tree(tmp_path / "tree"), "x86_64", layout_source(FIELDS, BANNER), BUILD_ID, tmp_path / "vmlinux")
    kernel, found = places(tmp_path / "vmlinux")
    assert (kernel["build_id"], kernel["release"], kernel["version"]) == (BUILD_ID, RELEASE, BANNER)
    assert found["net.ns.inum"] == (16, None)
    assert found["sock.sk_protocol"][0] == 5
    assert found["sock.sk_mark"] == (12, None)


def test_each_struct_is_named_once_whatever_its_fields():
    source = layout_source(FIELDS, BANNER)
    assert [line for line in source.splitlines() if line.startswith("struct")] == [
        "struct sock *kcompat_sock;", "struct net *kcompat_net;"]


def test_headers_that_do_not_compile_are_told_with_the_compilers_words(tmp_path):
    (tree(tmp_path / "tree") / "include/linux/kconfig.h").write_text("#error wrong kernel\n")
    with pytest.raises(FetchError, match="error: #error wrong kernel"):
        compile_layout(tmp_path / "tree", "x86_64", layout_source(FIELDS, BANNER), None, tmp_path / "vmlinux")
    assert not (tmp_path / "vmlinux").exists()
    with pytest.raises(FetchError, match="do not compile"):
        compile_layout(tmp_path / "none", "x86_64", layout_source(FIELDS, BANNER), None, tmp_path / "vmlinux")


def test_the_headers_of_just_this_build_and_what_they_depend_on(mirror, image, tmp_path):
    judged = with_headers(ENTRY, image, tmp_path / "cache")
    assert (judged.judge, judged.notes) == ("headers", ("a note",))
    assert places(judged.vmlinux)[1]["sock.sk_mark"] == (12, None)
    assert mirror.taken == [("new", f"linux-headers-{RELEASE}", VERSION), ("new", "linux-hwe-headers-4.4.0-9", VERSION)]
    assert with_headers(ENTRY, image, tmp_path / "cache") == judged
    assert len(mirror.taken) == 2


def test_another_builds_headers_would_be_a_wrong_judge(mirror, image, tmp_path):
    mirror.index = INDEX.replace(VERSION, "4.4.0-9.2")
    judged = with_headers(ENTRY, image, tmp_path / "cache")
    assert judged.vmlinux is None
    assert judged.notes[1:] == (f"no layout from headers: old, new have no linux-headers-{RELEASE} {VERSION}",)


def test_a_boot_image_that_does_not_say_who_it_is_has_no_judge(mirror, image, tmp_path, monkeypatch):
    def identity(vmlinuz):
        raise ProductError("no boot image")

    monkeypatch.setattr(headers, "identity", identity)
    assert with_headers(ENTRY, image, tmp_path / "cache").notes[1:] == ("no layout from headers: no boot image",)


def test_the_banner_is_a_string_in_c_whatever_it_holds():
    line = layout_source((), 'a "b" \\ c').splitlines()[-1]
    assert json.loads(line.partition("= ")[2].rstrip(";")) == 'a "b" \\ c'
