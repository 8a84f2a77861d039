"""What every dataset's records hold: each tag and field once, with its type and what it says; and the page about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from collector.pipeline import DATASETS
from collector.sampling import SAMPLING

FLOWS = ("netflow", "httpflow", "dnsflow")
ALL = (*FLOWS, "bash")
_OF = {"netflow": "TCP and UDP: who exchanged how much with whom", "httpflow": "HTTP requests and their responses",
       "dnsflow": "DNS queries and how they were answered", "bash": "lines typed into bash"}


class Said(NamedTuple):
    """One name; `kind` is tag or field, `type` of a tag always text; `optional`: not in every record."""

    name: str
    kind: str
    type: str
    datasets: tuple[str, ...]
    text: str
    optional: bool = False


def _tag(name: str, datasets: tuple[str, ...], text: str, optional: bool = False) -> Said:
    return Said(name, "tag", "text", datasets, text, optional)


def _field(name: str, kind: str, datasets: tuple[str, ...], text: str, optional: bool = False) -> Said:
    return Said(name, "field", kind, datasets, text, optional)


_PROCESSES = ("netflow", "httpflow")
_SIDES = {"src": "the local end", "dst": "the remote end"}
TABLE: tuple[Said, ...] = (
    _tag("host", ALL, "this machine: `host` of the configuration, else its name"),
    _tag("source", ALL, "the dataset"),
    _tag("direction", FLOWS, "incoming: the server is here; outgoing: the client is"),
    _tag("src_ip", FLOWS, "the local end's address; IPv4 mapped into IPv6 is IPv4"),
    _tag("src_port", FLOWS, "the local end's port; `*`: a client's from `ephemeral_port` on, in dnsflow any but 53"),
    _tag("src_ip_type", FLOWS, "private, loopback, multicast or other"),
    _tag("dst_ip", FLOWS, "the remote end's address, as the socket here has it: before it was translated"),
    _tag("dst_port", FLOWS, "the remote end's port, starred likewise"),
    _tag("dst_ip_type", FLOWS, "private, loopback, multicast or other"),
    _tag("transport", FLOWS, "tcp or udp"),
    _tag("family", FLOWS, "IPv4 or IPv6"),
    _tag("pid", _PROCESSES, "the process that had the socket last, as kcompat's namespace numbers it; 0: not known"),
    _tag("process_name", _PROCESSES, "its name; `N/A`: not known"),
    _tag("dst_nat_ip", _PROCESSES, "where the connection tracker sends what is for dst_ip; `N/A`: not translated"),
    _tag("dst_nat_port", _PROCESSES, "its port; `N/A` likewise"),
    _tag("dst_domain", FLOWS, "the name that was last resolved to dst_ip here; else what a client of TLS asked for "
         "(SNI) or the Host header, where httpflow runs", True),
    _tag(SAMPLING, FLOWS, "1/8 or 1/64 while the collector is over a limit: of so many flows one is counted", True),
    _tag("container_id", _PROCESSES, "the container of the process; with `containers`", True),
    _tag("cgroup", _PROCESSES, "the cgroup of the process; with `containers`", True),
    _tag("sub_source", FLOWS, "K8s where an end was found in the cluster; then all of the following are there", True),
    *(_tag(f"{side}_k8s_{what}", FLOWS, f"{words} {end}; `N/A`: not found", True) for side, end in _SIDES.items()
      for what, words in (("namespace", "the Kubernetes namespace of"), ("pod_name", "the pod at"),
                          ("service_name", "the first service, by name, that selects"),
                          ("deployment_name", "the topmost owner, of any kind, of"))),
    _field("bytes_read", "integer, bytes", ("netflow",), "what programs here read; of UDP the payload"),
    _field("bytes_written", "integer, bytes", ("netflow",), "what the kernel took from programs here"),
    _field("retransmits", "integer", ("netflow",), "segments sent again; TCP", True),
    _field("rtt", "integer, us", ("netflow",), "smoothed round trip time, the mean over connections that have one; TCP",
           True),
    _field("rtt_var", "integer, us", ("netflow",), "its deviation, likewise", True),
    _field("tcp_established", "integer", ("netflow",), "connections established; none refused or older", True),
    _field("tcp_closed", "integer", ("netflow",), "connections that ended", True),
    _field("method", "text", ("httpflow",), "GET, POST, ..."),
    _field("path", "text", ("httpflow",), "without its query; `redact`, `http_templates` and `max_paths` act on it"),
    _field("truncated", "boolean", ("httpflow",), "the path was longer than what is captured"),
    _field("status_code", "integer", ("httpflow",), "of the final response"),
    _field("http_version", "text", ("httpflow",), "1.0, 1.1 or 2"),
    _field("grpc_status", "integer", ("httpflow",), "of a gRPC call, from its trailers", True),
    _field("rcode", "integer", ("dnsflow",), "0 to 15, with EDNS more; -1: no answer within 6 seconds, or before "
           "its namespace ended"),
    _field("latency", "integer, ns", ("httpflow", "dnsflow"), "the mean, from the end of the request to the "
           "beginning of the response; 0 where there was none"),
    _field("latency_max", "integer, ns", ("dnsflow",), "the longest"),
    *(_field(f"latency_p{share}", "integer, ns", ("dnsflow",), f"{share} % took no longer, within 1 %; with "
             "`dns_percentiles`", True) for share in (50, 95, 99)),
    _field("count", "integer", ("httpflow", "dnsflow"), "exchanges this record stands for"),
    _field("query_name", "text", ("dnsflow",), "what was asked for; with `dns_queries`", True),
    _field("query_type", "text", ("dnsflow",), "A, AAAA, ...; likewise", True),
    _field("cmd", "text", ("bash",), "the line as it was typed, up to 4096 bytes; `redact` acts on it"),
    _field("user", "text", ("bash",), "the login name, in the root of the process; the number if it has none"),
    _field("pid", "text", ("bash",), "the process"),
    _field("message", "text", ("bash",), "time, pid, user and cmd in one line"),
)


def of(dataset: str) -> tuple[Said, ...]:
    return tuple(one for one in TABLE if dataset in one.datasets)


def as_json() -> Mapping[str, list[dict[str, object]]]:
    return {name: [{"name": one.name, "kind": one.kind, "type": one.type, "optional": one.optional, "text": one.text}
                   for one in of(name)] for name in DATASETS}


def markdown() -> str:
    """docs/datasets.md."""
    return "\n".join(_page())


_INTRODUCTION = """\
# Datasets

Written by `kcompat datasets --markdown`; do not edit.

A record is a measurement (the dataset's name), tags, fields and a time in nanoseconds: that of the flush, in bash that
at which the line was typed. As JSON Lines: `{"measurement": ..., "tags": {...}, "fields": {...}, "time": ...}`. There
is one for each combination of tags in an interval, in httpflow and dnsflow also of the fields that are no sums: those
that differ in fields alone are a nanosecond apart, so that a database keeps them all. Names marked (+) are not in every
record.
"""


def _page() -> Iterator[str]:
    yield _INTRODUCTION
    for dataset in DATASETS:
        words = _OF[dataset]
        yield f"## {dataset}\n\n{words[0].upper()}{words[1:]}.\n"
        yield "| name | | type | what it says |\n| --- | --- | --- | --- |"
        for one in of(dataset):
            yield f"| `{one.name}`{' (+)' if one.optional else ''} | {one.kind} | {one.type} | {one.text} |"
        yield ""
    yield "Labels of pods named in `kubernetes.labels` are tags too: `src_k8s_label_app`, `dst_k8s_label_app`."
    yield "So are `tags` of the configuration, where a record has none of that name.\n"
