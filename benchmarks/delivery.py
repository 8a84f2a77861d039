"""A flush of 200,000 flows: aggregated, told of pods, spelled, compressed; time, memory, and a client library's time.

``python -m benchmarks.delivery``. Needs no root: flows are made up, everything they go through is the collector's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import measure, report
from benchmarks.measure import Line, Repetitions, Result, Target, of
from kcompat.errors import Missing

TITLE = "A flush of 200,000 flows"
FLOWS = 200_000
_MILLION = 1_000_000


def run(repetitions: Repetitions, flows: int = FLOWS) -> Result:
    """Raises Missing without influxdb-client."""
    try:
        import influxdb_client  # noqa: F401 - measured in processes of their own
    except ModuleNotFoundError as error:
        raise Missing("influxdb-client is not installed: pip install 'kcompat[test]'") from error
    before = measure.load()
    lines = [line for pods in ((), ("pods",)) for line in _lines(repetitions, flows, *pods)]
    return Result("delivery", TITLE, tuple(lines), (), (before, measure.load()), repetitions.begun, repetitions.busy)


def _lines(repetitions: Repetitions, flows: int, *pods: str) -> list[Line]:
    ours = repetitions.fresh("flush", str(flows), "ours", *pods)
    rival = repetitions.fresh("flush", str(flows), "influxdb-client", *pods)
    name = "with Kubernetes" if pods else "without Kubernetes"

    def each(*steps: str) -> list[float]:
        return [sum(one[step] for step in steps) for one in ours]

    whole = each("aggregated_s", "told_s", "spelled_s")
    first = ours[0]
    return [
        of(f"{name}: aggregated", each("aggregated_s")),
        *([of(f"{name}: told", each("told_s"))] if pods else []),
        of(f"{name}: spelled", each("spelled_s"), note=f"{first['text_mib']:.0f} MiB of text"),
        of(f"{name}: all of it", whole, target=Target(1000)),
        of(f"{name}: gzip besides", each("packed_s"), note=f"{first['sent_mib']:.1f} MiB are sent"),
        of(f"{name}: a million connections", _a_million(each("aggregated_s", "told_s", "spelled_s", "packed_s"), flows),
           unit="s", note="a flow each, gzip too"),
        *([] if pods else [of("a million connections, added up", _a_million(each("merged_s"), flows), unit="s",
                              note=f"of {first['merged_flows']} flows")]),
        of(f"{name}: peak memory", [one["peak_mib"] for one in ours], unit="MiB", target=Target(150),
           note=f"{first['before_mib']:.0f} MiB before"),
        of(f"{name}: influxdb-client, spelling alone", [one["spelled_s"] for one in rival]),
        of(f"{name}: influxdb-client's spelling / all of ours",
           [_seconds(theirs) / seconds for theirs, seconds in zip(rival, whole, strict=True)], unit="x"),
    ]


def _a_million(seconds: Sequence[float], connections: int) -> list[float]:
    return [one * _MILLION / connections for one in seconds]


def _seconds(measured: dict[str, Any]) -> float:
    return float(measured["spelled_s"])


if __name__ == "__main__":
    print(report.text([run(Repetitions(5, 3.0))]), end="")
