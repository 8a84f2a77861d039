"""Every key a user may set for the collector, each in one place: its name, type, bounds, default, and what it does."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval, MinLen

from collector.evident import evident
from collector.exclusions import KINDS as EXCLUSION_KINDS
from collector.exclusions import NO_EXCLUSIONS, Exclusions
from collector.redaction import KINDS as REDACTION_KINDS
from collector.redaction import MASK, NO_REDACTIONS, Redactions
from kcompat.errors import KcompatError

if TYPE_CHECKING:
    from pydantic_core.core_schema import CoreSchema

# How a key is added: a line in `Options` or in a section of it, annotated with its bounds and, last, what it does.
# From there it has its place in the TOML file, in `kcompat config sample`, in the environment and after --set, and
# pydantic checks it, where what a user wrote is not evidently right. Notes of our own thus say twice what they take:
# to pydantic, and as `evident` to `collector.evident`.

SHORTEST_INTERVAL_S = 1
LONGEST_INTERVAL_S = 30 * 60
# For every section: a key that does not exist is a mistake.
FORBID = {"extra": "forbid"}
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Example:
    """For a key whose default is nothing, or this machine's own: what the sample shows, commented out."""

    value: Any


class Restart:
    """Marks a key that a running collector cannot take over: it is for the next start."""


class Duration:
    """A number of seconds, or text with units as DataKit writes it: `90`, `"90s"`, `"1m30s"`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(seconds, handler(source))

    @staticmethod
    def evident(value: Any, made: Callable[[Any], Any]) -> Any:
        return made(seconds(value))


class Endpoint:
    """HOST:PORT, [HOST]:PORT or PORT alone, which is at 127.0.0.1."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    @classmethod
    def evident(cls, value: Any, made: Callable[[Any], Any]) -> str | None:
        return cls._checked(made(value))

    @staticmethod
    def _checked(value: str | None) -> str | None:
        if value is not None:
            endpoint(value)
        return value


