import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcompat.errors import BadInput, Missing
from kcompat.kernel import Kernel, build_id_of_notes
from tests.kcompat.btf_builder import every_kind
from tests.kcompat.c_sample import compiled
from tests.kcompat.elf_builder import elf, note

BANNER = "Linux version 5.10.0-18-amd64 (debian-kernel@lists.debian.org) (gcc-10) #1 SMP Debian 5.10.140-1"
EARLY = BANNER.replace("#1 SMP", "# SMP")
RODATA = (".rodata", 1, 2, b"\1\0%s version %s (a@b)\0" + EARLY.encode() + b"\n\0" + BANNER.encode() + b"\n\0tail")
BUILD_ID = bytes(range(20))


def vmlinux(order="<", **how):
    xen = b"\4\0\0\0\4\0\0\0\6\0\0\0Xen\0abcd" if order == "<" else b"\0\0\0\4\0\0\0\4\0\0\0\6Xen\0abcd"
    return elf([(".notes", 7, 2, xen + note(BUILD_ID, order)), RODATA], order=order, **how)


@pytest.mark.parametrize(("order", "bits", "number", "machine"), [
    ("<", 64, 62, "x86_64"), ("<", 64, 183, "aarch64"), (">", 64, 22, "s390x"), ("<", 64, 21, "ppc64le"),
    ("<", 32, 40, "armv7l"), ("<", 32, 3, "i686"), ("<", 64, 243, "riscv64")])
def test_a_vmlinux_says_who_it_is(tmp_path, order, bits, number, machine):
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux(order, bits=bits, machine=number))
    assert Kernel.from_vmlinux(path) == Kernel(BUILD_ID.hex(), "5.10.0-18-amd64", BANNER, machine)


def test_the_build_id_is_the_linkers(tmp_path):
    path = compiled(tmp_path, "-shared", "-nostdlib", "-Wl,--build-id=0x0123456789abcdef",
                    source=f'const char linux_banner[] = "{BANNER}\\n";')
    kernel = Kernel.from_vmlinux(path)
    assert (kernel.build_id, kernel.version) == ("0123456789abcdef", BANNER)


def test_banners_outside_what_is_loaded_do_not_count(tmp_path):
    path = tmp_path / "tool"
    path.write_bytes(elf([(".comment", 1, 0, RODATA[3]), (".bss", 8, 2, b"")]))
    with pytest.raises(BadInput, match="banner"):
        Kernel.from_vmlinux(path)


def test_what_is_no_vmlinux(tmp_path):
    (tmp_path / "text").write_text("bzImage")
    (tmp_path / "odd").write_bytes(vmlinux(machine=4711))
    for name, fault in {"text": "not an ELF", "odd": "machine 4711", "": "directory"}.items():
        with pytest.raises(BadInput, match=fault):
            Kernel.from_vmlinux(tmp_path / name)
    with pytest.raises(Missing, match="none does not exist"):
        Kernel.from_vmlinux(tmp_path / "none")


@given(st.integers(0, len(vmlinux()) - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_truncated_vmlinux_is_bad_input(tmp_path, length):
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux()[:length])
    with pytest.raises(BadInput):
        Kernel.from_vmlinux(path)


@given(at=st.integers(0, len(vmlinux()) - 1), mask=st.integers(1, 255))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_flipped_vmlinux_is_bad_input_or_a_kernel(tmp_path, at, mask):
    data, path = bytearray(vmlinux()), tmp_path / "vmlinux"
    data[at] ^= mask
    path.write_bytes(data)
    try:
        kernel = Kernel.from_vmlinux(path)
    except BadInput:
        return
    assert kernel.version.startswith("Linux version ")


@pytest.mark.parametrize(("name", "release", "machine"), [
    ("4.19.90-24.4.v2101.ky10.aarch64.btf", "4.19.90-24.4.v2101.ky10.aarch64", "aarch64"),
    ("3.10.0-1062.el7.x86_64.btf", "3.10.0-1062.el7.x86_64", "x86_64"),
    ("5.10.0-18-amd64.btf", "5.10.0-18-amd64", "x86_64"),
    ("arm64/4.15.0-20-generic.btf", "4.15.0-20-generic", "aarch64"),
    ("4.15.0-20-generic.btf", "4.15.0-20-generic", ""),
    ("vmlinux", "", ""),
])
def test_btf_is_known_by_its_name_and_its_hash(tmp_path, name, release, machine):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(every_kind().build())
    build_id = "btf-" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert Kernel.from_btf(path) == Kernel(build_id, release, "", machine)


def test_btf_in_a_vmlinux_has_the_vmlinux_identity(tmp_path):
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux())
    assert Kernel.from_btf(path) == Kernel.from_vmlinux(path)


def test_what_is_no_btf(tmp_path):
    (tmp_path / "text").write_text("x")
    with pytest.raises(BadInput, match="not BTF"):
        Kernel.from_btf(tmp_path / "text")


def test_the_running_kernel_has_a_key():
    kernel = Kernel.running()
    assert kernel.release in kernel.version
    assert kernel.key == (kernel.build_id or kernel.key)


@pytest.mark.parametrize("order", ["<", ">"])
def test_build_id_is_found_among_other_notes(order):
    assert build_id_of_notes(note(b"", order) + b"", order) is None
    assert build_id_of_notes(note(BUILD_ID, order)[:-1], order) is None
    assert build_id_of_notes(note(BUILD_ID, order), order) == BUILD_ID.hex()
