"""Users' kernels: found as they lie, told by their own header, and left as they are."""

import pytest

from ci.apt import FetchError
from ci.given import Given, given_kernels, obtain, release_of

RELEASE = "6.9.1-users+1"


def bzimage(path, version=f"{RELEASE} (me@here) #1 SMP\0"):
    """A boot header as Documentation/arch/x86/boot.rst has it; its version string lies at 0x3000."""
    image = bytearray(0x4000)
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = (0x3000 - 0x200).to_bytes(2, "little")
    image[0x3000 : 0x3000 + len(version)] = version.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    return path


def modules(root, release=RELEASE):
    directory = root / release
    directory.mkdir(parents=True)
    (directory / "modules.dep").write_text("kernel/fs/ext4/ext4.ko:\n")
    return directory


def test_a_release_is_what_the_header_says_not_the_name(tmp_path):
    assert release_of(bzimage(tmp_path / "vmlinuz-other")) == RELEASE


@pytest.mark.parametrize("content", [b"", b"\x17" * 0x4000, bytes(0x4000)])
def test_what_is_no_kernel_is_said(tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(FetchError, match="is no x86 kernel image"):
        release_of(tmp_path / "bad")


def test_a_header_without_a_version_is_said(tmp_path):
    with pytest.raises(FetchError, match="does not say its version"):
        release_of(bzimage(tmp_path / "bad", "\0"))


@pytest.mark.parametrize("place", ["lib/modules", "usr/lib/modules", "."])
@pytest.mark.parametrize("itself", [False, True])
def test_modules_are_found_where_they_may_lie(tmp_path, place, itself):
    found = modules(tmp_path / "root" / place)
    asked = found if itself else tmp_path / "root"
    image = obtain(Given("mine", bzimage(tmp_path / "vmlinuz"), asked), tmp_path / "cache")
    assert image.release == RELEASE
    linked = image.vmlinuz.parent.parent / "lib/modules" / RELEASE
    assert linked.resolve() == found
    assert (linked / "modules.dep").is_file()
    assert image.vmlinuz.name == f"vmlinuz-{RELEASE}"


def test_another_kernels_modules_are_refused_before_a_boot(tmp_path):
    modules(tmp_path / "lib/modules", "6.9.2-other")
    with pytest.raises(FetchError, match="holds no modules of 6"):
        obtain(Given("mine", bzimage(tmp_path / "vmlinuz"), tmp_path), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_modules_without_depmod_name_the_cure(tmp_path):
    (modules(tmp_path) / "modules.dep").unlink()
    with pytest.raises(FetchError, match=r"has no modules\.dep: run depmod"):
        obtain(Given("mine", bzimage(tmp_path / "vmlinuz"), tmp_path), tmp_path / "cache")


def test_a_kernel_built_anew_is_another_one(tmp_path):
    given = Given("mine", bzimage(tmp_path / "vmlinuz"))
    first = obtain(given, tmp_path / "cache")
    assert obtain(given, tmp_path / "cache") == first
    bzimage(tmp_path / "vmlinuz", "6.9.3-new #2\0")
    assert obtain(given, tmp_path / "cache").release == "6.9.3-new"


def test_a_directory_as_kernels_are_installed(tmp_path):
    bzimage(tmp_path / "boot/vmlinuz-one")
    bzimage(tmp_path / "vmlinuz-two")
    (tmp_path / "boot/initrd.img-one").touch()
    (tmp_path / "usr/lib/debug/boot").mkdir(parents=True)
    (tmp_path / "usr/lib/debug/boot/vmlinux-one").touch()
    found = {given.name: given for given in given_kernels(tmp_path)}
    assert {*found} == {"one", "two"}
    assert found["one"].vmlinux == tmp_path / "usr/lib/debug/boot/vmlinux-one"
    assert (found["two"].vmlinux, found["two"].modules) == (None, tmp_path)
