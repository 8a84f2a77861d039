"""Guests on disk: what goes on their disks is read back with the tools of e2fsprogs, cpio and kmod's own indexes."""

import gzip
import lzma
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ci import disk, ext4, initramfs, rootfs
from ci.apt import FetchError
from ci.fetch import cache_dir
from ci.job import Job, Kernel
from ci.tools import missing
from ci.vm import boot

RELEASE = "6.1.0-test"
if reason := missing(("mke2fs", "debugfs", "e2fsck", "cpio", "depmod", "modprobe", "gcc", "zstd")):
    pytest.skip(reason, allow_module_level=True)


def tool(*command):
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}).stdout


def in_image(image, path):
    return tool("debugfs", "-R", f"cat {path}", image)


def module(directory, name, exports="", needs="", softdep=""):
    """A module as far as depmod looks: symbols exported and missing, and what .modinfo says."""
    says = f"license=GPL\\0softdep=pre: {softdep}"
    code = f'__attribute__((section(".modinfo"), used)) static const char m[] = "{says}";\n'
    code += f'__attribute__((section("__ksymtab_strings"), used)) static const char e[] = "{exports}";\n'
    code += f"int {needs}(void);\nint init_module(void) {{ return {needs}(); }}\n" if needs else ""
    path = directory / f"kernel/{name}.ko"
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-c", "-x", "c", "-", "-o", path], input=code, text=True, check=True)


