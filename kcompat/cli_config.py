"""`kcompat config`: a sample of the collector's configuration, and whether a file is a good one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from kcompat.cli_output import emit


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
def check(file: Path) -> None:
    """Whether FILE is a configuration, with the environment as it is: all that is wrong, each with its line.

    Exits with 1 if something is.

    \b
    Example:
      kcompat config check /etc/kcompat/kcompat.toml
    """
    from collector.config_check import exposure, judge
    from collector.config_reading import BadConfig, read

    try:
        read(file, os.environ, judge=judge)
    except BadConfig as error:
        emit("".join(f"{fault.where}: {fault.what}\n" for fault in error.faults))
        sys.exit(1)
    if danger := exposure(file):
        emit(f"{file}: {danger}\n")
        sys.exit(1)
    emit(f"{file}: fine\n")
