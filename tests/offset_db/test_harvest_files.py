"""Whatever a kernel is packed in, its identity and its offsets come out of the file itself."""

import bz2
import gzip
import lzma
import os
import shutil
import struct
from pathlib import Path

import pytest
import zstandard

from kcompat.btf import RUNNING, BtfResolver
from kcompat.elf import Elf
from kcompat.errors import BadInput
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State
from kcompat.shuffled import SHUFFLED, UNTOLD
from kcompat.version import release_version
from offset_db import harvest_kernels
from offset_db.harvest_file import kernel_within, read
from tests.kcompat.btf_builder import BtfBuilder
from tests.kcompat.c_sample import SHARED, compiled, need, run
from tests.kcompat.elf_builder import elf, note
from tests.offset_db.harvest_samples import (
    BANNER,
    BUILD_ID,
    C_KERNEL,
    C_MODULE,
    arm64_image,
    btf,
    bzimage,
    deb,
    lz4_legacy,
    module,
    rpm,
    tar,
    vmlinux,
    zboot,
)

DPORT = find("sock_common.skc_dport")


def written(directory, data, name="file"):
    path = directory / name
    path.write_bytes(data)
    return path


def only(path):
    """The one kernel in it, and its offsets by (field, source)."""
    report = read(path)
    assert not report.faults and report.nothing is None, report
    (found,) = report.found
    return found.kernel, {(o.field, o.source): o.offset for o in found.offsets}


def is_sample(path, dport=40, release="6.1.0-test", machine="x86_64"):
    kernel, offsets = only(path)
    return ((kernel.build_id, kernel.release, kernel.machine) == (BUILD_ID.hex(), release, machine)
            and offsets[DPORT, "btf"] == dport)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, zstandard.compress, lz4_legacy,
                                  lambda data: lzma.compress(data, lzma.FORMAT_ALONE)])
def test_a_boot_image_gives_its_kernel(tmp_path, pack):
    assert is_sample(written(tmp_path, bzimage(pack(vmlinux()))))


def test_which_kernel_a_boot_image_is_of_is_told_without_anything_known_of_it(tmp_path):
    bare = elf([(".notes", 7, 2, note(BUILD_ID)), (".rodata", 1, 2, BANNER)], machine=62)
    path = written(tmp_path, bzimage(gzip.compress(bare)))
    kernel = kernel_within(path)
    assert (kernel.build_id, kernel.release, kernel.machine) == (BUILD_ID.hex(), "6.1.0-test", "x86_64")
    path.write_bytes(b"no image")
    with pytest.raises(BadInput, match="no boot image with a kernel in it"):
        kernel_within(path)


def test_a_payload_the_header_does_not_tell_of_is_searched_for(tmp_path):
    assert is_sample(written(tmp_path, bzimage(gzip.compress(vmlinux()), protocol=0x205)))


@pytest.mark.parametrize("wrap", [bytes, gzip.compress, lambda image: zboot(gzip.compress(image))])
def test_an_arm64_image_is_read_without_elf(tmp_path, wrap):
    kernel, offsets = only(written(tmp_path, wrap(arm64_image(dport=48))))

    assert (kernel.build_id, kernel.release, kernel.machine) == (BUILD_ID.hex(), "6.1.0-arm", "aarch64")
    assert offsets[DPORT, "btf"] == 48


@pytest.mark.parametrize("machine, called", [(62, "x86_64"), (183, "aarch64")])
def test_vmlinux_of_either_machine(tmp_path, machine, called):
    assert is_sample(written(tmp_path, vmlinux(machine=machine)), machine=called)


@pytest.mark.parametrize("compression", ["xz", "zstd", "gzip", "none"])
def test_a_debian_package(tmp_path, compression):
    need("dpkg-deb")
    members = {"usr/lib/debug/boot/vmlinux-6.1.0-test": vmlinux(dport=24), "usr/lib/debug/lib/x.ko": module()}

    assert is_sample(deb(tmp_path, members, compression), dport=24)


@pytest.mark.parametrize("pack", [lzma.compress, zstandard.compress, gzip.compress, bytes])
def test_an_rpm_package(tmp_path, pack):
    members = {"./usr/lib/debug/lib/modules/x.ko.debug": module(), "./usr/lib/debug/lib/modules/vmlinux": vmlinux()}

    assert is_sample(written(tmp_path, rpm(members, pack)))


def test_btfhub_archives_are_what_btf_says_of_them():
    for machine in ("x86_64", "aarch64"):
        paths = list(SHARED.glob(f"data/*{machine}.btf.tar.xz"))
        if not paths:
            pytest.skip("needs ../shared/data")
        kernel, offsets = only(paths[0])

        assert kernel.machine == machine and kernel.release == paths[0].name.removesuffix(".btf.tar.xz")
        assert {f for f, _ in offsets} >= {f for f in CATALOGUE if not f.module}
        assert offsets[find("sk_protocol"), "btf"] > 0


