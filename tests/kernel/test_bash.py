"""bash as people use it: typed into in a terminal, by several users, in a container, while it is replaced."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sysconfig
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from collector import bashes
from collector.config import Options
from collector.dataset import Setup
from collector.datasets.bash import BashLines
from collector.exec_events import ExecEvents
from collector.mapped_files import edition
from kcompat.hook_status import HookState
from kcompat.offsets import Offsets
from tests.kernel import signs
from tests.kernel.conftest import version_code

PROMPT = b"kcompat-typed> "
BASH = "/bin/bash"


class Terminal:
    """A program at a terminal. `type` returns when it has prompted once more."""

    def __init__(self, *command, prompts=1):
        self.pid, self._fd = pty.fork()
        if not self.pid:
            environment = {"PS1": PROMPT.decode(), "PS2": PROMPT.decode(), "TERM": "xterm", "PATH": os.environ["PATH"]}
            os.execvpe(command[0], command, environment)
        self.read(prompts)

    def type(self, line, prompts=1):
        for at in range(0, len(line), 512):
            os.write(self._fd, line[at:at + 512])
            self._swallow(0.01)
        os.write(self._fd, b"\r")
        self.read(prompts)

    def read(self, prompts):
        said, deadline = b"", time.monotonic() + 60
        while said.count(PROMPT) < prompts:
            assert select.select([self._fd], [], [], max(0, deadline - time.monotonic()))[0], said[-500:]
            said += os.read(self._fd, 65_536)

    def _swallow(self, pause_s):
        while select.select([self._fd], [], [], pause_s)[0]:
            os.read(self._fd, 65_536)

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


@contextmanager
def terminal(*command, **settings):
    with closing(Terminal(*(command or (BASH, "--norc", "--noprofile", "-i")), **settings)) as made:
        yield made


@contextmanager
def collecting():
    if not signs.UPROBES:
        pytest.skip("this kernel has no uprobes")
    with closing(BashLines(Setup(Options("box"), Offsets(), version_code()))) as running:
        yield running


@pytest.fixture(scope="module")
def bash_lines():
    with terminal(), collecting() as running:
        yield running


def typed(running, pid):
    return [r for r in running.flush(1) if r.fields["pid"] == str(pid)]


def commands(running, pid):
    return [r.fields["cmd"] for r in typed(running, pid)]


def wait_for_hook(running, pid):
    """In the very file that process runs: how many files are hooked says nothing, other bashes run here too."""
    deadline = time.monotonic() + 60
    while not running._programs.get(edition(f"/proc/{pid}/exe")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_line_typed_by_root_is_a_record(bash_lines):
    before_ns = time.time_ns()
    with terminal() as at:
        at.type(b"true hello")
        (record,) = typed(bash_lines, at.pid)

    assert record.measurement == "bash" and record.tags == {"host": "box", "source": "bash"}
    assert record.fields["cmd"] == "true hello" and record.fields["user"] == "root"
    zone = r"(Z|[+-]\d\d:\d\d)"
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d{zone} pid:`{at.pid}` user:`root` cmd:`true hello`",
                        record.fields["message"])
    assert before_ns <= record.time <= time.time_ns()
    assert not any(bash_lines.losses.values())


def test_every_line_once_in_order_and_none_that_is_blank(bash_lines):
    lines = [b"true 1", b"", b"   ", b"true 2", b": 3 | cat", b"true 2"]
    with terminal() as at:
        for line in lines:
            at.type(line)
        assert commands(bash_lines, at.pid) == ["true 1", "true 2", ": 3 | cat", "true 2"]


def test_what_is_pasted_in_one_is_one_and_what_is_typed_over_lines_is_a_record_each(bash_lines):
    with terminal() as at:
        for line in (b"for i in 1 2", b"do :", b"done"):
            at.type(line)
        at.type(b"bind 'set enable-bracketed-paste on'")
        at.type(b"\x1b[200~: a\n: b\x1b[201~")
        told = commands(bash_lines, at.pid)

    assert told[:3] == ["for i in 1 2", "do :", "done"]
    assert told[4:] == [": a\n: b"]


def test_bytes_that_are_no_text_are_escaped(bash_lines):
    with terminal() as at:
        at.type(b"bind 'set input-meta on' 'set convert-meta off' 'set output-meta on'")
        at.type(b": caf\xc3\xa9 \xff\xfe")
        assert commands(bash_lines, at.pid)[1] == ": café \\xff\\xfe"


@pytest.mark.parametrize("length", [255, 256, 257, 1000, 4095, 4096])
def test_long_lines_are_whole(bash_lines, length):
    line = b": " + bytes(97 + number % 26 for number in range(length - 2))
    with terminal() as at:
        at.type(line)
        assert commands(bash_lines, at.pid) == [line.decode()]


def test_lines_longer_than_that_are_cut_and_that_is_counted(bash_lines):
    line = b": " + b"x" * 5000
    with terminal() as at:
        at.type(line)
        assert commands(bash_lines, at.pid) == [line[:4096].decode()]

    assert bash_lines.losses["ends of long command lines"] >= 1
    bash_lines._lost.clear()


def test_the_user_is_who_typed_it_whatever_the_group(bash_lines):
    with terminal("setpriv", "--reuid", "65534", "--regid", "12345", "--clear-groups", BASH, "--norc", "-i") as at:
        at.type(b": as nobody")
        (record,) = typed(bash_lines, at.pid)
        assert (record.fields["cmd"], record.fields["user"]) == (": as nobody", "nobody")
    with terminal("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", BASH, "--norc", "-i") as at:
        at.type(b": as a number")
        assert typed(bash_lines, at.pid)[0].fields["user"] == "54321"


@pytest.fixture
def container(tmp_path):
    """A root of its own with a bash that is another file, and a user only it knows."""
    root = tmp_path / "root"
    libraries = re.findall(r"(/\S+)", subprocess.run(["ldd", BASH], check=True, capture_output=True, text=True).stdout)
    for path in {BASH, *libraries}:
        there = root / path.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, there)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/bash\ncaptain:x:4242:4242::/:/bin/bash\n")
    for path in (tmp_path, *tmp_path.parents):
        if str(path).startswith("/tmp/pytest"):
            path.chmod(0o755)
    return root


@pytest.mark.thorough
def test_a_container_has_its_own_bash_and_its_own_users(bash_lines, container):
    """New pid and mount namespaces. The file is new too: the line read while it is found may be missed."""
    command = ("unshare", "--pid", "--mount", "--fork", "--kill-child", "chroot", "--userspec=4242:4242", container,
               "/bin/bash", "--norc", "-i")
    with terminal(*command) as at:
        inside = Path(f"/proc/{at.pid}/task/{at.pid}/children").read_text().split()[0]
        file = edition(f"/proc/{inside}/exe")
        wait_for_hook(bash_lines, inside)
        at.type(b": first")
        at.type(b": second")
        records = typed(bash_lines, inside)

    assert [(r.fields["cmd"], r.fields["user"]) for r in records][-1] == (": second", "captain")
    deadline = time.monotonic() + 30
    while file in bash_lines._programs:
        assert time.monotonic() < deadline, "a file no bash runs any more is still hooked"
        time.sleep(0.05)


@contextmanager
def container_of(layers, covered=False):
    """An overlay of those two layers in a mount namespace of its own, whose bash is at a terminal."""
    root = layers / "root"
    cover = f"cp -a {layers} /dev/shm/covered && mount --move /dev/shm {layers}" if covered else ":"
    script = (f"mount -t tmpfs none /dev/shm && mkdir -p {root} && {cover} && cd {layers} && "
              f"if [ -d covered ]; then cd covered; fi && "
              "mount -t overlay -o lowerdir=$PWD/upper:\"$PWD/the lower\" none root && echo $PWD/root && sleep 600")
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, start_new_session=True) as holder:
        try:
            mounted = holder.stdout.readline().strip()
            if not mounted:
                pytest.skip(f"no overlay can be made here: {holder.communicate(timeout=60)[1]}")
            with terminal("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", f"{mounted}/bin/bash", "--norc",
                          "--noprofile", "-i") as at:
                yield at
        finally:
            os.killpg(holder.pid, signal.SIGKILL)


@pytest.fixture
def layers(tmp_path):
    (tmp_path / "upper").mkdir()
    (tmp_path / "the lower/bin").mkdir(parents=True)
    shutil.copy2(BASH, tmp_path / "the lower/bin/bash")
    return tmp_path


def test_a_bash_on_an_overlay_is_seen(layers):
    """Before 4.19 a uprobe must be set in the file of the layer."""
    with container_of(layers) as at, collecting() as running:
        wait_for_hook(running, at.pid)
        at.type(b": first")
        at.type(b": second")
        assert commands(running, at.pid)[-1] == ": second"


def test_two_containers_of_one_image_have_every_line_once(layers):
    with container_of(layers) as one, container_of(layers) as other, collecting() as running:
        for at in (one, other):
            wait_for_hook(running, at.pid)
            at.type(b": first")  # its readline() began before there was a hook
            at.type(b": second")
            at.type(b": third")
        records = running.flush(1)

    for at in (one, other):
        assert [r.fields["cmd"] for r in records if r.fields["pid"] == str(at.pid)][-3:] in (
            [": second", ": third"], [": first", ": second", ": third"])


def test_a_bash_whose_layers_are_out_of_sight_is_seen_or_the_reason_is_told(layers):
    with container_of(layers, covered=True) as at, collecting() as running:
        told = [hook.reason for hook in running.hooks if hook.state is HookState.MISSING]
        if not told:
            wait_for_hook(running, at.pid)
        at.type(b": first")
        at.type(b": second")
        seen = commands(running, at.pid)

    assert seen[-1:] == [": second"] or "lies on an overlay whose layers are not to be seen from here" in told[0]


@pytest.mark.thorough
def test_a_bash_that_is_replaced_while_it_runs_is_still_seen(tmp_path):
    copy = tmp_path / "bash"
    shutil.copy(BASH, copy)
    with terminal(str(copy), "--norc", "-i") as old:
        shutil.copy(BASH, tmp_path / "new")
        (tmp_path / "new").rename(copy)
        with collecting() as running, terminal(str(copy), "--norc", "-i") as new:
            for at in (old, new):
                wait_for_hook(running, at.pid)
                at.type(b": first")
                at.type(b": second")
            records = running.flush(1)

    for at in (old, new):
        assert [r.fields["cmd"] for r in records if r.fields["pid"] == str(at.pid)][-1] == ": second"


def test_a_bash_that_begins_is_hooked_before_its_first_line(tmp_path, monkeypatch):
    """By its exec alone: the looking for bashes is off. Its start waits for the hook, as long as a slow one takes."""
    try:
        ExecEvents().close()
    except OSError as error:
        pytest.skip(f"this kernel tells nobody of exec: {error}")
    program, hooked, commands_of_start = tmp_path / "bash", tmp_path / "hooked", tmp_path / "rc"
    shutil.copy(BASH, program)
    commands_of_start.write_text(f"PS1='{PROMPT.decode()}'\nuntil [ -e {hooked} ]; do sleep 0.1; done\n")
    with terminal(), collecting() as running:
        monkeypatch.setattr(running, "_scan", lambda: None)
        at = Terminal(str(program), "--rcfile", str(commands_of_start), "-i", prompts=0)
        with closing(at):
            wait_for_hook(running, at.pid)
            hooked.touch()
            at.read(1)
            at.type(b": first")
            at.type(b": second")
            assert commands(running, at.pid) == [": first", ": second"]


READER = f"""
#include <stdlib.h>
char *readline(const char *prompt);
int main(void)
{{
	char *line;

	while ((line = readline("{PROMPT.decode()}")))
		free(line);
	return 0;
}}
"""


@pytest.mark.thorough
def test_a_shared_libreadline_is_seen_in_bash_alone(tmp_path):
    """As of a bash that is linked with it: what is called bash counts, another program on the same library does not."""
    libraries = list(Path("/usr/lib").glob(f"{sysconfig.get_config_var('MULTIARCH')}/libreadline.so.*"))
    if not libraries or not shutil.which("gcc"):
        pytest.skip("there is no libreadline or no gcc to link with it")
    (tmp_path / "reader.c").write_text(READER)
    for name in ("bash", "other"):
        subprocess.run(["gcc", "-o", tmp_path / name, tmp_path / "reader.c", libraries[0]], check=True, timeout=120)
    with terminal(str(tmp_path / "bash")) as bash, terminal(str(tmp_path / "other")) as other, collecting() as running:
        for at in (bash, other):
            at.type(b"read when it was hooked")  # its readline() began before there was a hook
            at.type(b"second")
        records = running.flush(1)

    assert [r.fields["cmd"] for r in records if r.fields["pid"] == str(bash.pid)] == ["second"]
    assert [r for r in records if r.fields["pid"] == str(other.pid)] == []


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["bash", "sh"])
def test_what_a_bash_becomes_is_no_bash_any_more(tmp_path, name):
    """As with exec psql, on the same library: what is typed into it is nobody's command line."""
    libraries = list(Path("/usr/lib").glob(f"{sysconfig.get_config_var('MULTIARCH')}/libreadline.so.*"))
    if not libraries or not shutil.which("gcc"):
        pytest.skip("there is no libreadline or no gcc to link with it")
    source = READER.replace("free(line);", f"if (*line == '!') execl(\"{tmp_path}/other\", \"other\", (char *)0);")
    (tmp_path / "reader.c").write_text(source.replace("<stdlib.h>", "<unistd.h>"))
    for made in ("bash", "other"):
        subprocess.run(["gcc", "-o", tmp_path / made, tmp_path / "reader.c", libraries[0]], check=True, timeout=120)
    (tmp_path / "sh").symlink_to("bash")
    with terminal(str(tmp_path / "bash")), terminal(str(tmp_path / name)) as at, collecting() as running:
        for line in (b"read when it was hooked", b"second", b"!", b"select secret", b"select another"):
            at.type(line)
            time.sleep(0.5)
        assert commands(running, at.pid) == ["second", "!"]


def test_a_bash_that_cannot_be_looked_into_hinders_no_other(tmp_path, monkeypatch, caplog):
    """By any fault nobody has thought of: anybody may have made the file."""
    shutil.copy(shutil.which("sleep"), tmp_path / "bash")
    with subprocess.Popen([tmp_path / "bash", "600"]) as odd:
        try:
            target = bashes.target
            monkeypatch.setattr(bashes, "target", lambda bash: 1 // (bash.pid != odd.pid) and target(bash))
            with terminal() as at, collecting() as running:
                wait_for_hook(running, at.pid)
                at.type(b": first")
                at.type(b": second")
                assert commands(running, at.pid)[-1] == ": second"
        finally:
            odd.kill()
    told = [r for r in caplog.records if "a bash is not seen" in r.message and "zero" in r.message]
    assert len(told) in (1, 2)  # the collector of this module is told too


def test_nothing_is_left_behind():
    before = uprobe_events()
    with terminal(), collecting():
        pass
    assert uprobe_events() <= before


def uprobe_events():
    """What was made for lack of a uprobe PMU (before 4.17); the collector of this module has its own still."""
    path = Path("/sys/kernel/tracing/uprobe_events")
    return set(path.read_text().splitlines()) if path.exists() else set()
