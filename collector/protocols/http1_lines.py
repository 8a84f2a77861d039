"""The first lines of HTTP/1's messages: what they begin with, and whether what is there of one may become one."""

from __future__ import annotations

import re

from collector.protocols.exchange import METHODS

REQUEST_STARTS = tuple(method + b" " for method in METHODS)
RESPONSE_STARTS = (b"HTTP/1.0 ", b"HTTP/1.1 ")
VERSIONS = (b"HTTP/1.0", b"HTTP/1.1")
STATUS = re.compile(rb"HTTP/(1\.[01]) ([1-5]\d\d)(?: |\r?\Z)")
# Methods that are none of ours (a token, RFC 9110 5.6.2), as WebDAV's: known for requests once one of ours was seen.
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}(?: |\Z)")

_STATUS_SO_FAR = re.compile(rb"HTTP/1\.[01] (?:[1-5]?|[1-5]\d|[1-5]\d\d(?:[ \r].*)?)\Z", re.DOTALL)


def may_ask(line: bytes) -> bool:
    """Whether behind the target there is nothing but what may be the version, or its beginning."""
    version = line.split(b" ", 2)[2:]
    return not version or any(known.startswith(version[0].rstrip(b"\r")) for known in VERSIONS)


def may_answer(line: bytes) -> bool:
    """Whether behind the version there is nothing but what may be a status and its words, or their beginning."""
    return _STATUS_SO_FAR.match(line) is not None
