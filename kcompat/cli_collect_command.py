"""The options of `kcompat collect`: each sets a key of the configuration, named as its parameter is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from kcompat.cli_sources import SOURCES, Request
from kcompat.errors import KcompatError

if TYPE_CHECKING:
    from collector.config import Options
    from collector.config_reading import Given

# What DataKit calls the parts of its eBPF collector, and the datasets they are. NAT is part of netflow here.
ENABLED = {"ebpf-net": ("netflow", "httpflow", "dnsflow"), "ebpf-bash": ("bash",), "ebpf-conntrack": ()}
_DATAKIT_OUTPUT = "datakit://{}"
F = TypeVar("F", bound=Callable[..., Any])


def _key(key: str, *flags: str, **settings: Any) -> Callable[[Any], Any]:
    """An option that sets `key`; absent unless given, so that a file's value stands."""
    return click.option(*flags, key.replace(".", "__"), default=settings.pop("default", None), **settings)


def configured(command: F) -> F:
    """The options that set any key there is; `options_of` reads them."""
    command = click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE",
                           help="Any key of the configuration. May be repeated.")(command)
    return click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE",
                        help="What to collect and how; `kcompat config sample` shows all keys. Flags override it."
                        )(command)


ephemeral_port = _key("ephemeral_port", "--ephemeral-port", "--ephemeral_port", metavar="PORT",
                      help="Client ports from here on are reported as *.  [default: 32768]")


