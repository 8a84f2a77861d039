"""Command lines typed into bash, taken where readline() returns them; no offsets, but uprobes."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from collector import bashes
from collector.bashes import Bash, Target
from collector.command_lines import MEASUREMENT, Typed, assemble, record
from collector.config import Options
from collector.dataset import Dataset, Setup, require
from collector.enrich.users import Users
from collector.exec_events import ExecEvents
from collector.mapped_files import Edition, FileId, file_id, others_of
from collector.record import Record
from kcompat import probe, template
from kcompat.attach import Attachment
from kcompat.bpf import compile_cached
from kcompat.errors import KcompatError
from kcompat.hook_status import HookStatus
from kcompat.load import Loaded
from kcompat.offsets import Offsets
from kcompat.open_files import readable
from kcompat.privileges import explained

log = logging.getLogger(__name__)

NAME = MEASUREMENT
SOURCE = Path(__file__).with_name("bash.bpf.c")
PROGRAM = "uretprobe__readline"
_POLL_S = 0.2
# Looking for bashes takes a readlink of every process: never more than this share of a processor.
_SCAN_SHARE = 0.02
# Longer than the program runs: after it all parts of a line are there.
_WHOLE_NS = 50_000_000
_MAX_WAITING = 1 << 16
_MAX_TARGETS = 1024


def render(offsets: Offsets, options: Options) -> str:
    """The C as it will be compiled: the same for every kernel."""
    return template.render(NAME, template.read_source(SOURCE), offsets)


class BashLines:
    """The running dataset: a thread of its own finds bashes and takes lines out of the kernel's map."""

    how = "uprobes"

    def __init__(self, setup: Setup) -> None:
        """Raises Missing or Unsupported where no uprobe can be set."""
        self._setup = setup
        self.left_out: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        require(NAME, probe.uprobe)
        compiled, _ = compile_cached(render(setup.offsets, setup.options))
        self.loaded = Loaded(compiled, setup.version_code)
        self._attached: dict[Edition, Attachment] = {}
        self._programs: dict[Edition, Edition | None] = {}
        self._bashes: dict[int, Bash] = {}
        self._users = Users()
        # Whether a bash was ever seen with another root than ours.
        self._has_other_roots = False
        self._is_full_said = False
        self._waiting: deque[Record] = deque()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._events: ExecEvents | None = None
        try:
            self.loaded.load(PROGRAM)
            # From before the scan on: what begins during it is told.
            self._events = ExecEvents()
        except OSError as error:
            log.info("bashes are found by looking for them alone: no exec events (%s)", error.strerror)
        except BaseException:
            self.loaded.close()
            raise
        try:
            self._scan()
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()

    @property
    def hooks(self) -> Sequence[HookStatus]:
        return self.loaded.hooks

    @property
    def losses(self) -> Mapping[str, int]:
        count = int.from_bytes(self.loaded.maps["losses"].get(bytes(4)) or b"", "little")
        return {"command lines": self._lost["command lines"], "parts of command lines": count,
                "ends of long command lines": self._lost["ends of long command lines"]}

    def flush(self, time_ns: int) -> list[Record]:
        """Every line has the time it was typed at, not `time_ns`."""
        time.sleep(_WHOLE_NS / 1e9)
        with self._lock:
            self._take()
            records = list(self._waiting)
            self._waiting.clear()
        return records

    def sample(self, one_of: int) -> bool:
        return one_of == 1

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._release()

    def _release(self) -> None:
        for attached in self._attached.values():
            attached.close()
        self.loaded.close()
        if self._events:
            self._events.close()

    def _run(self) -> None:
        scan_at_s = 0.0
        while not self._stop.is_set():
            try:
                self._wait()
                if time.monotonic() >= scan_at_s:
                    begun_s = time.thread_time()
                    self._scan()
                    scan_at_s = time.monotonic() + (time.thread_time() - begun_s) / _SCAN_SHARE
                with self._lock:
                    self._take()
            except Exception:
                log.exception("%s goes on", NAME)

    def _wait(self) -> None:
        """Until it is time to look again. A bash that begins is hooked at once: soon it reads its first line."""
        if self._events is None:
            self._stop.wait(_POLL_S)
            return
        until_s = time.monotonic() + _POLL_S
        while (rest_s := until_s - time.monotonic()) > 0 and readable(self._events, rest_s):
            for pid in self._events.pids():
                if bash := bashes.look(pid):
                    self._meet(bash)

    def _meet(self, bash: Bash) -> None:
        if bash.program not in self._programs:
            self._hook(bash)
        with self._lock:
            self._bashes[bash.pid] = bash
            self._has_other_roots |= bash.root != self._users.here

    def _scan(self) -> None:
        """Hooks the programs of bashes that are new, lets go of files no bash runs any more."""
        found = {bash.pid: bash for bash in bashes.running()}
        for bash in found.values():
            if bash.program not in self._programs:
                self._hook(bash)
        # Those that are none any more are kept for the lines they leave behind.
        gone = {pid: bash for pid, bash in self._bashes.items() if pid not in found and bash.program in self._programs}
        with self._lock:
            self._bashes = dict(list(gone.items())[-_MAX_TARGETS:]) | found
        self._has_other_roots |= any(bash.root != self._users.here for bash in found.values())
        used = {bash.program for bash in found.values()}
        for program in self._programs.keys() - used:
            file = self._programs.pop(program)
            if file and file not in self._programs.values():
                self._let_go(file)

    def _hook(self, bash: Bash) -> None:
        if len(self._programs) >= _MAX_TARGETS:
            if not self._is_full_said:
                log.warning("%d kinds of bash are seen, and no more, as that of process %d", _MAX_TARGETS, bash.pid)
            self._is_full_said = True
            return
        try:
            with bashes.target(bash) as where:
                self._attach(where)
        except Exception as error:
            if not bashes.runs(bash):
                return  # it has ended, or has become another, which is looked at for itself
            # Anybody may have made the file: whatever is wrong with it, the others are looked at.
            self._programs[bash.program] = None
            log.warning("a bash is not seen: %s", explained(error),
                        exc_info=not isinstance(error, KcompatError | OSError))
            return
        self._programs[bash.program] = where.file

    def _attach(self, where: Target) -> None:
        if where.file in self._attached:
            return
        for before in others_of(where.file, self._attached):
            self._let_go(before)
            # A library's, by which other programs read too.
            self._programs |= {program: where.file for program, file in self._programs.items() if file == before}
        attached = self.loaded.attach(PROGRAM, f"{where.path}:{where.offset:#x}", where.descriptor)
        self.loaded.attachments.remove(attached)
        self._attached[where.file] = attached
        log.info("bash lines are read in %s at %#x", where.path, where.offset)

    def _let_go(self, file: Edition) -> None:
        if attached := self._attached.pop(file, None):
            attached.close()

    def _take(self) -> None:
        """Takes whole lines out of the map; what is being written is left for the next time."""
        table = self.loaded.maps["parts"]
        now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        whole = [(key, value) for key, value in table.items()
                 if now_ns - int.from_bytes(key[:8], "little") > _WHOLE_NS]
        for key, _ in whole:
            table.delete(key)
        epoch_ns = time.time_ns() - now_ns
        for line in assemble(whole):
            if not self._is_bash(line):
                continue
            user, options = self._users.name(line.uid, line.pid, self._root(line.pid)), self._setup.options
            if made := record(line, user, options.host, epoch_ns + line.time_ns, options.redact):
                self._lost["ends of long command lines"] += line.is_cut
                self._waiting.append(made)
        while len(self._waiting) > _MAX_WAITING:
            self._waiting.popleft()
            self._lost["command lines"] += 1

    def _root(self, pid: int) -> FileId | None:
        """The root of a process; of one that has ended unseen only where no bash ever had another root than ours."""
        if bash := self._bashes.get(pid):
            return bash.root
        with suppress(OSError):
            return file_id(f"/proc/{pid}/root")
        return None if self._has_other_roots else self._users.here

    def _is_bash(self, line: Typed) -> bool:
        """A libreadline is shared with programs that are none, and a bash may become one of them, called otherwise."""
        if bashes.is_bash(line.comm) or ((bash := self._bashes.get(line.pid)) and bash.comm == line.comm):
            return True
        with suppress(OSError):  # it has ended
            return bashes.is_bash(bashes.program_of(line.pid))
        return False


DATASET = Dataset(NAME, BashLines, render=render)
