"""How `kcompat` fails: one line on standard error, an exit status that tells the kind, a traceback only for a bug."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from kcompat.cli_output import emit, quiet_pipe
from kcompat.errors import KcompatError


class Commands(click.Group):
    """A group whose commands may raise the errors a user can meet."""

    def main(self, *arguments: Any, **options: Any) -> Any:
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


class _ToStderr(logging.Handler):
    """Warnings read like everything else kcompat says."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def say(words: str) -> None:
    """One line on standard error, whatever the words hold."""
    click.echo(f"kcompat: {' '.join(words.split())}", err=True)


def log_to_stderr(*, verbose: bool) -> None:
    root = logging.getLogger()
    if not any(isinstance(handler, _ToStderr) for handler in root.handlers):
        root.addHandler(_ToStderr())
    root.setLevel(logging.WARNING)
    for name in ("kcompat", "guessers", "offset_db", "collector"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.WARNING)
