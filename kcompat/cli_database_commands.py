"""`kcompat db`: options and help of its commands that ask; those that bring in and give out are beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kcompat.cli_output import emit

F = TypeVar("F", bound=Callable[..., Any])
STATES = ("known", "absent", "unknown")


def as_json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


@click.group("db")
def database() -> None:
    """Look into the database of remembered offsets, fill it from files, and give it to others.

    \b
    Examples:
      kcompat db kernels --release '4.15.*'
      kcompat db show 5.10.0-32-amd64
      kcompat db history skc_net
      kcompat db import constants.json
      kcompat db export --format btf 4.19.0-27-amd64 -o small.btf
    """


@database.command()
@click.argument("kernel", required=False)
@as_json_option
@click.pass_obj
def show(db: Path | None, kernel: str | None, as_json: bool) -> None:
    """The kernels remembered; with KERNEL (a build-id, or a release) every answer held for it.

    \b
    Examples:
      kcompat db show
      kcompat db show 5.10.0-32-amd64
      kcompat db show --json
    """
    from kcompat.cli_database import show_json, show_text, shown

    found = shown(db, kernel)
    emit(show_json(found) if as_json else show_text(found, fields=kernel is not None))


@database.command()
@as_json_option
@click.pass_obj
def disagreements(db: Path | None, as_json: bool) -> None:
    """Fields that two sources place differently. kcompat loads nothing that needs one of them.

    \b
    Example:
      kcompat db disagreements
    """
    from kcompat.cli_database import disagreements_json, disagreements_text, disputed

    found = disputed(db)
    emit(disagreements_json(found) if as_json else disagreements_text(found))


@database.command()
@click.option("--release", default="*", metavar="GLOB", help="Only releases that match, as 4.15.* or *-amd64.")
@click.option("--arch", metavar="NAME", help="Only this machine: aarch64 or arm64, x86_64 or amd64, ...")
@click.option("--distribution", metavar="NAME", help="Only this one: ubuntu, or ubuntu-18.04 where that is known.")
@click.option("--field", "name", metavar="FIELD", help="Only kernels where this field is known, or in --state.")
@click.option("--state", type=click.Choice(STATES), help="What is known of --field. Default: known.")
@as_json_option
@click.pass_obj
def kernels(db: Path | None, release: str, arch: str | None, distribution: str | None, name: str | None,
            state: str | None, as_json: bool) -> None:
    """The kernels remembered, ordered by version, with how many fields are known of each.

    \b
    Examples:
      kcompat db kernels --release 4.15.* --arch x86_64
      kcompat db kernels --field skc_cookie --state absent
    """
    from kcompat.cli_database import opened
    from kcompat.cli_database_tables import kernels_json, kernels_text
    from kcompat.fields import find
    from kcompat.offsets import State
    from offset_db import queries
    from offset_db.exchange_names import MACHINES

    if state and not name:
        raise click.BadParameter("it is the state of a field: give --field too", param_hint="--state")
    wanted = queries.Filter(release, MACHINES.get(arch, arch) if arch else None, distribution,
                            find(name) if name else None, State(state or "known"))
    with opened(db) as held:
        found = queries.kernels(held, wanted)
    emit(kernels_json(found) if as_json else kernels_text(found))


@database.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@as_json_option
@click.pass_obj
def diff(db: Path | None, before: str, after: str, as_json: bool) -> None:
    """The fields that lie elsewhere in kernel B than in kernel A, or of which only one of them tells.

    A and B are build-ids, their beginnings, or releases that only one kernel has.

    \b
    Example:
      kcompat db diff 4.15.0-42-generic 4.19.0-27-amd64
    """
    from kcompat.cli_database import opened
    from kcompat.cli_database_tables import diff_json, diff_text
    from offset_db import queries

    with opened(db) as held:
        old, new = (queries.one(held, name) for name in (before, after))
    found = queries.diff(old, new)
    emit(diff_json(old.kernel, new.kernel, found) if as_json else diff_text(old.kernel, new.kernel, found))


@database.command()
@click.argument("condition", metavar="FIELD=VALUE")
@as_json_option
@click.pass_obj
def where(db: Path | None, condition: str, as_json: bool) -> None:
    """The kernels in which FIELD lies at VALUE: an offset in bytes, "536 bit 3", or absent.

    \b
    Examples:
      kcompat db where skc_net=48
      kcompat db where skc_cookie=absent
    """
    from kcompat.cli_database import opened
    from kcompat.cli_database_tables import where_json, where_text
    from kcompat.fields import find
    from offset_db import queries

    name, separator, value = condition.partition("=")
    if not separator:
        raise click.BadParameter(f"{condition!r} is not FIELD=VALUE", param_hint="FIELD=VALUE")
    field = find(name.strip())
    try:
        place = queries.place_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="FIELD=VALUE") from error
    with opened(db) as held:
        found = queries.where(held, field, place)
    emit(where_json(field, found) if as_json else where_text(found))


@database.command()
@click.argument("name", metavar="FIELD")
@as_json_option
@click.pass_obj
def history(db: Path | None, name: str, as_json: bool) -> None:
    """How FIELD moved from version to version, as a chart.

    \b
    Examples:
      kcompat db history skc_net
      kcompat db history flowi4.saddr --json
    """
    from kcompat.cli_database import opened
    from kcompat.cli_database_tables import history_json, history_text
    from kcompat.fields import find
    from offset_db import queries

    field = find(name)
    with opened(db) as held:
        steps = queries.history(held, field)
    emit(history_json(field, steps) if as_json else history_text(field, steps))


@database.command()
@as_json_option
@click.pass_obj
def verify(db: Path | None, as_json: bool) -> None:
    """Look for damage in the file, and for layouts that no kernel can have. Exits with 1 if there are any.

    Offsets must lie in their struct's reach, widths be those of the field, no two fields of one object overlap, and
    the fields of tcp_sock lie behind those of inet_sock, sock and sock_common.

    \b
    Example:
      kcompat db verify
    """
    from kcompat.cli_database import opened
    from kcompat.cli_database_tables import faults_json, faults_text
    from offset_db.queries_verify import verify as faults

    # Read-only: looking for damage must not move the damaged file aside.
    with opened(db, read_only=True) as held:
        found = faults(held)
    emit(faults_json(found) if as_json else faults_text(found))
    sys.exit(int(bool(found)))
