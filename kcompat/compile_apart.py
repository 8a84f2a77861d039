"""Compiles in a child process, so that one that lives long never maps LLVM: 100 MB that nothing gives back."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import select
import signal
import time

from kcompat.bpf import Object, compile_source
from kcompat.errors import KcompatError, Missing

log = logging.getLogger(__name__)

_PATIENCE_S = 300.0
_PR_SET_PDEATHSIG = 1
_ERRORS = {"Missing": Missing, "KcompatError": KcompatError}


def compile_apart(source: str, machine: str | None = None) -> Object:
    """As `compile_source`, and with its errors.

    The child is a fork: it has bcc where we have it, and what it captures of clang's words is not ours. A fork has
    only the thread it was made by, so locks that others held stay locked in it: should it wait for one of those, it
    is ended after a while, and we compile ourselves.
    """
    ours, its = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ours)
            _child(its, source, machine)
        finally:
            os._exit(0)
    os.close(its)
    try:
        said = _read(ours)
    finally:
        os.close(ours)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    try:
        kind, words = json.loads(said)
    except ValueError:
        log.warning("the compiler's process ended without a word: compiling in this one")
        return compile_source(source, machine)
    if kind == "object":
        return Object.parse(words)
    raise _ERRORS[kind](words)


def _child(out: int, source: str, machine: str | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        answer = ("object", compile_source(source, machine).dump())
    except KcompatError as error:
        answer = ("Missing" if isinstance(error, Missing) else "KcompatError", str(error))
    with os.fdopen(out, "w") as pipe:
        json.dump(answer, pipe)


def _read(pipe: int) -> bytes:
    """All of it; what there is when the patience ends."""
    said = b""
    end = time.monotonic() + _PATIENCE_S
    while (rest_s := end - time.monotonic()) > 0 and select.select([pipe], [], [], rest_s)[0]:
        part = os.read(pipe, 1 << 16)
        if not part:
            break
        said += part
    return said
