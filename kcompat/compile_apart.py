"""Compiles in a child process, so that one that lives long never maps LLVM: 100 MB that nothing gives back."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import tempfile
import time
from typing import IO

from kcompat.bpf import Object, compile_source, first_error
from kcompat.errors import KcompatError, Missing
from kcompat.open_files import readable

log = logging.getLogger(__name__)

# Less than whoever waits for us is told that we are at work (collector.patience): compiling ourselves is in it too.
_PATIENCE_S = 200.0
_PR_SET_PDEATHSIG = 1
_ERRORS = {"Missing": Missing, "KcompatError": KcompatError}


def compile_apart(source: str, machine: str | None = None) -> Object:
    """As `compile_source`, and with its errors.

    The child is a fork: it has bcc where we have it, and what it captures of clang's words is not ours. A fork has
    only the thread it was made by, so locks that others held stay locked in it: should it wait for one of those, it
    is ended after a while, and we compile ourselves. LLVM ends its process over some faults, too much on the stack
    among them: that it ended is the fault then, and its last words are why.
    """
    ours, its = os.pipe()
    with tempfile.TemporaryFile() as words_to:
        pid = os.fork()
        if pid == 0:
            try:
                os.close(ours)
                _child(its, source, machine, words_to)
            finally:
                os._exit(0)
        os.close(its)
        said = None
        try:
            said = _read(ours)
        finally:
            os.close(ours)
            if said is None:
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        words_to.seek(0)
        last_words = words_to.read().decode(errors="replace")
    if said is None:
        log.warning("the compiler's process did not come to an end: compiling in this one")
        return compile_source(source, machine)
    try:
        kind, words = json.loads(said)
    except ValueError:
        ended = f"killed by signal {status & 0x7f}" if os.WIFSIGNALED(status) else f"exit status {status >> 8}"
        raise KcompatError(f"bcc could not compile the program: {first_error(last_words)} ({ended})") from None
    if kind == "object":
        return Object.parse(words)
    raise _ERRORS[kind](words)


def _child(out: int, source: str, machine: str | None, words_to: IO[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        answer = ("object", compile_source(source, machine, words_to).dump())
    except KcompatError as error:
        answer = ("Missing" if isinstance(error, Missing) else "KcompatError", str(error))
    except Exception as error:
        answer = ("KcompatError", f"bcc could not compile the program: {error!r}")
    with os.fdopen(out, "w") as pipe:
        json.dump(answer, pipe)


def _read(pipe: int) -> bytes | None:
    """All of it; None when the patience ends before."""
    said = b""
    end = time.monotonic() + _PATIENCE_S
    while (rest_s := end - time.monotonic()) > 0 and readable(pipe, rest_s):
        part = os.read(pipe, 1 << 16)
        if not part:
            return said
        said += part
    return None
