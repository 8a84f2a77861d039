import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from kcompat import version
from kcompat.errors import BadInput, KcompatError
from kcompat.version import release_version, running_version_code, vdso_note_version, version_code


@pytest.mark.parametrize(("release", "number"), [
    ("5.10.0-46-cloud-amd64", "5.10.0"), ("6.18.44-fc-v669", "6.18.44"), ("4.19.90-24.4.v2101.ky10.aarch64", "4.19.90"),
    ("7.1-rc3", "7.1.0"), ("3.10.0-1160.el7.x86_64", "3.10.0"), ("6.12.117+deb13-amd64", "6.12.117")])
def test_a_release_begins_with_its_version(release, number):
    assert release_version(release) == Version(number)


@pytest.mark.parametrize("release", ["", "linux", "v5.10", "5", "-5.10"])
def test_what_is_no_release_is_quoted_in_the_error(release):
    with pytest.raises(KcompatError, match=repr(release)):
        release_version(release)


def test_versions_compare_as_numbers():
    assert release_version("4.9.0-6-amd64") < release_version("4.19.0") < release_version("5.4-rc1")


@pytest.mark.parametrize(("number", "code"), [
    ("4.4.155", 0x04049B), ("5.10.0", 0x050A00), ("4.14.336", 0x040EFF), ("6.1", 0x060100)])
def test_version_code_is_the_kernels_macro(number, code):
    assert version_code(Version(number)) == code


def vdso(code, kind=0, name=b"Linux\0\0\0", before=b"\x7fELF" + bytes(60)):
    return before + struct.pack("<III", 6, 4, kind) + name + struct.pack("<I", code) + bytes(16)


@given(st.integers(1, 2**32 - 1), st.binary(max_size=64))
def test_the_note_of_a_vdso_tells_the_code(code, before):
    assert vdso_note_version(vdso(code, before=b"\x7fELF" + before)) == code


@pytest.mark.parametrize("image", [
    b"", bytes(4096), vdso(5, kind=3), vdso(5, name=b"GNU\0\0\0\0\0"), vdso(5)[:84 - 6]])
def test_an_image_without_a_whole_note_tells_nothing(image):
    assert vdso_note_version(image) is None


def test_a_note_with_version_zero_is_an_error():
    with pytest.raises(BadInput, match="version 0"):
        vdso_note_version(vdso(0))


def test_the_running_kernel_says_what_it_was_built_with():
    release = Path("/proc/sys/kernel/osrelease").read_text().strip()
    code, told = running_version_code(release), release_version(release)
    assert (code >> 16, code >> 8 & 0xFF) == (told.major, told.minor)


def test_without_a_vdso_the_release_must_do(monkeypatch):
    monkeypatch.setattr(version, "_vdso_version_code", lambda: None)
    assert running_version_code("4.9.0-6-amd64") == 0x040900
