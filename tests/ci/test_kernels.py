"""The matrix itself: what is in it, and that each entry takes the packages it is meant for and no others."""

import re

import pytest

from ci.kernels import BUILT, DEBIAN_ARCHITECTURES, MATRIX, select
from ci.mirror import is_ubuntu

# Names of packages as the indexes of Debian and Ubuntu had them in November 2026.
PACKAGES = {
    "linux-image-4.4.0-210-generic": {"4.4-ubuntu"},
    "linux-image-4.4.0-210-lowlatency": set(),
    "linux-image-4.15.0-213-generic": {"4.15-ubuntu"},
    "linux-image-4.18.0-25-generic": set(),
    "linux-image-unsigned-5.0.0-65-generic": {"5.0-ubuntu"},
    "linux-image-unsigned-5.3.0-76-generic": {"5.3-ubuntu"},
    "linux-image-unsigned-5.4.0-150-generic": {"5.4-ubuntu"},
    "linux-image-5.10.0-46-amd64": {"5.10"},
    "linux-image-5.10.0-46-amd64-unsigned": {"5.10"},
    "linux-image-5.10.0-46-amd64-dbg": set(),
    "linux-image-5.10.0-46-rt-amd64": {"5.10-rt"},
    "linux-image-6.1.0-56-amd64": {"6.1"},
    "linux-image-6.1.0-56-rt-amd64": {"6.1-rt"},
    "linux-image-6.12.117+deb13-amd64": {"6.12"},
    "linux-image-6.12.117+deb13-rt-amd64": {"6.12-rt"},
    "linux-image-6.16.12+deb13-amd64": {"6.16"},
    "linux-image-6.17.13+deb13-amd64": {"6.17"},
    "linux-image-6.18.15+deb13-amd64": {"6.18"},
    "linux-image-6.19.14+deb13-amd64": set(),
    "linux-image-7.2.13+deb14-amd64": {"7.2", "newest"},
    "linux-image-7.3-amd64": {"newest"},
    "linux-image-amd64": set(),
}


@pytest.mark.parametrize(("package", "names"), PACKAGES.items())
def test_a_package_is_taken_by_its_entries_alone(package, names):
    generic_or_rt = [e for e in MATRIX if e.flavour in ("generic", "rt") and e.machine == "x86_64"]
    assert {e.name for e in generic_or_rt if re.fullmatch(e.package, package)} == names


def test_names_are_unique_and_machines_known():
    names = [e.name for e in (*MATRIX, *BUILT)]
    assert len(names) == len(set(names))
    assert {e.machine for e in (*MATRIX, *BUILT)} <= set(DEBIAN_ARCHITECTURES)


def test_every_name_is_that_of_one_glob_and_the_order_is_kept():
    assert [e.name for e in select("*", MATRIX)] == [e.name for e in MATRIX]
    assert [e.name for e in select("6.12*", MATRIX)] == [e.name for e in MATRIX if e.name.startswith("6.12")]
    assert all(select(e.name, MATRIX) == [e] for e in MATRIX)


def test_several_globs_have_commas_between_them_and_each_must_match():
    assert [e.name for e in select("newest,5.10", MATRIX)] == ["5.10", "newest"]
    with pytest.raises(LookupError, match=r"4\.4"):
        select("5.10,4.4", MATRIX)


def test_the_kernels_from_before_btf_are_ubuntus():
    assert [e.name for e in select("*-ubuntu", MATRIX)] == [e.name for e in MATRIX if e.distribution == "ubuntu"]
    assert all(is_ubuntu(suite) == (e.distribution == "ubuntu") for e in MATRIX for suite in e.suites)


def test_the_real_time_flavour_is_there_for_three_kernels():
    assert {e.name for e in MATRIX if e.flavour == "rt"} == {"5.10-rt", "6.1-rt", "6.12-rt"}