@pytest.mark.skipif(not RUNNING.exists(), reason="this kernel has no BTF")
def test_the_running_kernels_btf_is_the_running_kernels():
    kernel, offsets = only(RUNNING)
    direct = BtfResolver().resolve(kernel, CATALOGUE)

    assert kernel.key == Kernel.running().key
    assert offsets == {(o.field, "btf"): o.offset for o in direct if o.state is not State.UNKNOWN}


@pytest.mark.skipif(not RUNNING.exists(), reason="this kernel has no BTF")
def test_btf_without_a_telling_name_tells_its_machine(tmp_path):
    shutil.copy(RUNNING, tmp_path / "nameless")

    assert only(tmp_path / "nameless")[0].machine == os.uname().machine


def kernel_of_gcc(directory):
    return compiled(directory, "-g", "-shared", "-nostdlib", "-Wl,--build-id=0x" + "ab" * 20, source=C_KERNEL,
                    name="vmlinux")


def test_dwarf_and_btf_of_one_file_are_two_sources(tmp_path):
    path = kernel_of_gcc(tmp_path)
    need("objcopy")
    # The BTF disagrees with the DWARF, so that neither can stand in for the other.
    run("objcopy", "--add-section", f".BTF={written(tmp_path, btf(dport=48), 'btf')}", path)

    kernel, offsets = only(path)

    assert (kernel.release, kernel.build_id) == ("5.4.0-test", "ab" * 20)
    assert (offsets[DPORT, "dwarf"], offsets[DPORT, "btf"]) == (40, 48)


def test_broken_btf_is_told_and_costs_not_the_dwarf(tmp_path):
    path = kernel_of_gcc(tmp_path)
    need("objcopy")
    run("objcopy", "--add-section", f".BTF={written(tmp_path, btf()[:40], 'btf')}", path)

    report = read(path)

    assert "BTF" in report.faults[0] and {o.source for o in report.found[0].offsets} == {"dwarf"}


def kept_apart(directory, task):
    need("objcopy", "gcc")
    source = C_KERNEL + f'{task} __attribute__((section("__ksymtab"))) int symbol = 1;'
    path = compiled(directory, "-g", "-shared", "-nostdlib", "-Wl,--build-id=0x" + "cd" * 20, source=source, name="k")
    run("objcopy", "--only-keep-debug", path, directory / "vmlinux-5.4.0-test.debug")
    return directory / "vmlinux-5.4.0-test.debug"


@pytest.mark.parametrize("task", [
    "struct task_struct { long state; struct { void *stack, *files; }; } the_task;", "struct task_struct *the_task;",
    ""])
def test_debug_information_kept_apart_that_may_be_of_a_shuffled_kernel_is_a_fault(tmp_path, task):
    report = read(kept_apart(tmp_path, task))

    assert not report.found and "RANDSTRUCT" in report.faults[0]


@pytest.mark.parametrize("reason", [SHUFFLED, UNTOLD])
def test_what_may_have_been_shuffled_is_not_merely_nothing(reason):
    with pytest.raises(BadInput, match="RANDSTRUCT"):
        harvest_kernels._told([Offset.unknown(find("skc_daddr"), "dwarf", reason)], Path("vmlinux"))


def test_debug_information_kept_apart_has_the_build_id(tmp_path):
    kernel, offsets = only(kept_apart(tmp_path, "struct task_struct { long state; void *stack, *files; } the_task;"))

    assert (kernel.build_id, kernel.release) == ("cd" * 20, "5.4.0-test") and offsets[DPORT, "dwarf"] == 40


def module_of_gcc(directory, release="6.1.0-test", *options):
    need("gcc")
    modinfo = f'__attribute__((section(".modinfo"))) char magic[] = "vermagic={release} SMP mod_unload";'
    path = compiled(directory, "-g", "-c", source=C_MODULE + (modinfo if release else ""), name="nf_conntrack.ko")
    run("objcopy", "--add-section", f".note.gnu.build-id={written(directory, note(b'm' * 20), 'note')}",
        "--set-section-flags", ".note.gnu.build-id=alloc,readonly", *options, path)
    # objcopy makes a section of bytes, and ELF tells notes by their type.
    data = bytearray(path.read_bytes())
    sections = Elf(bytes(data), path)
    table, = struct.unpack_from("<Q", data, 40)
    number = [s.name for s in sections.sections].index(".note.gnu.build-id")
    struct.pack_into("<I", data, table + 64 * number + 4, 7)
    path.write_bytes(data)
    return path


def owned(path):
    report = read(path)
    assert not report.faults and report.nothing is None, report
    (found,) = report.found
    return found.kernel, {o.field.name: o.offset for o in found.offsets}


def test_a_modules_debug_file_tells_of_the_structs_it_owns(tmp_path):
    kernel, offsets = owned(module_of_gcc(tmp_path))

    assert (kernel.key, kernel.release) == ("release-6.1.0-test--x86_64", "6.1.0-test")
    assert kernel.modules == {"nf_conntrack": (b"m" * 20).hex()}
    assert (offsets["nf_conn.status"], offsets["nf_conn.mark"]) == (128, 136)
    assert {find(name).module for name in offsets} == {"nf_conntrack"}


