"""Which functions of a TLS library are hooked, with which programs, and where in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from kcompat import probe_sites
from kcompat.elf import Elf
from kcompat.symbols import Function, exported_functions

RETURN = "uretprobe__tls"
# What has to be read of a function of which nothing else is known.
_BEGINNING = 64
# Whoever makes a container makes its libraries, and says how long their functions are, and how many tables lead
# elsewhere: a linker makes three.
_LONGEST = 1 << 12
# What only wraps another is short, of OpenSSL 131 bytes, and reading it may take as long as the square of its length.
_LONGEST_WRAPPER = 512
_MOST_TABLES = 16


class _Call(NamedTuple):
    """The program at a function's beginning, the arguments it reads (from 1), and whether RETURN is at its end."""

    program: str
    arguments: tuple[int, ...]
    has_return: bool = True


FUNCTIONS = {
    "SSL_write": _Call("uprobe__tls_write", (1, 2)), "SSL_write_ex": _Call("uprobe__tls_write_ex", (1, 2, 4)),
    "SSL_write_ex2": _Call("uprobe__tls_write_flags", (1, 2, 5)),
    "SSL_read": _Call("uprobe__tls_read", (1, 2)), "SSL_read_ex": _Call("uprobe__tls_read_ex", (1, 2, 4)),
    "SSL_do_handshake": _Call("uprobe__tls_handshake", (1,)), "SSL_free": _Call("uprobe__tls_free", (1,), False),
    "gnutls_record_send": _Call("uprobe__tls_write", (1, 2)), "gnutls_record_recv": _Call("uprobe__tls_read", (1, 2)),
    "gnutls_deinit": _Call("uprobe__tls_free", (1,), False),
}
# By what a function wraps, and which argument of that tells where the count is put: ssl_write_internal and
# ssl_read_internal of OpenSSL (1.1.1 on; from 3.3 on flags stand before it when it writes).
_INNER = {
    ("SSL_write", 4): _Call("uprobe__tls_write_ex", (1, 2, 4)),
    ("SSL_write", 5): _Call("uprobe__tls_write_flags", (1, 2, 5)),
    ("SSL_read", 4): _Call("uprobe__tls_read_ex", (1, 2, 4)),
}
# Without any of these it is no TLS library.
_ESSENTIAL = frozenset(("SSL_write", "gnutls_record_send"))
PROGRAMS = frozenset((RETURN, *(call.program for call in (*FUNCTIONS.values(), *_INNER.values()))))


class Hook(NamedTuple):
    """Programs at one place of a file, in the order in which to attach them, and the functions they see."""

    at: int
    programs: tuple[str, ...]
    functions: tuple[str, ...]


def hooks_in(elf: Elf) -> list[Hook]:
    """Nothing where it is no TLS library. Raises BadInput when the file is not what its headers say."""
    functions = exported_functions(elf, FUNCTIONS)
    if not _ESSENTIAL & functions.keys():
        return []
    # BoringSSL shakes hands from within SSL_read: of two calls in one another only the inner is known.
    if "SSL_write_ex" not in functions:
        functions.pop("SSL_do_handshake", None)
    hooks = list(_inner_hooks(elf, functions)) if elf.machine == probe_sites.MACHINE else []
    seen = {name for hook in hooks for name in hook.functions}
    return hooks + [_hook(_cheapest(elf, functions[name], call), call, (name,))
                    for name, call in FUNCTIONS.items() if name in functions and name not in seen]


def _inner_hooks(elf: Elf, functions: dict[str, Function]) -> Iterator[Hook]:
    """One hook where several functions have the same other do their work, if it costs less there."""
    is_elsewhere = _linkage(elf)
    for name in ("SSL_write", "SSL_read"):
        if name not in functions or functions[name].size > _LONGEST_WRAPPER:
            continue
        found = probe_sites.inner(_code(elf, functions[name]), functions[name].at, is_elsewhere)
        call = found and _INNER.get((name, found.count_argument))
        if not found or not call or not 0 <= found.at < len(elf.data):
            continue
        at = probe_sites.nearest(_code(elf, Function(found.at, 0)), found.at, call.arguments)
        if at is None:
            continue
        same = [other for other in (f"{name}_ex", f"{name}_ex2")
                if other in functions and functions[other].size <= _LONGEST_WRAPPER
                and probe_sites.leaves(_code(elf, functions[other]), functions[other].at) == {found.at}]
        yield _hook(at, call, (name, *same))


def _hook(at: int, call: _Call, functions: tuple[str, ...]) -> Hook:
    # The end first: no beginning is left waiting for it.
    return Hook(at, (RETURN, call.program) if call.has_return else (call.program,), functions)


def _cheapest(elf: Elf, function: Function, call: _Call) -> int:
    if elf.machine != probe_sites.MACHINE or function.size > _LONGEST:
        return function.at
    near = probe_sites.nearest(_code(elf, function), function.at, call.arguments)
    return function.at if near is None else near


def _code(elf: Elf, function: Function) -> bytes:
    return elf.data[function.at:function.at + (function.size or _BEGINNING)]


def _linkage(elf: Elf) -> Callable[[int], bool]:
    """Whether a place in the file is where calls to other files go through."""
    tables = [range(s.offset, s.offset + s.size) for s in elf.sections if s.name.startswith(".plt")][:_MOST_TABLES]
    return lambda at: any(at in table for table in tables)
