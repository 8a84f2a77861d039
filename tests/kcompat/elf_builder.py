"""Writes small ELF files: only what a reader of sections, segments and symbols looks at."""

import struct


def elf(sections, bits=64, order="<", machine=62, segments=()):
    """`sections` are (name, type, flags, bytes), and a link; a section of names is added last.

    `segments` are (offset, address, size), all of them loaded.
    """
    sections = [("", 0, 0, b""), *sections, (".shstrtab", 3, 0, b"")]
    names = b"\0".join(name.encode() for name, *_ in sections) + b"\0"
    sections[-1] = (".shstrtab", 3, 0, names)
    body, headers = b"", b""
    word, head, size, segment = ("Q", 64, 64, "IIQQQQQQ") if bits == 64 else ("I", 52, 40, "IIIIIIII")
    for name, kind, flags, data, *link in sections:
        at = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        headers += struct.pack(f"{order}II4{word}II2{word}", at, kind, flags, 0, head + len(body), len(data),
                               *(link or [0]), 0, 1, 0)
        body += data + bytes(-len(data) % 8)
    loads = b"".join(struct.pack(order + segment, *((1, 5, at, to, to, length, length, 1) if bits == 64 else
                                                    (1, at, to, to, length, length, 5, 1)))
                     for at, to, length in segments)
    ident = b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2, 1]).ljust(12, b"\0")
    header = struct.pack(f"{order}HHI3{word}IHHHHHH", 2, machine, 1, 0,
                         head + len(body) + len(headers) if loads else 0, head + len(body), 0, head,
                         struct.calcsize(order + segment) if loads else 0, len(segments), size, len(sections),
                         len(sections) - 1)
    return ident + header + body + headers + loads


def library(functions, address=0x10, segments=((0, 0, 0x100),)):
    """One of 64 bits that says it lets others call these functions, all of them at that address."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in functions)
    symbols = bytes(24) + b"".join(struct.pack("<IBBHQQ", names.index(b"\0" + name.encode() + b"\0") + 1, 0x12, 0, 1,
                                               address, 0) for name in functions)
    return elf([(".dynstr", 3, 0, names), (".dynsym", 11, 0, symbols, 1)], segments=segments)


def with_section(data, number, offset, size):
    """The same file of 64 bits, but that section lies elsewhere."""
    table, = struct.unpack_from("<Q", data, 40)
    changed = bytearray(data)
    struct.pack_into("<QQ", changed, table + 64 * number + 24, offset, size)
    return bytes(changed)


def note(build_id, order="<"):
    return struct.pack(order + "III", 4, len(build_id), 3) + b"GNU\0" + build_id