@pytest.fixture
def kernel(tmp_path):
    """An x86 image and modules: a transport that needs its bus, a file system that asks for its checksum."""
    modules = tmp_path / "kernel/lib/modules" / RELEASE
    module(modules, "virtio", exports="register_driver")
    module(modules, "virtio_pci", needs="register_driver")
    module(modules, "crc32c_generic")
    module(modules, "ext4", softdep="crc32c_generic")
    module(modules, "overlay")
    (modules / "modules.builtin").write_text("kernel/virtio_blk.ko\n")
    (modules / "modules.order").touch()
    tool("depmod", "-b", tmp_path / "kernel", RELEASE)
    vmlinuz = tmp_path / "kernel/boot/vmlinuz"
    vmlinuz.parent.mkdir()
    vmlinuz.write_bytes(bytes(0x202) + b"HdrS")
    return Kernel(vmlinuz, RELEASE, modules)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root that took no download."""
    image = rootfs.RootImage(tmp_path / "a,b.ext4", tmp_path / "busybox")
    image.busybox.write_bytes(b"busybox")
    monkeypatch.setattr(disk, "root_image", lambda machine, cache: image)
    return image


def test_an_image_holds_the_tree_and_is_whole(tmp_path):
    tree = tmp_path / "tree"
    (tree / "deep/er").mkdir(parents=True)
    (tree / "deep/er/text").write_text("words\n")
    (tree / "large").write_bytes(b"x" * 5_000_001)
    (tree / "link").symlink_to("deep/er/text")
    for n in range(3000):
        (tree / f"deep/{n}").touch()
    ext4.make(tree, tmp_path / "image")
    assert in_image(tmp_path / "image", "/deep/er/text") == "words\n"
    assert len(in_image(tmp_path / "image", "/large")) == 5_000_001
    assert 'Fast link dest: "deep/er/text"' in tool("debugfs", "-R", "stat /link", tmp_path / "image")
    tool("e2fsck", "-fn", tmp_path / "image")


def test_modules_come_after_those_they_need_and_those_they_ask_for(kernel):
    names = [path.name for path in initramfs.boot_modules(kernel.modules)]
    assert sorted(names) == ["crc32c_generic.ko", "ext4.ko", "overlay.ko", "virtio.ko", "virtio_pci.ko"]
    assert names.index("virtio.ko") < names.index("virtio_pci.ko")
    assert names.index("crc32c_generic.ko") < names.index("ext4.ko")


@pytest.mark.parametrize("suffix, pack", [
    (".ko", bytes), (".ko.gz", gzip.compress), (".ko.xz", lzma.compress),
    (".ko.zst", lambda data: subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout)])
def test_packed_modules_are_unpacked(tmp_path, suffix, pack):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pack(b"module" * 100))
    assert (initramfs.module_name(path), initramfs.unpacked(path)) == ("a.ko", b"module" * 100)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".lzo"])
def test_a_damaged_module_is_named(tmp_path, suffix):
    (tmp_path / f"a.ko{suffix}").write_bytes(b"garbage")
    with pytest.raises(FetchError, match=rf"a\.ko\{suffix} is no kernel module"):
        initramfs.unpacked(tmp_path / f"a.ko{suffix}")


def test_the_initramfs_has_all_in_it_and_an_init_that_is_valid_shell(kernel, root, tmp_path):
    initramfs.make(kernel.modules, root.busybox, "/start.sh", tmp_path / "work", tmp_path / "cpio")
    names = tool("cpio", "-it", "--quiet", "-F", tmp_path / "cpio").split()
    assert {"init", "bin/busybox", "modules/order", "modules/ext4.ko", "modules/virtio.ko", "base", "own"} <= {*names}
    init = tool("cpio", "-i", "--quiet", "--to-stdout", "-F", tmp_path / "cpio", "init")
    assert init.splitlines()[-1] == "exec switch_root /root /bin/sh /start.sh"
    subprocess.run(["sh", "-n"], input=init, text=True, check=True)


def test_the_guests_own_disk_has_its_modules_the_project_and_its_python(kernel, root, tmp_path):
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / "code.py").write_text("x = 1\n")
    job = Job(("echo", "a b"), project, 60, {"X": "1 2"}, ("mark=1",), "3G", 4)
    (tmp_path / "work").mkdir()
    command = disk.command(kernel, job, tmp_path / "work", tmp_path / "re,port", "n0nce")
    image = tmp_path / "work/own.ext4"
    assert "env 'X=1 2' KCOMPAT_CI_PORT=/dev/ttyS1" in in_image(image, "/kcompat-guest.sh")
    assert in_image(image, f"{project}/code.py") == "x = 1\n"
    assert ".git" not in tool("debugfs", "-R", f"ls -p {project}", image)
    assert "kernel/ext4.ko" in in_image(image, f"/usr/lib/modules/{RELEASE}/modules.dep")
    assert "/usr/bin/python3" in tool("debugfs", "-R", f"stat {sys.executable}", image)
    assert "from kcompat.cli import main" in in_image(image, Path(sys.executable).with_name("kcompat"))
    assert command[command.index("-append") + 1] == (
        "console=ttyS0 panic=-1 loglevel=6 noirqdebug rcupdate.rcu_expedited=1 mark=1")
    assert f"if=none,id=root,format=raw,readonly=on,file={tmp_path}/a,,b.ext4" in command
    assert f"file,id=report,path={tmp_path}/re,,port" in command


def test_what_cannot_boot_is_refused_with_its_reason(kernel, root, tmp_path):
    assert disk.obstacle(kernel) is None
    assert disk.obstacle(replace(kernel, machine="s390x")) == "no emulator is known for s390x"
    kernel.vmlinuz.write_bytes(b"garbage" * 100)
    assert disk.obstacle(kernel) == f"{kernel.vmlinuz} is no x86_64 kernel image"
    kernel.vmlinuz.unlink()
    assert disk.obstacle(kernel) == f"cannot read {kernel.vmlinuz}: No such file or directory"


def test_missing_modules_are_a_reason(kernel, root):
    modules = kernel.modules
    (modules / "kernel/overlay.ko").unlink()
    tool("depmod", "-b", kernel.vmlinuz.parent.parent, RELEASE)
    assert "overlay not found" in disk.obstacle(kernel)
    shutil.rmtree(modules)
    assert disk.obstacle(kernel) == f"{modules} is no directory of modules: it has no modules.dep"
    # One that has all it needs in itself.
    assert disk.obstacle(replace(kernel, modules=None)) is None


def test_the_recipe_is_the_machine_and_what_is_installed():
    requirements = rootfs.project_requirements(rootfs.PROJECT.read_text())
    names = {r.partition(">")[0] for r in requirements}
    assert {"click", "rich", "pyroute2", "pytest", "hypothesis"} <= names and "drgn" not in names
    recipes = {rootfs.recipe(m, r) for m in rootfs.DEBIAN_ARCHITECTURES for r in (requirements, requirements[1:])}
    assert len(recipes) == 4


def test_a_root_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    def unpack(machine, cache, packages, tree):
        (tree / "usr").mkdir(parents=True)
        raise FetchError("no network")

    monkeypatch.setattr(rootfs, "_unpack", unpack)
    with pytest.raises(FetchError, match="no network"):
        rootfs.root_image("aarch64", tmp_path)
    assert list((tmp_path / "roots").iterdir()) == []


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="compiles for the guest's Python only")
def test_python_compiled_here_is_taken_without_a_look_at_the_source(tmp_path):
    (tmp_path / "tree/package").mkdir(parents=True)
    source = tmp_path / "tree/package/sample.py"
    source.write_text("print('compiled')\n")
    rootfs.compile_python(tmp_path / "tree", [source.parent])
    source.write_text("print('read again')\n")
    code = f"import sys; sys.path[:0] = [{str(source.parent)!r}]; import sample"
    assert tool(sys.executable, "-c", code) == "compiled\n"


@pytest.mark.vm
@pytest.mark.parametrize("machine, pattern", [("x86_64", "*-cloud-amd64_*"), ("aarch64", "*arm64_*")])
def test_a_command_runs_as_root_on_a_disk(machine, pattern, tmp_path):
    """Where a matrix has been here; to fetch both machines' roots for a test takes minutes."""
    found = sorted(cache_dir().glob(f"kernels/{pattern}/boot/vmlinuz-*"))
    requirements = rootfs.project_requirements(rootfs.PROJECT.read_text())
    made = cache_dir() / "roots" / f"{machine}-{rootfs.recipe(machine, requirements)}"
    if not found or not made.is_dir() or missing([disk.MACHINES[machine].emulator]):
        pytest.skip(f"no kernel or no root for {machine} in {cache_dir()}: `python -m ci` has not been here")
    release = found[-1].name.removeprefix("vmlinuz-")
    kernel = Kernel(found[-1], release, found[-1].parent.parent / "lib/modules" / release, machine)
    code = ("import os, platform, kcompat; open('new', 'w'); assert os.geteuid() == 0; "
            f"assert platform.machine() == {machine!r}; assert os.path.isdir('/sys/kernel/tracing/events')")
    job = Job((sys.executable, "-c", code), rootfs.PROJECT.parent, 240)
    run = boot(kernel, job, tmp_path / "log")
    assert run.verdict.reason == "exit status 0", run.tail
    assert not (rootfs.PROJECT.parent / "new").exists()
