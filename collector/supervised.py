"""The life of one dataset: started, flushed, closed, and after a failure tried again, without the others' noticing."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from collector.canary import Refuted
from collector.dataset import Dataset, Running, Setup
from collector.record import Record
from collector.status import DatasetStatus, MapStatus, ProgramStatus
from kcompat.errors import KcompatError
from kcompat.hook_status import HookState
from kcompat.probe import require_bpf

log = logging.getLogger(__name__)

# Some causes pass: tracefs is mounted, a module is loaded, a guess has more luck. Which ones do, nobody can say.
_FIRST_RETRY_S, _LAST_RETRY_S = 30.0, 3600.0
# Of how many flows one is counted, the next time it is too much.
_SAMPLES = {1: 8, 8: 64}

Off = Callable[[str, KcompatError], None]


class Supervised:
    """One dataset; it runs when `running` is there, else `error` says why not and `retry_at` when to try again."""

    def __init__(self, row: Dataset, off: Off | None = None) -> None:
        self.row = row
        self.running: Running | None = None
        self.error: KcompatError | None = None
        self.retry_at = 0.0
        self.how = ""
        self._off = off
        self._pause_s = _FIRST_RETRY_S
        self._records = self._starts = 0
        self._flush_s = 0.0
        self.flush_cpu_s = 0.0
        self.flushed = 0
        """Records of the last flush."""
        self.one_of = 1
        """Of so many flows one is counted."""
        self._sampled_why, self._full_at = "", 0.0
        # Of all runs before this one: what users add up must never fall.
        self._lost_before: Counter[str] = Counter()
        self._left_out_before: Counter[str] = Counter()
        self._lost: Mapping[str, int] = {}
        self._left_out: Mapping[str, int] = {}

    @property
    def lost(self) -> Mapping[str, int]:
        return {**self._lost_before, **{what: n + self._lost_before[what] for what, n in self._lost.items()}}

    @property
    def left_out(self) -> Counter[str]:
        return self._left_out_before + Counter(self._left_out)

    def start(self, setup: Setup) -> bool:
        """Whether it runs now."""
        try:
            if self.row.render:
                # Where BPF is forbidden that is the reason, not that no offset could be guessed.
                require_bpf()
            self.running = self.row.start(setup)
        except KcompatError as error:
            self._failed(error)
        except OSError as error:
            self._failed(KcompatError(f"{self.row.name} is off: {error}"))
        except Exception as error:
            log.exception("%s has failed while it began", self.row.name)
            self._failed(KcompatError(f"{self.row.name} is off: it failed: {error}"))
        else:
            if self.error:
                log.warning("%s runs now", self.row.name)
            self.error = None
            self._pause_s = _FIRST_RETRY_S
            self.one_of = 1
            self._starts += 1
            self.how = self.running.how
        return self.running is not None

    def flush(self, time_ns: int) -> Sequence[Record]:
        """Its records. One that fails at it is closed, and tried again later."""
        if self.running is None:
            return []
        begun, begun_cpu = time.monotonic(), time.thread_time()
        try:
            records = self.running.flush(time_ns)
            self._lost, self._left_out = dict(self.running.losses), dict(self.running.left_out)
        except Exception as error:
            log.exception("%s has failed and is begun anew", self.row.name)
            self.close()
            self._failed(KcompatError(f"{self.row.name} is off: it failed: {error}"))
            return []
        self._flush_s = time.monotonic() - begun
        self.flush_cpu_s = time.thread_time() - begun_cpu
        self.flushed = len(records)
        self._records += len(records)
        return records

    def sample(self, why: str) -> bool:
        """Counts fewer flows because it costs too much, all again after a while; False where it cannot."""
        one_of = _SAMPLES.get(self.one_of)
        if not one_of or not self.running or not self.running.sample(one_of):
            return False
        self.one_of, self._sampled_why = one_of, why
        self._full_at = time.monotonic() + self._pause_s
        log.warning("%s counts one of %d flows: %s; all again in %.0f s", self.row.name, one_of, why, self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LAST_RETRY_S)
        return True

    def count_all(self) -> None:
        """Where it counts one of many, and has for long enough."""
        if self.one_of > 1 and self.running and time.monotonic() >= self._full_at and self.running.sample(1):
            self.one_of = 1
            log.info("%s counts all flows again", self.row.name)

    def shed(self, why: str) -> None:
        """Closes it because it costs too much; it is tried again as after any failure."""
        self.close()
        self._failed(KcompatError(f"{self.row.name} is off, the most expensive dataset: {why}"))

    def close(self) -> None:
        running, self.running = self.running, None
        if running is None:
            return
        self._lost_before, self._lost = Counter(self.lost), {}
        self._left_out_before, self._left_out = self.left_out, {}
        try:
            running.close()
        except Exception:
            log.exception("%s did not close cleanly", self.row.name)

    def status(self) -> DatasetStatus:
        told = DatasetStatus(self.row.name, HookState.ATTACHED, how=self.how, records=self._records,
                             flush_s=round(self._flush_s, 6), restarts=max(0, self._starts - 1), lost=self.lost,
                             left_out=dict(self.left_out))
        if self.running is None:
            state = HookState.REFUSED if isinstance(self.error, Refuted) else HookState.MISSING
            return replace(told, state=state, reason=str(self.error or "not begun"),
                           retry_in_s=round(max(0.0, self.retry_at - time.monotonic()), 1))
        if loaded := self.running.loaded:
            maps = tuple(MapStatus(name, made.entries, made.spec.max_entries)
                         for name, made in loaded.maps.items() if made.entries is not None)
            programs = tuple(ProgramStatus(name, runs, run_ns) for name, run_ns, runs in loaded.costs())
            told = replace(told, maps=maps, map_bytes=loaded.map_bytes, programs=programs)
        else:
            told = replace(told, map_bytes=0)
        hooks = tuple(self.running.hooks)
        less = [f"counts one of {self.one_of} flows: {self._sampled_why}"] if self.one_of > 1 else []
        bad = "; ".join(less + [f"{hook.program}: {hook.reason}" for hook in hooks if hook.state is HookState.DEGRADED])
        return replace(told, hooks=hooks, reason=bad, state=HookState.DEGRADED if bad else HookState.ATTACHED)

    def _failed(self, error: KcompatError) -> None:
        """The same again is not worth a second warning."""
        level = logging.DEBUG if self.error and str(self.error) == str(error) else logging.WARNING
        self.error = error
        self.retry_at = time.monotonic() + self._pause_s
        log.log(level, "%s%s", error, f"; tried again in {self._pause_s:.0f} s")
        self._pause_s = min(2 * self._pause_s, _LAST_RETRY_S)
        if self._off:
            self._off(self.row.name, error)
