"""An HTTP exchange, and what its request's target says, whichever version carried them."""

from __future__ import annotations

import re
from typing import NamedTuple

METHODS = frozenset((b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"))
# Of a request's line or path; what is longer is cut, and a path that does not end before is told to be.
LONGEST_LINE = 4096
PRINTABLE = re.compile(rb"[!-~]*\Z")

_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


class Exchange(NamedTuple):
    """One request and its final response; `http_version` is the response's.

    `latency_ns` is from the last piece of the request that came before it to the first of the response. `truncated`:
    the path does not end within what was captured. `grpc_status` is what gRPC, over HTTP/2, says how its call ended.
    """

    method: str
    path: str
    truncated: bool
    status_code: int
    http_version: str
    latency_ns: int
    host: str
    grpc_status: int | None = None


def path_of(target: bytes, is_authority: bool = False) -> tuple[str, bool]:
    """The path of a request's target and whether something after it ended it; empty for one that is not printable.

    The absolute form loses its scheme and host, every form what follows ``?`` or ``#``; no path at all is ``/``.
    """
    if not PRINTABLE.match(target):
        return "", False
    text = target.decode()
    if is_authority:
        return text or "/", False
    text = text[origin.end():] if (origin := _ORIGIN.match(text)) else text
    path = re.split(r"[?#]", text, maxsplit=1)
    return path[0] or "/", len(path) > 1
