"""What there is to know of every command at once, for `--help` and for man pages; and these pages, of their help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

EXIT_STATUS = (
    ("0", "fine; also when a reader of the output leaves early"),
    ("1", "something asked for could not be answered: a field, a file"),
    ("2", "usage, or something is missing on this machine: root, bcc, tracefs"),
    ("3", "this kernel cannot do it, or forbids it"),
    ("4", "a collector is there, and only root may ask it"),
    ("130", "interrupted with Ctrl-C"),
)
FILES = (
    ("/var/lib/kcompat/offsets.db", "what root remembers of kernels; --db names another file"),
    ("$XDG_DATA_HOME/kcompat/offsets.db", "what anybody else does; without XDG_DATA_HOME in ~/.local/share"),
    ("/var/cache/kcompat", "compiled BPF objects, safe to delete; of anybody but root in $XDG_CACHE_HOME/kcompat"),
    ("/run/kcompat", "the lock and the socket of root's collector, of anybody else's in $XDG_RUNTIME_DIR/kcompat"),
    ("/var/lib/kcompat/spool", "records that wait on disk, of outputs that are told to keep them there"),
    ("/etc/kcompat/kcompat.toml", "the configuration of the service"),
)
ENVIRONMENT = (
    ("KCOMPAT_CACHE", "where compiled BPF objects are kept"),
    ("KCOMPAT_RUN", "where the collector has its lock and socket; another place lets a second one run"),
    ("KCOMPAT_SPOOL", "where records wait on disk"),
    ("KCOMPAT_COLLECT_KEY", "a key of the configuration, over the file and under the flags: "
                            "KCOMPAT_COLLECT_INTERVAL_S=10, KCOMPAT_COLLECT_OFFSETS__SOURCE=btf"),
    ("XDG_DATA_HOME, XDG_CACHE_HOME, XDG_RUNTIME_DIR", "as in FILES"),
    ("KUBECONFIG", "which API server, with kubernetes.enabled = \"on\""),
    ("NO_COLOR", "no colours on a terminal either"),
)


def exit_statuses() -> str:
    """For the end of `kcompat --help`."""
    return "\b\nExit status:\n" + "\n".join(f"  {code:<5}{what}" for code, what in EXIT_STATUS)


def write_man_pages(main: click.Group, directory: Path, version: str, date: str) -> None:
    """A page of every command, by click-man, which knows the syntax; what it leaves out or cuts is from here."""
    for context in _contexts(click.Context(main, info_name="kcompat")):
        page = directory / f"{_page(context)}.1"
        page.write_text(_manual(context, version, date))


def _contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name, command in context.command.commands.items():
            yield from _contexts(click.Context(command, info_name=name, parent=context))


def _page(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _manual(context: click.Context, version: str, date: str) -> str:
    from click_man.man import ManPage

    command = context.command
    page = ManPage(context.command_path)
    page.version, page.date, page.short_help = version, date, _in_short(command)
    page.synopsis = " ".join(command.collect_usage_pieces(context))
    page.description = "\n\n".join(map(_paragraph, cleandoc(command.help or "").split("\n\n")))
    page.options = [(names, _escaped(what)) for parameter in command.params if isinstance(parameter, click.Option)
                    for names, what in filter(None, [parameter.get_help_record(context)])]
    below = command.commands if isinstance(command, click.Group) else {}
    page.commands = [(name, _in_short(one)) for name, one in below.items()]
    others = [_page(context.parent)] if context.parent else []
    others += [f"{_page(context)}-{name}" for name in below]
    see = ",\n".join(rf"\fB{_escaped(name)}\fP(1)" for name in sorted(others))
    return str(page) + "".join((_table("EXIT STATUS", EXIT_STATUS), _table("FILES", FILES),
                                _table("ENVIRONMENT", ENVIRONMENT),
                                f".SH SEE ALSO\n{see}\n"))


def _in_short(command: click.Command) -> str:
    """The first sentence of its help, whole."""
    return _escaped((command.help or "").partition("\n")[0].partition(". ")[0].removesuffix("."))


def _paragraph(text: str) -> str:
    """Of click's help: behind a backspace lines stay as they are."""
    if text.startswith("\b\n"):
        return f".nf\n{_escaped(text[2:])}\n.fi"
    return _escaped(text)


def _table(heading: str, rows: tuple[tuple[str, str], ...]) -> str:
    return f".SH {heading}\n" + "".join(f".TP\n.B {_escaped(name)}\n{_escaped(what)}\n" for name, what in rows)


def _escaped(text: str) -> str:
    r"""For roff: a backslash is none of its own, a hyphen is to be copied, and a line that begins so is no request."""
    return re.sub(r"(?m)^([.'])", r"\\&\1", text.replace("\\", r"\e").replace("-", r"\-"))
