"""The collector that a soak runs: started, told to read its configuration again, looked at from outside, ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.measure import REPOSITORY
from benchmarks.soak_books import Sample
from benchmarks.soak_trouble import PATIENCE_S
from collector.instance import ask
from collector.pipeline import DATASETS
from kcompat.errors import KcompatError

T = TypeVar("T")
_SPOOL_BYTES = 1 << 16
_END_S = 30.0


class Collector:
    """`kcompat collect` with every dataset and four outputs: a file, a server that fails, one that is a black hole, a
    full disk."""

    def __init__(self, home: Path, failing_port: int, hole_port: int) -> None:
        self.records, self._log, self._config = home / "records.jsonl", home / "log", home / "kcompat.toml"
        self._ports, self._run = (failing_port, hole_port), home / "run"
        self.hangups = 0
        self.configure(0)
        environment = {"KCOMPAT_CACHE": str(home / "cache"), "KCOMPAT_RUN": str(self._run),
                       "KCOMPAT_SPOOL": str(home / "spool")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [Path(sys.executable).with_name("kcompat"), "--db", home / "offsets.db", "collect", "--config",
                 self._config], cwd=REPOSITORY, env=os.environ | environment, stdout=log, stderr=log)
        self.began_s = time.monotonic()
        until(lambda: "collecting" in self.said() or self._process.poll() is not None, "the collector to begin")
        if self._process.poll() is not None:
            raise KcompatError(f"the collector ended: {self.said().strip().splitlines()[-1:]}")

    def configure(self, number: int) -> None:
        """Another interval and another tag each time; what it counts may not change by that."""
        failing, hole = self._ports
        outputs = [f'"jsonl:{self.records}"', '"jsonl:/dev/full"',
                   f'{{kind = "http", url = "http://127.0.0.1:{failing}/write", timeout_s = 2, longest_backoff_s = 3}}',
                   f'{{kind = "http", url = "http://127.0.0.1:{hole}/write", timeout_s = 2, '
                   f'spool_bytes = {_SPOOL_BYTES}}}']
        text = (f"datasets = {json.dumps(list(DATASETS))}\ninterval_s = {(5, 7)[number % 2]}\n"
                f"outputs = [{', '.join(outputs)}]\ntags = {{ soak = \"{number % 10}\" }}\n"
                "[log]\nlevel = \"info\"\nper_minute = 1000\n")
        new = self._config.with_suffix(".new")
        new.write_text(text)
        new.replace(self._config)

    def hang_up(self) -> None:
        """Has it read another configuration, and waits until it has."""
        self.hangups += 1
        self.configure(self.hangups)
        self._process.send_signal(signal.SIGHUP)
        until(lambda: self.status()["reloads"] >= self.hangups, "SIGHUP to be heard")

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for_word(self, what: str, *pids: int) -> None:
        """Until it says that about one of the processes: something in it is hooked."""
        until(lambda: any(what in line and any(f"/proc/{pid}/" in line for pid in pids)
                          for line in self.said().splitlines()), f"it to say {what!r} of {pids}")

    def status(self) -> dict[str, Any]:
        return ask(self._run)

    def sample(self) -> Sample:
        proc = Path("/proc", str(self._process.pid))
        held = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        resident, anonymous = (int(held[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))
        return Sample(time.monotonic() - self.began_s, resident, anonymous, len(list((proc / "fd").iterdir())),
                      int(held["Threads"]))

    def descriptors(self) -> list[str]:
        """What each leads to, without what tells two of a kind apart; then a moment goes by."""
        found = []
        for path in Path("/proc", str(self._process.pid), "fd").iterdir():
            try:
                found.append(str(path.readlink()).partition(":[")[0])
            except FileNotFoundError:
                continue
        time.sleep(0.5)
        return sorted(found)

    def told_of(self, sink: str) -> int:
        """How many points it says at its end that it has delivered, dropped, or kept for the next start."""
        lines = [line for line in self.said().splitlines() if f"{sink}: " in line]
        last = re.findall(r"(\d+) points delivered, (\d+) dropped", "\n".join(lines))[-1:]
        kept = re.findall(r"(\d+) points wait on disk", "\n".join(lines))[-1:]
        return sum(map(int, (*chain(*last), *kept)))

    def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(_END_S)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def until(good: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """The first answer that is true. Raises KcompatError when there is none in time."""
    deadline = time.monotonic() + patience_s
    while not (got := good()):
        if time.monotonic() > deadline:
            raise KcompatError(f"waited {patience_s:.0f} s for {what}")
        time.sleep(0.2)
    return got
