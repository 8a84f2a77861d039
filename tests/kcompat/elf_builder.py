"""Writes small ELF files: only what a reader of sections looks at."""

import struct


def elf(sections, bits=64, order="<", machine=62):
    """`sections` are (name, type, flags, bytes); a section of names is added last."""
    sections = [("", 0, 0, b""), *sections, (".shstrtab", 3, 0, b"")]
    names = b"\0".join(name.encode() for name, *_ in sections) + b"\0"
    sections[-1] = (".shstrtab", 3, 0, names)
    body, headers = b"", b""
    word, head, size = ("Q", 64, 64) if bits == 64 else ("I", 52, 40)
    for name, kind, flags, data in sections:
        at = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        headers += struct.pack(f"{order}II4{word}II2{word}", at, kind, flags, 0, head + len(body), len(data),
                               0, 0, 1, 0)
        body += data + bytes(-len(data) % 8)
    ident = b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2, 1]).ljust(12, b"\0")
    header = struct.pack(f"{order}HHI3{word}IHHHHHH", 2, machine, 1, 0, 0, head + len(body), 0, head, 0, 0,
                         size, len(sections), len(sections) - 1)
    return ident + header + body + headers


def note(build_id, order="<"):
    return struct.pack(order + "III", 4, len(build_id), 3) + b"GNU\0" + build_id
