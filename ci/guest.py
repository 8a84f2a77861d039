"""Runs inside a guest: every step of one kernel's check, one after the other, each reported as it ends."""

from __future__ import annotations

import base64
import fcntl
import gzip
import json
import os
import select
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from ci.kernels import ALL_TESTS
from ci.traffic import LOOPBACK
from ci.verdict import Step, pack_step

KCOMPAT = str(Path(sys.executable).with_name("kcompat"))
BTF = Path("/sys/kernel/btf")
NETNS = Path("/proc/self/ns/net")
# Of the time that is left: a step that hangs must not take that of all the others. The last one has nobody to spare.
SHARE, LAST_SHARE = 0.6, 0.9
_GRACE_S = 15.0
_RNDADDENTROPY = 0x40085203  # linux/random.h
# For what a step says on standard error, or of one failed test; the console has it all.
WORDS_LIMIT = 4000

Found: TypeAlias = dict[str, Any]


class StepError(Exception):
    """A step could not do what it is for; the message is the reason."""


class Guest:
    """One guest's steps: they share a database, which begins empty, and the time until ``end`` (time.monotonic)."""

    def __init__(self, work: Path, end: float) -> None:
        self._work = work
        self._end = end
        self._database = work / "offsets.db"

    def info(self) -> Found:
        return self._kcompat("info", "--json")

    def guess(self) -> Found:
        """With BTF out of sight: what the guess finds, it cannot have read there. What it saw is kept."""
        hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {BTF} && exec "$@"', "sh"]
        recording = self._work / "recording"
        found = self._kcompat("guess", "--json", "--record", str(recording), "--mask-pointers",
                              prefix=hide if BTF.is_dir() else ())
        if recording.exists():
            found["recording"] = base64.b64encode(recording.read_bytes()).decode()
        return found

    def collect(self) -> Found:
        """The collector on the guessed offsets alone, and traffic whose bytes are known."""
        records = self._work / "flows.jsonl"
        command = [KCOMPAT, "--db", str(self._database), "collect", "--source", "db", "--loopback",
                   "--interval", "1800", "--output", f"jsonl:{records}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=self._work) as process:
            try:
                said = self._until(process, b"collecting")
                if process.poll() is not None or b"collecting" not in said:
                    return {"started": False, "stderr": _words(said)}
                expected = self._traffic()
                time.sleep(1)  # the closing handshakes' last segments
                process.terminate()
                _, rest = process.communicate(timeout=self._limit())
            finally:
                process.kill()
        seen = [json.loads(line) for line in records.read_text().splitlines()]
        seen = [r for r in seen if {r["tags"]["src_ip"], r["tags"]["dst_ip"]} <= {*LOOPBACK}]
        return {"started": True, "status": process.returncode, "stderr": _words(said + rest), "expected": expected,
                "addresses": LOOPBACK, "records": seen}

    def btf(self) -> Found:
        if not (BTF / "vmlinux").exists():
            return {"there": False}
        return {"there": True, **self._kcompat("resolve", "--source", "btf", "--json")}

    def offsets(self) -> Found:
        """All that was learnt, with its evidence, as others can take it in."""
        done = self._run([KCOMPAT, "--db", str(self._database), "db", "export"])
        return {"lines": done.pop("stdout"), **done}

    def tests(self) -> Found:
        report = self._work / "junit.xml"
        environment = dict(os.environ)
        if oracle := environment.pop("KCOMPAT_CI_ORACLE", None):
            path = self._work / "oracle.json"
            path.write_bytes(gzip.decompress(base64.b64decode(oracle)))
            environment["KCOMPAT_ORACLE"] = str(path)
        # Importing whatever plugins are installed, Datasette's for one, takes three times as long as our own tests.
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        # The guest's root is read-only: pytest's cache and compiled files have nowhere to go.
        # A name per line: the console's last one is the test that hung.
        options = ["-p", "no:cacheprovider", "--color=no", "--verbose",
                   *(() if os.environ.get("KCOMPAT_CI_THOROUGH") else ("-m", "not thorough")),
                   "-p", "pytest_timeout", "--junitxml", str(report)]
        wanted = shlex.split(os.environ.get("KCOMPAT_CI_TESTS", "")) or ALL_TESTS
        overdue = None
        try:
            command = [sys.executable, "-m", "pytest", *options, *wanted]
            status = self._run(command, environment, capture=False, share=LAST_SHARE)["status"]
        except StepError as error:
            # Interrupted, pytest reports what it got to.
            status, overdue = None, str(error)
        return {"status": status, "overdue": overdue, "tests": _tests(report) if report.exists() else None}

    def _kcompat(self, *arguments: str, prefix: Sequence[str] = ()) -> Found:
        done = self._run([*prefix, KCOMPAT, "--db", str(self._database), *arguments])
        try:
            return {"said": json.loads(done.pop("stdout")), **done}
        except ValueError:
            return {"said": None, **done}

    def _run(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, *,
        capture: bool = True, share: float = SHARE,
    ) -> Found:
        """Runs one command in a session of its own, so that what it starts ends with it."""
        say(f"$ {' '.join(command[-6:])}")
        with (self._work / "out").open("w+b") as out, (self._work / "err").open("w+b") as err:
            process = subprocess.Popen(command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
                                       stdout=out if capture else None, stderr=err if capture else None)
            limit = self._limit(share)
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired as error:
                _end(process)
                raise StepError(f"did not end within {limit:.0f} s") from error
            out.seek(0)
            err.seek(0)
            said = _words(err.read())
            if said:
                say(said)
            return {"status": process.returncode, "stdout": out.read().decode(errors="replace"), "stderr": said}

    def _traffic(self) -> Any:
        command = [sys.executable, "-m", "ci.traffic"]
        if NETNS.exists():
            command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
        done = self._run(command)
        if done["status"] != 0:
            raise StepError(f"the traffic failed: {done['stderr']}")
        return json.loads(done["stdout"])

    def _until(self, process: subprocess.Popen[bytes], word: bytes) -> bytes:
        """What the process says up to the word, or to its end."""
        assert process.stderr is not None
        said, end = b"", time.monotonic() + self._limit()
        while word not in said:
            ready, _, _ = select.select([process.stderr], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise StepError(f"the collector does not say {word.decode()!r}")
            part = os.read(process.stderr.fileno(), 1 << 16)
            if not part:
                process.wait(self._limit())
                break
            said += part
        return said

    def _limit(self, share: float = SHARE) -> float:
        return max(1.0, share * (self._end - time.monotonic()))


# In the order they run: what is learnt is sent away before the tests, the longest step, may lose the guest.
STEPS: dict[str, Callable[[Guest], Found]] = {
    "info": Guest.info, "guess": Guest.guess, "collect": Guest.collect, "btf": Guest.btf,
    "offsets": Guest.offsets, "tests": Guest.tests,
}


def step(name: str, guest: Guest) -> Step:
    """One step, whatever becomes of it: a fault of it is what it found."""
    say(f"== {name}")
    begun = time.monotonic()
    try:
        found = STEPS[name](guest)
    except Exception as error:
        # Whatever it is, the next step and the other kernels go on, and the reason is told.
        found = {"error": str(error) if isinstance(error, StepError) else f"{type(error).__name__}: {error}"}
    return Step(name, round(time.monotonic() - begun, 2), found)


def _end(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would, then without mercy: its whole session is gone afterwards."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)


def say(words: str) -> None:
    print(words, flush=True)


def _words(said: bytes) -> str:
    return said.decode(errors="replace").strip()[-WORDS_LIMIT:]


def _tests(report: Path) -> list[list[Any]]:
    """[name, outcome, seconds, message] of each test of a JUnit file."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname", "").replace(".", "/")
        fault = next((c for c in case if c.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if fault is None else "skipped" if fault.tag == "skipped" else "failed"
        message = "" if fault is None else f"{fault.get('message', '')}\n{fault.text or ''}"
        # Of a long failure its end tells most.
        found.append([f"{file}.py::{case.get('name')}", outcome, float(case.get("time", 0)), message[-WORDS_LIMIT:]])
    return found


def have_entropy() -> None:
    """No secrets are kept here. Before 5.6 a machine that gathers no noise waits minutes for its first random bytes."""
    seed = os.environ["KCOMPAT_CI_NONCE"].encode()
    with Path("/dev/random").open("wb") as random, suppress(OSError):
        # Oldest kernels hand on what overflows their first pool of 4096 bits.
        for _ in range(32):
            fcntl.ioctl(random, _RNDADDENTROPY, struct.pack("ii64s", 512, 64, seed))


def main(names: Sequence[str]) -> None:
    have_entropy()
    # After boot, which is what the monotonic clock counts from.
    end = float(os.environ["KCOMPAT_CI_SECONDS"])
    port, nonce = Path(os.environ["KCOMPAT_CI_PORT"]), os.environ["KCOMPAT_CI_NONCE"]
    with tempfile.TemporaryDirectory(prefix="kcompat-guest-") as work:
        guest = Guest(Path(work), end)
        for name in names:
            done = step(name, guest)
            with port.open("a") as report:
                report.write(f"{nonce} step {pack_step(done)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
