"""One flow of so many, where the collector may not cost more: the tag that says so, and which flow user space keeps."""

from __future__ import annotations

import zlib

SAMPLING = "sampling"


def is_kept(one_of: int, local: bytes, local_port: int, remote: bytes, remote_port: int) -> bool:
    """The same flow always or never, whichever its direction; `one_of` is a power of two."""
    ends = zlib.crc32(local) ^ zlib.crc32(remote) ^ zlib.crc32((local_port ^ remote_port).to_bytes(2, "big"))
    return not ends & (one_of - 1)


def is_port_kept(one_of: int, port: int) -> bool:
    """The same by one end's port alone, which the kernel's own filters can tell."""
    return not port & (one_of - 1)