def test_a_module_kept_apart_is_of_the_release_in_its_path(tmp_path):
    directory = tmp_path / "lib/modules/6.1.0-56-amd64/kernel/net"
    directory.mkdir(parents=True)
    path = module_of_gcc(directory, None)

    assert owned(path)[0].release == "6.1.0-56-amd64"
    assert "of no known kernel" in read(Path(shutil.copy(path, tmp_path / "nf_conntrack.ko"))).faults[0]


def test_a_package_whose_kernel_lacks_a_modules_structs_is_read_on_for_the_module(tmp_path):
    need("dpkg-deb")
    members = {"usr/lib/debug/boot/vmlinux-6.1.0-test": vmlinux(), "usr/lib/debug/lib/other.ko": module(),
               "usr/lib/debug/lib/nf_conntrack.ko.debug": module_of_gcc(tmp_path).read_bytes()}

    report = read(deb(tmp_path / "deb", members, "xz"))

    assert [f.kernel.key for f in report.found] == [BUILD_ID.hex(), "release-6.1.0-test--x86_64"] and not report.faults


@pytest.mark.parametrize("name", ["nf_conntrack.ko", "other.ko"])
def test_a_module_without_debug_information_has_nothing_wanted_in_it(tmp_path, name):
    report = read(written(tmp_path, module(), name))

    assert not report.found and not report.faults and report.nothing


def test_split_btf_needs_its_base_beside_it(tmp_path):
    base = BtfBuilder()
    base.int("unsigned int", 4)
    split = BtfBuilder(base=base)
    split.int("module_int", 4)
    path = written(tmp_path, split.build(), "some_module")
    alone = read(path)
    written(tmp_path, base.build(), "vmlinux")

    assert "needs its base" in alone.faults[0]
    assert not read(path).faults and "some_module" in read(path).nothing


def test_split_btf_may_have_all_of_its_strings_in_its_base(tmp_path):
    base = BtfBuilder()
    u32 = base.int("unsigned int", 4)
    names = {name: base.string(name) for name in ("nf_conn", "mark")}
    written(tmp_path, base.build(), "vmlinux")
    split = BtfBuilder(base=base)
    split.types += struct.pack("<6I", names["nf_conn"], 4 << 24 | 1, 172, names["mark"], u32, 168 * 8)
    report = read(written(tmp_path, split.build(), "nf_conntrack"))

    (found,) = report.found
    assert {o.field.name: o.offset for o in found.offsets if o.state is State.KNOWN} == {"nf_conn.mark": 168}


def test_a_real_rpm_package(tmp_path):
    """What rpmbuild makes: headers with tags in them, and the payload packed as Fedora does."""
    need("rpmbuild")
    root = tmp_path / "root/usr/lib/debug/lib/modules/6.1.0-test"
    root.mkdir(parents=True)
    (root / "vmlinux").write_bytes(vmlinux())
    (root / "x.ko.debug").write_bytes(module())
    spec = tmp_path / "k.spec"
    spec.write_text("Name: kernel-debuginfo\nVersion: 6.1.0\nRelease: 1\nSummary: d\nLicense: GPL\nAutoReqProv: no\n"
                    f"%description\nd\n%install\ncp -r {tmp_path}/root/. %{{buildroot}}/\n%files\n/usr/lib/debug\n")
    defined = {"_topdir": tmp_path / "top", "_rpmdir": tmp_path / "out", "debug_package": "%{nil}",
               "_binary_payload": "w3.zstdio", "_dbpath": tmp_path / "db", "__os_install_post": "%{nil}"}
    run("rpmbuild", "-bb", *(word for name, value in defined.items() for word in ("--define", f"{name} {value}")), spec)

    assert is_sample(next((tmp_path / "out").rglob("*.rpm")))


def test_a_tar_may_hold_several_kernels(tmp_path):
    kernels = {f"{n}.{n}.0.x86_64.btf": btf(dport=40 + 8 * n) for n in range(3)}

    report = read(written(tmp_path, tar(kernels, "w:xz")))

    assert sorted(f.kernel.release for f in report.found) == ["0.0.0.x86_64", "1.1.0.x86_64", "2.2.0.x86_64"]


def test_recognised_by_content_not_by_name(tmp_path):
    assert is_sample(written(tmp_path, vmlinux(), "holiday.jpg"))
    assert read(written(tmp_path, b"just text", "vmlinux")).foreign


def test_real_boot_images():
    kernels = Path("/root/.cache/kcompat/kernels")
    images = sorted(kernels.glob("linux-image-*/boot/vmlinuz-*")) if os.geteuid() == 0 else []
    if not images:
        pytest.skip("no kernel of the matrix was fetched")
    for image in images:
        release = image.name.removeprefix("vmlinuz-")
        if release_version(release) < release_version("5.4"):  # Ubuntu's: it builds them with BTF from there on
            assert read(image).nothing == "a kernel without BTF and without DWARF in it"
            assert kernel_within(image).release == release
            continue
        kernel, offsets = only(image)
        assert kernel.release == release and len(offsets) == len(CATALOGUE)
