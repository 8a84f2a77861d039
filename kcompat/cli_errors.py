"""How `kcompat` fails: one line on standard error, an exit status that tells the kind, a traceback only for a bug."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import click

from kcompat.cli_output import emit, quiet_pipe
from kcompat.errors import KcompatError
from kcompat.log_lines import RateLimit, json_line, without_secrets
from kcompat.printable import printable


class Commands(click.Group):
    """A group whose commands may raise the errors a user can meet."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        _hold_standard_streams()
        try:
            return super().main(*arguments, **options)
        finally:
            # What is still buffered would fail only when Python is all but gone, and without a word of ours.
            try:
                emit("")
            except BrokenPipeError:
                quiet_pipe()
            except KcompatError as error:
                say(str(error))
                sys.exit(error.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KcompatError as error:
            say(str(error))
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(130)
        except BrokenPipeError:
            quiet_pipe()
            ctx.exit(0)


def _hold_standard_streams() -> None:
    """A closed one stays closed; but no file of ours takes its number, into which a library would write its words."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


class _ToStderr(logging.Handler):
    """Warnings read like everything else kcompat says."""

    as_json = False

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), record.levelname.lower(), record.name)


_HANDLER = _ToStderr()


def say(words: str, level: str = "info", source: str = "kcompat") -> None:
    """One line on standard error, whatever the words hold; without what may be a password."""
    words = without_secrets(" ".join(words.split()))
    click.echo(json_line(words, level, source) if _HANDLER.as_json else f"kcompat: {printable(words)}", err=True)


def log_to_stderr(*, verbose: bool) -> None:
    root = logging.getLogger()
    if _HANDLER not in root.handlers:
        root.addHandler(_HANDLER)
    root.setLevel(logging.WARNING)
    _set_level(logging.DEBUG if verbose else logging.WARNING)


def log_as(form: str, level: str, per_minute: int) -> None:
    """What the configuration says of the log; `--verbose` says more already."""
    _HANDLER.as_json = form == "json"
    _HANDLER.filters = [RateLimit(per_minute)]
    _set_level(min(logging.getLevelName(level.upper()), logging.getLogger("kcompat").level))


def _set_level(level: int) -> None:
    for name in ("kcompat", "guessers", "offset_db", "collector"):
        logging.getLogger(name).setLevel(level)
