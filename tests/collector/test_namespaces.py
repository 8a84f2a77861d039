"""Where network namespaces can be entered, read off made-up lines and this very machine."""

from pathlib import Path

from collector.namespaces import doors, mounted

LINES = """\
22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
43 42 0:4 net:[4026532177] /run/netns/blue rw shared:2 - nsfs nsfs rw
44 42 0:4 net:[4026532178] /run/netns/a\\040b\\134c rw shared:2 - nsfs nsfs rw
45 42 0:4 mnt:[4026532179] /run/mnt rw shared:2 - nsfs nsfs rw
46 42 0:4 net:[oops
"""


def test_mounted_namespaces_are_found_under_their_real_names():
    assert mounted(LINES) == {4026532177: Path("/run/netns/blue"), 4026532178: Path("/run/netns/a b\\c")}


def test_the_one_we_are_in_is_among_them():
    here = Path("/proc/self/ns/net").stat().st_ino

    assert doors()[here].stat().st_ino == here


def test_without_namespaces_there_is_one(tmp_path):
    """As on a kernel without them: no process shows any."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text("")
    (tmp_path / "1").mkdir()

    assert list(doors(tmp_path)) == [0]