@click.command()
@configured
@_key("datasets", "--datasets", metavar="NAMES", help="What to collect, with commas.  [default: netflow]")
@_key("interval_s", "--interval", metavar="SECONDS", help="Time between points, also as 90s or 2m.  [default: 60]")
@click.option("--duration", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Stop after that time. Default: run until stopped.")
@click.option("--keep-trying", is_flag=True,
              help="Go on where no dataset can run, and try again from time to time: for services.")
@_key("outputs", "--output", multiple=True, metavar="SINK",
      help="table, jsonl:PATH, lineproto:PATH (PATH - is standard output), datakit://HOST:PORT, influxdb://, "
           "influxdb2://, victoriametrics://, nats://, kafka://, otlp:// or a URL that takes line protocol; "
           "?KEY=VALUE&... sets keys of the sink. May be repeated. "
           " [default: table]")
@_key("loopback", "--loopback/--no-loopback", help="Keep flows of the loopback interface.")
@_key("exclude", "--exclude", multiple=True, metavar="RULE",
      help="Leave out flows: cidr=NETWORK, port=NUMBER, process=NAME, direction=incoming|outgoing. May be repeated.")
@ephemeral_port
@_key("dns_queries", "--dns-queries/--no-dns-queries", help="dnsflow: tell names and types of queries apart.")
@_key("http_templates", "--http-templates/--no-http-templates",
      help="httpflow: numbers and other ids in paths become {id}.")
@_key("dns_percentiles", "--dns-percentiles/--no-dns-percentiles",
      help="dnsflow: add the latency's median, 95th and 99th percentile.")
@_key("host", "--hostname", metavar="NAME", help="The host tag. Default: this machine's name.")
@_key("tags", "--tags", metavar="TAGS", help="Tags of every record: NAME=VALUE, with commas.")
@click.option("--ipv6-disabled", "no_ipv6", type=bool, is_flag=False, flag_value="true",
              help="Leave out flows over IPv6; `--ipv6-disabled true` as DataKit says it, too.")
@click.option("--enabled", metavar="PARTS",
              help="The datasets by DataKit's names, with commas: ebpf-net, ebpf-bash, ebpf-conntrack.")
@click.option("--datakit-apiserver", "datakit", metavar="HOST:PORT",
              help="Send records to this DataKit, besides each --output.")
@_key("offsets.vmlinux", "--vmlinux", type=click.Path(path_type=Path), metavar="FILE",
      help="A vmlinux, or a BTF file, to read offsets from.")
@_key("offsets.source", "--source", type=click.Choice(SOURCES),
      help="Where offsets come from; auto asks the database (verified by one event), BTF, DWARF (with --vmlinux), "
           "then guesses.  [default: auto]")
@click.pass_context
def collect(ctx: click.Context, /, file: Path | None, assignments: tuple[str, ...], duration: float | None,
            keep_trying: bool, no_ipv6: bool | None, enabled: str | None, datakit: str | None, **by_key: Any) -> None:
    """Collect what processes do on the network, and people in bash, until stopped. Needs root.

    netflow is TCP and UDP flows, httpflow is HTTP requests and their responses, dnsflow is DNS queries and how they
    were answered, which also gives the other two's addresses their names, bash is what people type.

    SIGTERM ends it with a last flush and exit status 0, Ctrl-C with a last flush and 130.

    \b
    Examples:
      sudo kcompat collect --interval 10
      sudo kcompat collect --config /etc/kcompat/kcompat.toml
      sudo kcompat collect --datasets netflow,dnsflow
      sudo kcompat collect --datasets bash --interval 5 --output jsonl:-
      sudo kcompat collect --output jsonl:/var/log/kcompat/flows.jsonl
      sudo kcompat collect --output datakit://127.0.0.1:9529
      sudo kcompat collect --output 'influxdb://127.0.0.1:8086?database=flows'
      sudo kcompat collect --exclude port=22 --exclude cidr=10.0.0.0/8
    """
    from kcompat.cli_collect import run

    again = options_of(ctx, file, assignments, by_key, lambda given: _of_datakit(enabled, datakit, no_ipv6, given))
    options = again()
    sources = options.offsets
    request = Request(sources.source, sources.vmlinux, ctx.obj or sources.db, running_only=True)
    sys.exit(run(request, options, duration=duration, again=again, keep_trying=keep_trying))


def options_of(ctx: click.Context, file: Path | None, assignments: tuple[str, ...], by_key: Mapping[str, Any],
               more: Callable[[list[Given]], list[Given]] = lambda _: []) -> Callable[[], Options]:
    """Reads the options, whenever it is called: of the file and the environment, over them what is on the command line.

    `by_key` has what options made by `_key` were given, `more` what others mean, besides those.
    """
    from collector.config_check import exposure, judge
    from collector.config_reading import Given, assignment, read

    flags = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    given = [Given(flags[name], name.replace("__", "."), list(value) if isinstance(value, tuple) else value)
             for name, value in by_key.items() if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
    given += [assignment(words) for words in assignments]
    given += more(given)
    environment = dict(os.environ)

    def read_again() -> Options:
        if file and file.exists() and (danger := exposure(file)):
            raise KcompatError(f"{file}: {danger}")
        return read(file, environment, given, judge)

    return read_again


def _of_datakit(enabled: str | None, apiserver: str | None, no_ipv6: bool | None, given: list[Given]) -> list[Given]:
    """What DataKit's own command line for an external input means in ours."""
    from collector.config_reading import BadConfig, Fault, Given

    made = []
    if enabled is not None:
        parts = [part.strip() for part in enabled.split(",") if part.strip()]
        if unknown := [part for part in parts if part not in ENABLED]:
            raise BadConfig([Fault("--enabled", f"kcompat has no {unknown[0]!r}: only {', '.join(ENABLED)}")])
        names = [name for part in parts for name in ENABLED[part]]
        if not names:
            raise BadConfig([Fault("--enabled", f"{enabled!r} names no dataset")])
        made.append(Given("--enabled", "datasets", names))
    if apiserver is not None:
        outputs: list[str] = next((one.value for one in given if one.key == "outputs"), [])
        made.append(Given("--datakit-apiserver", "outputs", [*dict.fromkeys(
            (*outputs, _DATAKIT_OUTPUT.format(apiserver)))]))
    if no_ipv6 is not None:
        made.append(Given("--ipv6-disabled", "ipv6", not no_ipv6))
    return made
