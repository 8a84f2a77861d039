"""Which processes are bashes and what their users are called."""

import os
import subprocess
import sys

import pytest

from collector.bashes import is_bash, running, target
from collector.enrich.users import Users, passwd_name
from kcompat.errors import KcompatError


@pytest.mark.parametrize("path, expected", [
    ("/bin/bash", True), ("/usr/bin/bash (deleted)", True), ("/opt/bash-5.2/bin/bash-5.2", True),
    ("/usr/bin/bash.dpkg-tmp (deleted)", True), ("/usr/bin/dash", False), ("/usr/bin/bashful", False),
    ("/home/bash/python", False), ("", False)])
def test_a_bash_is_known_by_what_its_program_is_called(path, expected):
    assert is_bash(path) == expected


def test_a_process_that_is_no_bash_is_not_among_them_and_has_no_target():
    assert os.getpid() not in {bash.pid for bash in running()}
    with pytest.raises(OSError):
        target(2**22 + 1)


def test_a_program_without_readline_says_so():
    with subprocess.Popen(["sleep", "60"]) as asleep:
        try:
            with pytest.raises(KcompatError, match=r"has no readline\(\)"):
                target(asleep.pid)
        finally:
            asleep.kill()


PASSWD = "root:x:0:0:root:/root:/bin/sh\n#comment\nbroken\n:x:7:\ncaptain:x:4242:4242::/:/bin/sh\nmate:x:4242:1::/:\n"


@pytest.mark.parametrize("uid, name", [(0, "root"), (4242, "captain"), (7, None), (1, None)])
def test_names_are_read_off_passwd(uid, name):
    assert passwd_name(PASSWD, uid) == name


def test_a_number_stands_for_who_has_no_name_or_may_be_anybody():
    users = Users()
    assert users.name(0, os.getpid(), users.here) == "root"
    assert users.name(4_000_000, os.getpid(), users.here) == "4000000"
    assert users.name(0, os.getpid(), None) == "0"
    assert users.name(0, 2**22 + 1, (0, 0)) == "0"


def test_a_number_that_is_given_to_somebody_else_has_the_new_name_at_once(tmp_path):
    """/etc/passwd is a file of ours there, in a mount namespace of its own, and is replaced by another as useradd does.
    """
    for number, name in enumerate(("ada", "bob")):
        (tmp_path / str(number)).write_text(f"root:x:0:0::/:/bin/sh\n{name}:x:4242:4242::/:/bin/sh\n")
    script = f"""
import os, subprocess
from collector.enrich.users import Users
users = Users()
for number in range(2):
    subprocess.run(["mount", "--bind", "{tmp_path}/" + str(number), "/etc/passwd"], check=True)
    print(users.name(4242, os.getpid(), users.here))
"""
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", script], text=True,
                          capture_output=True, timeout=60, check=False)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr}")
    assert done.stdout == "ada\nbob\n", done.stderr
