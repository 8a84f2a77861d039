"""`kcompat db`: options and help of its commands that bring offsets in and give them out."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kcompat.cli_database_commands import as_json_option, database
from kcompat.cli_output import emit

# The whole group, once this module has added its commands: what cli.py adds to the command line.
__all__ = ["database"]

# Named here too, because `--help` must not import the database; a test holds them together.
FORMATS = ("jsonl", "header", "datadog", "btf")


@database.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@as_json_option
@click.pass_obj
def import_(db: Path | None, files: tuple[Path, ...], as_json: bool) -> None:
    """Take in what others know of kernels. A file is told by its content, and taken whole or not at all.

    FILE may be JSON Lines of `kcompat db export`, a kcompat database, DataDog's constants, a BTF file, a BTFHub
    archive, or a directory of them. Where a file has no build-id, kernels are kept under release, distribution and
    machine: to be looked up and compared, never to answer for a running kernel.

    \b
    Examples:
      kcompat db import constants.json
      kcompat db import btfhub-archive/ubuntu
    """
    from kcompat.cli_database_files import import_all, imported_json, imported_text

    done = import_all(db, files)
    emit(imported_json(done) if as_json else imported_text(done))
    sys.exit(int(any(one.faults for one in done)))


@database.command()
@click.argument("other", type=click.Path(path_type=Path), metavar="OTHER.db")
@as_json_option
@click.pass_obj
def merge(db: Path | None, other: Path, as_json: bool) -> None:
    """Take in another kcompat database. What the two contradict each other on shows in `kcompat db disagreements`.

    \b
    Example:
      kcompat db merge build-server.db
    """
    from kcompat.cli_database_files import imported_json, imported_text, merge_one

    done = (merge_one(db, other),)
    emit(imported_json(done) if as_json else imported_text(done))


@database.command()
@click.argument("kernel", required=False)
@click.option("--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True,
              help="JSON Lines, C #defines, DataDog's constants, or BTF for libbpf's btf_custom_path.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write there, whole or not at all. Default: standard output, but not for BTF.")
@as_json_option
@click.pass_obj
def export(db: Path | None, kernel: str | None, form: str, output: Path | None, as_json: bool) -> None:
    """Give out the database, or one KERNEL of it. The same database gives the same bytes.

    BTF is of one kernel: its structs with their fields, so that CO-RE programs run where the kernel has no BTF.
    Fields on which sources disagree are left out of everything but JSON Lines.

    \b
    Examples:
      kcompat db export -o offsets.jsonl
      kcompat db export --format header 4.15.0-42-generic
      kcompat db export --format btf 4.15.0-42-generic -o small.btf
    """
    from kcompat.cli_database_files import export_to, exported

    if form == "btf" and output is None:
        raise click.BadParameter("BTF is not text: name a file to write", param_hint="-o")
    if as_json and output is None:
        raise click.BadParameter("it tells of the file written: name one with -o", param_hint="--json")
    data = exported(db, form, kernel)
    emit(data if output is None else export_to(output, data, form, as_json=as_json))


@database.command()
@click.argument("url")
@click.option("--sha256", metavar="HEX", help="The checksum the file must have.")
@click.option("--sums", type=click.Path(path_type=Path), metavar="FILE",
              help="A file as sha256sum writes it; the line with the URL's file name counts.")
@click.option("--merge", "merged", is_flag=True, help="Take it in, instead of putting it in the database's place.")
@as_json_option
@click.pass_obj
def pull(db: Path | None, url: str, sha256: str | None, sums: Path | None, merged: bool, as_json: bool) -> None:
    """Fetch a database over https, or from a file, and use it if its checksum is right.

    Run again after an interruption, it goes on where it stopped. The database is replaced at once or not at all.

    \b
    Examples:
      kcompat db pull https://builds.example/offsets.db --sums SHA256SUMS
      kcompat db pull file:///mnt/offsets.db --sums SHA256SUMS --merge
    """
    from kcompat.cli_database_files import imported_json, imported_text, pull_one

    done = (pull_one(db, url, sha256, sums, merged=merged),)
    emit(imported_json(done) if as_json else imported_text(done))


@database.command()
@as_json_option
@click.pass_obj
def vacuum(db: Path | None, as_json: bool) -> None:
    """Make the file as small as what it holds.

    \b
    Example:
      kcompat db vacuum
    """
    from kcompat.cli_database import opened
    from kcompat.cli_output import to_json

    with opened(db) as held:
        before = held.path.stat().st_size
        held.vacuum()
        after = held.path.stat().st_size
    emit(to_json({"before": before, "after": after}) if as_json else f"{before} bytes before, {after} after\n")


@database.command()
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(1, 65535), help="Where to listen.")
@click.pass_obj
def serve(db: Path | None, host: str, port: int) -> None:
    """Show the database as web pages until stopped. Needs Datasette: pip install 'kcompat[serve]'.

    Nothing can be changed there, and raw samples of kernel memory are not shown.

    \b
    Example:
      kcompat db serve --port 8001
    """
    from kcompat.cli_database import opened
    from kcompat.cli_errors import say
    from offset_db.exchange_serve import application, listening, run

    with opened(db) as held:
        path = held.path
    served = application(path)
    with listening(host, port) as listener:
        say(f"http://{f'[{host}]' if ':' in host else host}:{port}/ shows {path}; Ctrl-C ends it")
        run(served, listener)
