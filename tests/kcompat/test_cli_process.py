"""The command as a process of its own: not root, broken files, full disks, readers that leave. Never a traceback."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kcompat.btf import RUNNING
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from offset_db.db import Database
from tests.kcompat.c_sample import compiled
from tests.kcompat.cli_tools import (
    COMMAND,
    ROOT,
    check_offsets,
    environment,
    home_of_nobody,
    kcompat,
    needs_nobody,
    one_line,
    sock_common,
    vmlinux,
)

needs_btf = pytest.mark.skipif(not RUNNING.exists(), reason="this kernel has no BTF")

RECORDING = ROOT / "tests/data/recordings/6.18.44-rawtp.guess"


@pytest.fixture
def home(tmp_path):
    return tmp_path


@pytest.fixture
def nobody():
    with home_of_nobody() as home:
        yield home


def garbage(path):
    path.write_bytes(b"nothing of use" * 50)


def empty(path):
    path.touch()


def truncated_elf(path):
    path.write_bytes(vmlinux(path, btf=sock_common()).read_bytes()[:200])


def truncated_btf(path):
    path.write_bytes(sock_common()[:-40])


def btf_of_zeros(path):
    path.write_bytes(sock_common()[:24] + bytes(len(sock_common()) - 24))


def no_kernel(path):
    vmlinux(path, banner=b"no banner in here")


def no_btf_in_it(path):
    vmlinux(path)


def garbage_btf_in_elf(path):
    vmlinux(path, btf=b"\x9f\xeb\x01\x00" + bytes(range(200)))


def a_directory(path):
    path.mkdir()


def nothing(path):
    pass


BROKEN = [garbage, empty, truncated_elf, truncated_btf, btf_of_zeros, no_kernel, no_btf_in_it, garbage_btf_in_elf,
          a_directory, nothing]


@pytest.mark.parametrize("source", ["btf", "dwarf", "auto"])
@pytest.mark.parametrize("make", BROKEN, ids=lambda f: f.__name__)
def test_a_broken_file_is_one_line_that_names_it(home, make, source):
    path = home / "the-file"
    make(path)

    done = kcompat("resolve", "--source", source, "--vmlinux", path, home=home)

    assert done.returncode == 1 or (done.returncode == 2 and source == "dwarf")
    assert str(path) in one_line(done.stderr)
    if make is truncated_btf and source != "dwarf":
        assert "ELF" not in done.stderr and "truncated" in done.stderr


def test_a_cut_off_vmlinux_of_a_real_compiler_is_one_line_too(home):
    path = compiled(home, "-g")
    for size in (40, 64, 300, path.stat().st_size // 2, path.stat().st_size - 1):
        cut = home / f"cut-{size}"
        cut.write_bytes(path.read_bytes()[:size])

        done = kcompat("resolve", "--source", "dwarf", "--vmlinux", cut, home=home)

        assert done.returncode == 1 and str(cut) in one_line(done.stderr)


@needs_btf
def test_a_corrupt_database_is_moved_aside_and_named(home):
    db = home / "offsets.db"
    db.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)

    done = kcompat("--db", db, "resolve", "--source", "auto", "--json", "skc_dport", home=home)

    (aside,) = home.glob("offsets.db.corrupt-*[0-9]")
    assert aside.read_bytes().endswith(b"\xff" * 5000)
    assert str(db) in done.stderr and str(aside) in done.stderr and "Traceback" not in done.stderr
    assert done.returncode == 0
    check_offsets(json.loads(done.stdout))


def test_a_database_of_something_else_is_left_alone(home):
    db = home / "other.db"
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('create table t(x)')"
    subprocess.run([sys.executable, "-c", code, db], check=True, timeout=20)
    before = db.read_bytes()

    done = kcompat("--db", db, "db", "show", home=home)

    assert done.returncode == 1 and str(db) in one_line(done.stderr)
    assert db.read_bytes() == before


def test_a_database_that_is_a_directory_is_named(home):
    done = kcompat("--db", home, "db", "show", home=home)

    assert done.returncode == 1 and str(home) in one_line(done.stderr)


@needs_nobody
@needs_btf
def test_without_root_btf_answers_and_is_remembered_in_ones_own_database(nobody):
    done = kcompat("resolve", "--json", home=nobody, as_nobody=True)

    assert done.returncode == 0
    check_offsets(json.loads(done.stdout))
    assert {f["source"] for f in json.loads(done.stdout)["fields"]} == {"btf"}
    assert (nobody / "data/kcompat/offsets.db").exists()


@needs_nobody
@pytest.mark.parametrize("command", [
    ["guess"], ["guess", "--json"], ["guess", "--explain", "srtt_us"], ["guess", "--backend", "kprobe"],
    ["resolve", "--source", "guess"], ["collect", "--duration", "1"], ["compile"],
    pytest.param(["render", "netflow", "--source", "btf", "--dialect", "4.4"], marks=needs_btf)])
def test_without_root_what_needs_it_says_so(nobody, command):
    done = kcompat(*command, home=nobody, as_nobody=True)

    assert done.returncode == 2, done.stderr
    *first, last = done.stderr.splitlines()
    assert "root" in last and last.startswith("kcompat: ") and "Traceback" not in done.stderr
    assert all(line.startswith("kcompat: ") for line in first)
    assert done.stdout == ""


@needs_nobody
def test_a_recorded_guess_is_made_again_without_root(nobody):
    done = kcompat("guess", "--replay", RECORDING, "--json", home=nobody, as_nobody=True)

    check_offsets(told := json.loads(done.stdout))
    assert told["kernel"]["release"].startswith("6.18.44") and told["stats"]["connections"] > 0
    assert done.stderr.startswith(f"kcompat: 84 fields of {told['kernel']['release']} from {RECORDING}; 1 unknown")
    assert done.returncode == 1 and not (nobody / "data").exists()


@pytest.mark.parametrize("damage", [lambda data: data[:5000], lambda data: data[:-1], lambda data: b"", bytes.swapcase])
def test_a_damaged_recording_is_told_in_one_line(tmp_path, damage):
    path = tmp_path / "damaged.guess"
    path.write_bytes(damage(RECORDING.read_bytes()))
    done = kcompat("guess", "--replay", path, home=tmp_path)

    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"kcompat: {path}: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [
    ("--replay", "a", "--record", "b"), ("--replay", "a", "--backend", "rawtp"), ("--mask-pointers",)])
def test_a_recording_is_made_or_replayed(tmp_path, options):
    done = kcompat("guess", *options, home=tmp_path)
    assert done.returncode == 2 and "Usage" in done.stderr


@needs_nobody
def test_without_root_info_tells_what_it_can(nobody):
    done = kcompat("info", home=nobody, as_nobody=True)

    assert done.returncode == 0 and done.stderr == ""
    assert "can't tell  bpf(2) is for root here" in done.stdout


@needs_nobody
def test_a_database_one_may_only_read_is_read(nobody):
    db = nobody / "root" / "offsets.db"
    with Database.open(db) as opened:
        opened.record(Kernel.running(), [Offset.known(find("skc_dport"), 12, "btf")])
    for path in (db.parent, db):
        path.chmod(0o755)

    shown = kcompat("--db", db, "db", "show", "--json", home=nobody, as_nobody=True)
    resolved = kcompat("--db", db, "resolve", "skc_dport", home=nobody, as_nobody=True)

    assert json.loads(shown.stdout)["kernels"][0]["fields"][0]["offset"] == 12
    assert (resolved.returncode == 0) == RUNNING.exists()
    assert str(db) in resolved.stderr and "Traceback" not in resolved.stderr


@needs_nobody
def test_a_database_one_may_not_even_read_is_named(nobody):
    db = nobody / "root" / "offsets.db"
    with Database.open(db) as opened:
        opened.record(Kernel.running(), [])
    db.parent.chmod(0o700)

    for command in (["db", "show"], ["db", "disagreements"], ["resolve", "--source", "db"]):
        done = kcompat("--db", db, *command, home=nobody, as_nobody=True)
        assert done.returncode in (1, 2) and str(db) in one_line(done.stderr)
    assert kcompat("--db", db, "info", home=nobody, as_nobody=True).returncode == 0


@needs_btf
def test_a_reader_that_leaves_is_no_error(home):
    read, write = os.pipe()
    os.close(read)

    done = kcompat("resolve", "--source", "btf", "--no-record", home=home, stdout=write)

    os.close(write)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Broken" not in done.stderr


@needs_btf
@pytest.mark.parametrize("command", [["info"], ["resolve", "--source", "btf", "--json"], ["--help"]])
def test_a_full_disk_is_one_line(home, command):
    with Path("/dev/full").open("w") as full:
        done = kcompat(*command, home=home, stdout=full)

    assert done.returncode == 1 and "No space left" in one_line(done.stderr)


def test_without_bcc_and_without_compiled_programs_the_package_is_named(home):
    # An interpreter that does not see Debian's packages, as a venv without --system-site-packages.
    code = "import sys; sys.path = [p for p in sys.path if 'dist-packages' not in p]; " + COMMAND[2]

    done = subprocess.run([sys.executable, "-c", code, "guess"], env=environment(home), cwd="/", capture_output=True,
                          text=True, timeout=60)

    assert done.returncode == 2 and "python3-bpfcc" in one_line(done.stderr)


def test_help_is_fast_because_nothing_heavy_is_imported():
    code = ("import sys; from kcompat.cli import main; main(['--help'], standalone_mode=False); "
            "print([m for m in ('rich', 'sqlite3', 'sqlite_utils', 'bcc', 'pyroute2', 'httpx', 'elftools', 'guessers', "
            "'collector') if m in sys.modules])")

    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True,
                          timeout=30).stdout

    assert said.splitlines()[-1] == "[]"


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_a_hit_imports_neither_a_compiler_nor_an_orm(home):
    # Where there are no kprobes a guess leaves a field open; what BTF says of it is remembered as well.
    assert kcompat("--db", home / "o.db", "guess", home=home).returncode in (0, 1)
    assert kcompat("--db", home / "o.db", "resolve", home=home).returncode == 0
    code = ("import sys; from kcompat.cli import main\n"
            "try: main()\nexcept SystemExit: pass\n"
            "print([m for m in ('bcc', 'sqlite_utils', 'pyroute2', 'httpx', 'elftools', 'rich') if m in sys.modules])")

    done = subprocess.run([sys.executable, "-c", code, "--db", home / "o.db", "resolve", "--json"],
                          env=environment(home), cwd="/", capture_output=True, text=True, timeout=60)

    assert re.search(rf"{len(CATALOGUE)} fields from the database, (\d+ of them )?verified", one_line(done.stderr))
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", [
    ["info"], ["config", "sample"], ["datasets"], ["resolve", "--source", "btf", "--no-record", "--json"]])
def test_a_closed_standard_output_is_one_line(home, command):
    done = subprocess.run(["sh", "-c", 'exec "$@" >&- <&-', "sh", *COMMAND, *command], env=environment(home), cwd="/",
                          capture_output=True, text=True, timeout=60)

    assert done.returncode == 1 and one_line(done.stderr) == "kcompat: standard output is closed"


def test_no_file_takes_the_place_of_a_closed_stream(home):
    code = "import os; from kcompat.cli import main\ntry: main(['--version'])\nexcept SystemExit: print(os.pipe()[0])"
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&- <&-', "sh", sys.executable, "-c", code], env=environment(home),
                          cwd="/", capture_output=True, text=True, timeout=60)

    assert int(done.stdout.split()[-1]) > 2


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"},
                                      {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
def test_where_there_is_nothing_but_ascii_a_chart_is_drawn_with_it(home, settings):
    db = home / "offsets.db"
    with Database.open(db) as opened:
        opened.record(Kernel("a" * 40, "6.1.0-\u00fc", "", "x86_64"), [Offset.known(find("srtt_us"), 1672, "btf")])

    def said(*words):
        return subprocess.run([*COMMAND, "--db", db, "db", *words], env=environment(home) | settings, cwd="/",
                              capture_output=True, timeout=60, check=True).stdout

    assert b"1672    #  " in said("history", "srtt_us") and b"6.1.0-\\xfc" in said("history", "srtt_us")
    # What is exported is a file, wherever it goes.
    assert "6.1.0-\u00fc".encode() in said("export")


@pytest.mark.parametrize("command", [
    ["resolve", "--vmlinux"], ["render", "netflow", "--vmlinux"], ["guess", "--replay"], ["config", "check"],
    ["collect", "--config"], ["db", "import"], ["db", "merge"]])
def test_a_fifo_is_no_file_and_nobody_waits_for_it(home, command):
    os.mkfifo(home / "fifo")
    done = kcompat(*command, home / "fifo", home=home)

    assert done.returncode == 1
    assert one_line(done.stderr) == f"kcompat: {home / 'fifo'}: not a regular file"


@needs_btf
@pytest.mark.parametrize("settings, coloured", [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_for_terminals_that_want_them(home, settings, coloured):
    master, slave = pty.openpty()
    subprocess.run([*COMMAND, "resolve", "--source", "btf", "--no-record", "skc_dport"], stdout=slave,
                   stderr=subprocess.DEVNULL, env=environment(home) | {"TERM": "xterm"} | settings, cwd="/", timeout=60,
                   check=True)
    os.close(slave)
    said = os.read(master, 1 << 16)
    os.close(master)

    assert (b"\x1b[32m" in said) == coloured
