"""The `kcompat` command: composition root, options and exit codes; what each command does is beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kcompat.cli_collect_command import collect, configured, ephemeral_port, options_of
from kcompat.cli_config import config
from kcompat.cli_database_exchange import database
from kcompat.cli_datasets import datasets
from kcompat.cli_errors import Commands, log_to_stderr, say
from kcompat.cli_harvest import harvest
from kcompat.cli_manual import exit_statuses
from kcompat.cli_output import emit
from kcompat.cli_sources import SOURCES, Request
from kcompat.cli_status import status
from kcompat.cli_top import top

if TYPE_CHECKING:
    from guessers.hooks import Backend

F = TypeVar("F", bound=Callable[..., Any])
BACKENDS = ("kprobe", "rawtp")
# Named here too, because `--help` must import neither the collector nor what judges BPF; a test holds them together.
PROGRAMMED = ("netflow", "httpflow", "bash", "nf_conn")
MACHINES = ("x86_64", "aarch64")
DIALECTS = ("4.4", "4.9", "4.14", "4.19", "5.4", "5.10", "current")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=exit_statuses())
@click.option("--db", "db_path", type=click.Path(path_type=Path), metavar="PATH",
              help="Where offsets are remembered. Default: /var/lib/kcompat/offsets.db for root, else in "
                   "$XDG_DATA_HOME/kcompat.")
@click.option("-v", "--verbose", is_flag=True, help="Say more on standard error.")
@click.version_option(package_name="kcompat", message="%(package)s %(version)s")
@click.pass_context
def main(ctx: click.Context, db_path: Path | None, verbose: bool) -> None:
    """Find where kernel struct fields lie, with BTF or without, and collect network flows with them.

    \b
    Examples:
      kcompat info
      kcompat resolve
      sudo kcompat guess
      sudo kcompat collect --interval 10
    """
    ctx.obj = db_path
    log_to_stderr(verbose=verbose)


main.add_command(database)


def _as_json(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def _sources(command: F) -> F:
    command = click.option(
        "--vmlinux", type=click.Path(path_type=Path), metavar="FILE",
        help="A vmlinux, or a BTF file, to read offsets from.")(command)
    return click.option(
        "--source", type=click.Choice(SOURCES), default="auto", show_default=True,
        help="Where offsets come from; auto asks the database (verified by one event), BTF, DWARF (with "
             "--vmlinux), then guesses.")(command)


@main.command()
@_as_json
@click.pass_obj
def info(db: Path | None, as_json: bool) -> None:
    """Which kernel this is, what it can do, and which sources of offsets there are.

    What is missing comes with the way to get it. Nothing is changed, and nothing is needed: not even root,
    which only makes more of the answers certain.

    \b
    Example:
      kcompat info
    """
    from kcompat.cli_info import info_json, info_text, look

    found = look(db)
    emit(info_json(found) if as_json else info_text(found))


@main.command()
@_sources
@_as_json
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE",
              help="Remember where a collector with this configuration looks, and ask its vmlinux; flags override it.")
@click.option("--quiet", is_flag=True, help="Print nothing: what is learnt is remembered, the exit status tells.")
@click.option("--no-record", is_flag=True, help="Do not remember what was learnt.")
@click.option("--kernel-release", "release", metavar="RELEASE",
              help="Another kernel, by its release: what the database holds of it, imports included, unverified.")
@click.option("--distribution", metavar="NAME", help="Whose RELEASE, like ubuntu or ubuntu-18.04. Default: anybody's.")
@click.option("--arch", metavar="ARCH", help="Its machine. Default: this one's.")
@click.argument("fields", nargs=-1, metavar="[FIELD]...")
@click.pass_context
def resolve(ctx: click.Context, source: str, vmlinux: Path | None, as_json: bool, file: Path | None, quiet: bool,
            no_record: bool, release: str | None, distribution: str | None, arch: str | None,
            fields: tuple[str, ...]) -> None:
    """The offsets of FIELDs, or of every field of the catalogue, from the best source there is.

    FIELD is a name like sock_common.skc_dport, or skc_dport where that is unique. With --vmlinux the answer is
    for that file's kernel, with --kernel-release for one that is known only by its name: where its builds differ, a
    field stays unknown. Exits with 1 if one does.

    \b
    Examples:
      kcompat resolve
      kcompat resolve --source btf sock_common.skc_dport srtt_us
      kcompat resolve --vmlinux /usr/lib/debug/boot/vmlinux-6.1.0-40-amd64 --json
      kcompat resolve --kernel-release 4.15.0-42-generic --distribution ubuntu
    """
    from kcompat.cli_output import offsets_json, offsets_table
    from kcompat.cli_sources import answer, answer_by_name
    from kcompat.fields import CATALOGUE, find

    if quiet and as_json:
        raise click.UsageError("--quiet prints nothing: no --json")
    db: Path | None = ctx.obj
    as_collected = file is not None and vmlinux is None
    if file:
        theirs = options_of(ctx, file, (), {})().offsets
        db, vmlinux = db or theirs.db, vmlinux or theirs.vmlinux
    wanted = tuple(dict.fromkeys(find(name) for name in fields)) or CATALOGUE
    if release is None:
        if distribution or arch:
            raise click.UsageError("--distribution and --arch say more of a --kernel-release: give that too")
        got = answer(Request(source, vmlinux, db, record=not no_record, running_only=as_collected), wanted)
    else:
        from offset_db.by_release import Name
        from offset_db.exchange_names import MACHINES

        if vmlinux or source not in ("auto", "db"):
            raise click.UsageError("--kernel-release asks the database alone: no --vmlinux, no other --source")
        machine = arch or os.uname().machine
        got = answer_by_name(db, Name(release, MACHINES.get(machine, machine), distribution), wanted)
    if not quiet:
        emit(offsets_json(got) if as_json else offsets_table(got))
        say(got.origin)
    sys.exit(got.exit_code)


@main.command()
@_as_json
@click.option("--explain", "explained", metavar="FIELD", help="Show the evidence for one field.")
@click.option("--backend", type=click.Choice(BACKENDS), help="Use these hooks only. Default: what works.")
@click.option("--no-record", is_flag=True, help="Do not remember what was found.")
@click.option("--record", "recorded", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Save all that the guess is drawn from: memory of kcompat's own sockets, threads and packets.")
@click.option("--mask-pointers", "mask", is_flag=True, help="With --record: no kernel address in FILE, but pseudonyms.")
@click.option("--replay", "replay_from", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Guess again from such a file: without root, on any machine.")
@click.pass_obj
def guess(db: Path | None, as_json: bool, explained: str | None, backend: Backend | None, no_record: bool,
          recorded: Path | None, mask: bool, replay_from: Path | None) -> None:
    """Find every offset of the running kernel by experiment. Needs root; BTF is never consulted.

    kcompat makes connections to itself in a private network namespace, looks for what it knows of them in
    kernel memory, and keeps only what every sample confirms. Exits with 1 if a field stays unknown.

    A guess can be recorded, for a bug report say, and made again elsewhere with the same verdicts and evidence.
    What is replayed is not remembered.

    \b
    Examples:
      sudo kcompat guess
      sudo kcompat guess --explain srtt_us
      sudo kcompat guess --backend kprobe --json
      sudo kcompat guess --record here.guess --mask-pointers
      kcompat guess --replay here.guess --explain srtt_us
    """
    from kcompat.cli_output import explain_json, explain_text, offsets_json, offsets_table
    from kcompat.cli_recording import record, replayed
    from kcompat.cli_sources import answer
    from kcompat.fields import CATALOGUE, find

    if replay_from and (recorded or backend):
        raise click.UsageError("--replay takes what was seen from its file: no --record, no --backend")
    if mask and not recorded:
        raise click.UsageError("--mask-pointers says how to --record: give that too")
    field = find(explained) if explained else None
    if replay_from:
        got = replayed(replay_from)
    else:
        got = answer(Request("guess", None, db, backend, record=not no_record), CATALOGUE)
    if field:
        emit(explain_json(got.only(field)) if as_json else explain_text(got.only(field)))
    else:
        emit(offsets_json(got) if as_json else offsets_table(got))
    if recorded and got.guess:
        say(record(recorded, got.guess, mask=mask))
    say(got.origin)
    sys.exit(got.only(field).exit_code if field else got.exit_code)


main.add_command(harvest)


@main.command()
@click.argument("dataset", type=click.Choice(PROGRAMMED))
@click.option("--dialect", type=click.Choice(DIALECTS), help="Judge every program by what that kernel takes of BPF.")
@_sources
@click.pass_obj
def render(db: Path | None, dataset: str, dialect: str | None, source: str, vmlinux: Path | None) -> None:
    """The BPF C of DATASET as it would be compiled here, with the offsets of this kernel.

    nf_conn is what netflow and httpflow have in common: it tells where connections really go.

    With --dialect, which compiles and so needs root, it begins with a comment on each program: its size in that
    kernel, or why it would not load there. Exits with 1 if a probe's program would not: then that kernel has no such
    dataset.

    \b
    Examples:
      sudo kcompat render netflow
      kcompat render netflow --source btf
      sudo kcompat render netflow --source btf --dialect 4.4
    """
    from kcompat.cli_render import rendered, rendered_for

    text = rendered(dataset, Request(source, vmlinux, db, running_only=True), os.uname().nodename)
    fits = True
    if dialect:
        text, fits = rendered_for(dialect, text)
    emit(text)
    sys.exit(0 if fits else 1)


@main.command("compile")
@click.option("--machine", type=click.Choice(MACHINES), help="For this machine type. Default: the one we run on.")
@configured
@ephemeral_port
@_as_json
@click.pass_context
def compile_ahead(ctx: click.Context, /, machine: str | None, as_json: bool, file: Path | None,
                  assignments: tuple[str, ...], **by_key: Any) -> None:
    """Compile what guess and collect load, before it is needed: also for kernels that run elsewhere. Needs root.

    The guess's and bash's programs are one for all kernels of a machine type. netflow's is compiled for each kernel in
    the database, and kernels whose fields lie at the same places share it. The objects go to $KCOMPAT_CACHE/bpf, and a
    machine that has them there, owned by who runs kcompat, needs neither bcc nor LLVM. Exits with 1 if the database
    does not know enough of a kernel.

    max_sockets, max_flows and ephemeral_port are in the programs: give here what `kcompat collect` is given there,
    once for each of the configurations there are.

    \b
    Examples:
      sudo kcompat compile
      sudo kcompat compile --machine aarch64
      sudo kcompat compile --config /etc/kcompat/kcompat.toml
      sudo kcompat compile --set max_sockets=20000 --ephemeral-port 49152
      sudo kcompat compile --json
    """
    from kcompat.cli_compile import compile_all, programs_json, programs_text

    options = options_of(ctx, file, assignments, by_key)()
    programs = compile_all(ctx.obj or options.offsets.db, machine, options)
    emit(programs_json(programs) if as_json else programs_text(programs))
    sys.exit(int(any(p.reason for p in programs)))


main.add_command(config)
main.add_command(collect)
main.add_command(datasets)
main.add_command(status)
main.add_command(top)