class Output:
    """A sink as text, or as a table of its keys; what stands in them the sinks know."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.evident)

    @staticmethod
    def evident(value: Any, made: object = None) -> str | dict[str, Any]:
        if not isinstance(value, str | dict):
            raise ValueError("must be text, or a table")
        return value


# Keys whose value is a list of rules, each a text KIND=VALUE.
RULES = (Exclusions, Redactions)


@dataclass(frozen=True, slots=True)
class RuleList:
    """Rules as text, read by what `RULES` has for them."""

    parse: Callable[[Iterable[str]], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        def checked(rule: str) -> str:
            try:
                self.parse([rule])
            except KcompatError as error:
                raise ValueError(str(error).rpartition(f"{rule!r}: ")[2]) from None
            return rule

        # One by one, so that each that is wrong is told, with its place.
        rules = core_schema.list_schema(core_schema.no_info_after_validator_function(checked, core_schema.str_schema()))
        return core_schema.no_info_after_validator_function(self.parse, rules)

    def evident(self, value: Any, made: object) -> Any:
        return self.parse(evident(tuple[str, ...], value))


@dataclass(frozen=True, slots=True)
class OffsetSources:
    """Where the offsets of this kernel's fields come from."""

    __pydantic_config__ = FORBID

    source: Annotated[Literal["auto", "db", "btf", "dwarf", "guess"], Restart,
                      "auto asks the database (verified by one event), BTF, DWARF (with a vmlinux), then guesses."
                      ] = "auto"
    vmlinux: Annotated[Path | None, Restart, Example("/usr/lib/debug/boot/vmlinux-6.1.0-40-amd64"),
                       "A vmlinux, or a BTF file, to read offsets from."] = None
    db: Annotated[Path | None, Restart, Example("/var/lib/kcompat/offsets.db"),
                  "The file in which offsets are remembered. Default: as the --db of every command."] = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """The collector's own numbers."""

    __pydantic_config__ = FORBID

    listen: Annotated[str | None, Endpoint(), Restart, Example("127.0.0.1:9435"),
                      "Serve /metrics, for Prometheus, /healthz and /livez at HOST:PORT; a PORT alone is of the "
                      "loopback interface. Default: nowhere."] = None
    bpf_run_time: Annotated[bool, Restart, "Make the kernel count how long BPF programs run (5.8 on), which costs "
                                           "every run of any some 20 ns."] = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What the collector may cost. Over a limit it does less, and says so, instead of ending."""

    __pydantic_config__ = FORBID

    cpu_percent: Annotated[float | None, Interval(gt=0), Example(20.0),
                           "Of one processor, on average over three intervals; over it the most expensive dataset "
                           "counts one flow of 8, then of 64, then it is closed, and tried again later. The last one "
                           "stays. Default: no limit."] = None
    memory_mb: Annotated[int | None, Interval(ge=16), Example(150),
                         "Resident memory, likewise. Default: no limit."] = None
    output_kb_s: Annotated[float | None, Interval(gt=0), Example(100.0),
                           "Kilobytes a second for all outputs that send, packed as they are sent, likewise; the "
                           "dataset of most records does less. Default: no limit."] = None


@dataclass(frozen=True, slots=True)
class Log:
    """What the collector says on standard error."""

    __pydantic_config__ = FORBID

    format: Annotated[Literal["text", "json"], Restart, "text is for people, json is an object a line."] = "text"
    level: Annotated[Literal["debug", "info", "warning", "error"], Restart, "What is said at least."] = "warning"
    per_minute: Annotated[int, Interval(ge=1), Restart,
                          "Of lines that differ only in their numbers and names at most so many a minute; the rest "
                          "is counted."] = 10


@dataclass(frozen=True, slots=True)
class KubernetesOptions:
    """Pods and services at the ends of flows, from the API server (get, list and watch are all it is asked)."""

    __pydantic_config__ = FORBID

    enabled: Annotated[Literal["auto", "on", "off"], Restart,
                       "auto: in a pod, by its service account, or with a kubeconfig named here; on: also with "
                       "$KUBECONFIG or ~/.kube/config."] = "auto"
    kubeconfig: Annotated[Path | None, Restart, Example("/etc/kubernetes/kubelet.conf"),
                          "Which API server, and who we are to it. Default: the pod's service account."] = None
    labels: Annotated[tuple[str, ...], Restart,
                      "Labels of pods to make tags of: app becomes src_k8s_label_app and dst_k8s_label_app."] = ()
    resync_s: Annotated[float, Duration(), Interval(ge=60, le=86400), Restart,
                        "So often everything is listed anew, besides being watched."] = 3600.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the collector is told. Made from a file, the environment and a command line by `config_reading`."""

    __pydantic_config__ = FORBID

    host: Annotated[str, MinLen(1), Example("web-1"), "The host tag of every record. Default: this machine's name."
                    ] = field(default_factory=lambda: os.uname().nodename)
    datasets: Annotated[tuple[str, ...], MinLen(1),
                        "What to collect: any of netflow, httpflow, dnsflow, bash."] = ("netflow",)
    interval_s: Annotated[float, Duration(), Interval(ge=SHORTEST_INTERVAL_S, le=LONGEST_INTERVAL_S),
                          "Time between points: seconds, 1 to 1800, or text like \"1m30s\"."] = 60.0
    outputs: Annotated[tuple[Annotated[str | dict[str, Any], Output()], ...], MinLen(1),
                       "Where records go, any number of: table, jsonl:PATH, lineproto:PATH, http://URL, https://URL, "
                       "datakit://HOST:PORT, influxdb://, influxdb2://, victoriametrics://, nats://, kafka:// or "
                       "otlp://. A PATH of - is standard output. Keys follow after ?, as in "
                       "datakit://HOST:PORT?timeout_s=5; or an output is a table of them: "
                       "{kind = \"datakit\", url = \"http://HOST:PORT\"}."] = ("table",)
    tags: Annotated[Mapping[str, str], "Tags added to every record; none replaces one of its own."
                    ] = field(default_factory=dict)
    ephemeral_port: Annotated[int, Interval(ge=0, le=0xFFFF), Restart,
                              "Client ports from here on are reported as *; 0 to 65535."] = 32768
    loopback: Annotated[bool, "Keep flows of the loopback interface."] = False
    exclude: Annotated[Exclusions, RuleList(Exclusions.parse), f"Flows left out, by rules: {EXCLUSION_KINDS}."
                       ] = NO_EXCLUSIONS
    redact: Annotated[Redactions, RuleList(Redactions.parse),
                      f"What nobody shall read becomes {MASK}, by rules: {REDACTION_KINDS}. An expression is Python's; "
                      "where it has groups, only they are hidden. httpflow's paths, bash's cmd and message."
                      ] = NO_REDACTIONS
    max_flows: Annotated[int, Interval(ge=1, le=1 << 22), Restart,
                         "At most so many points of a dataset in one interval; what is more is counted as lost."
                         ] = 1 << 16
    dns_queries: Annotated[bool, "dnsflow: tell names and types of queries apart."] = False
    http_templates: Annotated[bool, "httpflow: numbers, UUIDs and long hexadecimal numbers in paths become {id}."
                              ] = False
    max_paths: Annotated[int, Interval(ge=0, le=1 << 22),
                         "httpflow: tell at most so many paths of one interval apart; what is more is counted under *."
                         ] = 4096
    http_tls: Annotated[bool, Restart, "httpflow: look into TLS, by uprobes in the libraries that processes use."
                        ] = True
    dns_percentiles: Annotated[bool, "dnsflow: add the latency's median, 95th and 99th percentile; needs the extra "
                               "kcompat[percentiles]."] = False
    max_sockets: Annotated[int, Interval(ge=1024, le=1 << 22), Restart,
                           "netflow: follow at most so many sockets of TCP, and so many pairs of a datagram socket "
                           "and its peer, at a time; 780 bytes of kernel memory each, taken from the beginning. What "
                           "is more is lost and counted."
                           ] = 1 << 17
    containers: Annotated[bool, "netflow: tell the container and the cgroup of a flow's process, as the tags "
                                "container_id and cgroup."] = False
    ipv6: Annotated[bool, "Keep flows over IPv6."] = True
    offsets: Annotated[OffsetSources, "Where the offsets of this kernel's fields come from."] = OffsetSources()
    metrics: Annotated[Metrics, "The collector's own numbers."] = Metrics()
    limits: Annotated[Limits, "What the collector may cost. Over a limit it does less, and says so, instead of ending."
                      ] = Limits()
    kubernetes: Annotated[KubernetesOptions, "Pods and services at the ends of flows, from the API server (get, list "
                                             "and watch are all it is asked)."] = KubernetesOptions()
    log: Annotated[Log, "What the collector says on standard error."] = Log()


def seconds(value: Any) -> Any:
    """Seconds of a text with units; whatever is no text is left to whoever checks numbers."""
    if not isinstance(value, str):
        return value
    number = r"(?:\d+(?:\.\d*)?|\.\d+)"
    if re.fullmatch(number, value):
        return float(value)
    if not re.fullmatch(rf"(?:{number}(?:ms|[smh])\s*)+", value):
        raise ValueError("expected seconds, or a time like 90s, 1m30s")
    return sum(float(count) * _UNITS_S[unit] for count, unit in re.findall(rf"({number})(ms|[smh])", value))


def endpoint(text: str) -> tuple[str, int]:
    """The host and the port. Raises ValueError."""
    found = re.fullmatch(r"(?:(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+)?:)?(\d{1,5})", text)
    if not found or not 0 < int(found[2]) <= 0xFFFF:
        raise ValueError("expected HOST:PORT, [HOST]:PORT or PORT")
    return (found[1] or "127.0.0.1").strip("[]"), int(found[2])
