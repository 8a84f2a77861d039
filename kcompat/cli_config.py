"""`kcompat config`: a sample of the collector's configuration, and whether a file is a good one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from kcompat.cli_output import emit, to_json


@click.group("config")
def config() -> None:
    """The configuration of `kcompat collect`: what may be set, and whether a file is right.

    A configuration is one TOML file. The environment and the command line override it, key by key.

    \b
    Examples:
      kcompat config sample
      kcompat config check /etc/kcompat/kcompat.toml
    """


@config.command()
def sample() -> None:
    """A configuration file with every key, what it does, and its default.

    \b
    Example:
      kcompat config sample
    """
    from collector.config_keys import sample as written

    emit(written())


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(file: Path, as_json: bool) -> None:
    """Whether FILE is a configuration, with the environment as it is: all that is wrong, each with its line.

    Exits with 1 if something is.

    \b
    Examples:
      kcompat config check /etc/kcompat/kcompat.toml
      kcompat config check /etc/kcompat/kcompat.toml --json
    """
    from collector.config_check import faults

    found = faults(file, os.environ)
    if as_json:
        emit(to_json({"file": str(file), "faults": [fault._asdict() for fault in found]}))
    else:
        emit("".join(f"{fault.where}: {fault.what}\n" for fault in found) or f"{file}: fine\n")
    sys.exit(int(bool(found)))
