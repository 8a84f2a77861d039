"""When a tracked connection ends: jiffies, found by how far apart they are, and told from a timer that holds some."""

from __future__ import annotations

import time
from collections.abc import Sequence

from guessers.conntrack import Tracked
from guessers.search import Found
from kcompat.fields import find

_SLACK_S = 1.0  # jiffies run behind while the processor that counts them sleeps, or is not let run by its host
_CLOCK_MONOTONIC_COARSE = 6
_TIMER = 40  # from timer_list.expires to its end, at the most
_LATE = 1 / 256  # of its time a timer may expire later, so that many do at once: up to 4.7, apply_slack() of the kernel


def search_timeout(tracked: Sequence[Tracked], hz: int) -> Found:
    """``timeout``: the jiffies at which each entry ends, as far apart as the timeouts chosen and the times they began.

    What the clock of jiffies showed at the first is not known, nor needed: it went on by `hz` a second.
    Before 4.9 (kernel commit f330a7fdbe16) the same number is a part of a struct timer_list: that is not the field.
    """
    field = find("nf_conn.timeout")
    tracked = [t for t in tracked if t.entry.timeout_s is not None]
    chosen = [t.entry.timeout_s for t in tracked if t.entry.timeout_s is not None]
    if len(tracked) < 2:
        return Found(field, (), {"samples": 0})
    end = min(t.sample.end for t in tracked)
    places = [at for at in range(0, end - 3, 4) if _ends_at(tracked, chosen, at, hz)]
    exchanged = [at for at in range(0, end - 3, 4) if _ends_at(tracked, chosen[1:] + chosen[:1], at, hz)]
    timers = [at for at in range(0, end - 3, 4)
              if _ends_at(tracked, chosen, at, hz, late=_LATE) and _in_timer(tracked, at)]
    first, last = tracked[0].entry, tracked[-1].entry
    window = hz * (2 * _SLACK_S + last.ended - first.begun)
    why = ("this kernel has a timer in its place, and no number: what the timer expires at stands at "
           + ", ".join(map(str, timers)) if timers else None)
    return Found(field, () if timers else tuple(places), {
        "samples": len(tracked), "held_out": 0, "distinct_values": len(set(chosen)),
        "candidates_by_sample": [end // 4, len(places)], "null_survivors": len(exchanged),
        "expected_false_positives": end / 4 * min(1.0, window / 2.0**32) ** (len(tracked) - 1),
        "method": f"jiffies as far apart as the chosen timeouts, at {hz} a second",
    }, why)


def _in_timer(tracked: Sequence[Tracked], at: int) -> bool:
    """Whether a timer's argument stands a little behind: the entry itself, in every entry at the same place.

    setup_timer(&ct->timeout, death_by_timeout, (unsigned long)ct).
    """
    return any(all(t.sample.window.startswith(t.address.to_bytes(8, "little"), here) for t in tracked)
               for here in range(at // 8 * 8 + 8, at + _TIMER, 8))


def _ends_at(tracked: Sequence[Tracked], chosen: Sequence[int], at: int, hz: int, *, late: float = 0.0) -> bool:
    """Whether the 32 bits at `at` fit all timeouts, or are later by no more than that share of each."""
    first = tracked[0].entry
    base = None
    for one, timeout_s in zip(tracked, chosen, strict=True):
        begun = (int.from_bytes(one.sample.window[at:at + 4], "little") - timeout_s * hz) & 0xFFFF_FFFF
        base = begun if base is None else base
        passed = ((begun - base + (1 << 31)) & 0xFFFF_FFFF) - (1 << 31)
        if not (one.entry.begun - first.ended - _SLACK_S - late * chosen[0] <= passed / hz
                <= one.entry.ended - first.begun + _SLACK_S + late * timeout_s):
            return False
    return True


def ticks_per_second() -> int:
    """HZ: the coarse clock moves once a tick."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))
