"""Kernels in every wrapping a harvest reads, made in memory or with the tools that make the real ones."""

import io
import lzma
import struct
import subprocess
import tarfile

from tests.kcompat.btf_builder import BtfBuilder
from tests.kcompat.elf_builder import elf, note

BANNER = b"Linux version 6.1.0-test (builder@host) (gcc) #1 SMP PREEMPT_DYNAMIC\0"
BUILD_ID = bytes(range(20))
C_KERNEL = r"""
const char linux_banner[] = "Linux version 5.4.0-test (me@here) (gcc) #1 SMP";
struct sock_common { unsigned skc_daddr, skc_rcv_saddr; char pad[32]; unsigned short skc_dport, skc_num; };
struct sock_common the_sock;
"""

C_MODULE = r"""
struct nf_conn { char before[128]; unsigned long status; unsigned mark; } the_connection;
"""


def btf(dport=40, filler=0):
    """BTF with one struct of the catalogue. `filler` nameless structs make reading it take a moment."""
    b = BtfBuilder()
    u16, u32 = b.int("unsigned short", 2), b.int("unsigned int", 4)
    b.struct("sock_common", dport + 8, ("skc_daddr", u32, 0), ("skc_dport", u16, dport * 8))
    b.types += struct.pack("<3I", 0, 4 << 24, 0) * filler
    return b.build()


def vmlinux(*, dport=40, build_id=BUILD_ID, machine=62):
    return elf([(".notes", 7, 2, note(build_id)), (".rodata", 1, 2, BANNER), (".BTF", 1, 2, btf(dport))],
               machine=machine)


def module():
    """A module's debug file: relocatable."""
    data = bytearray(elf([(".gnu.linkonce.this_module", 1, 2, b"nf_conntrack\0"), (".notes", 7, 2, note(b"m" * 20))]))
    struct.pack_into("<H", data, 16, 1)
    return bytes(data)


def tar(members, mode="w"):
    """`members` are name -> bytes, or name -> where it links to."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def bzimage(payload, protocol=0x20F):
    """An x86 boot image as far as Documentation/arch/x86/boot.rst tells how to get at the payload."""
    setup_sects, offset = 4, 0x300
    setup = bytearray(b"\xcc" * (setup_sects + 1) * 512)
    setup[0x1F1] = setup_sects
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<II", setup, 0x248, offset, len(payload))
    return bytes(setup) + b"\xcc" * offset + payload + struct.pack("<I", 1 << 20) + b"\xcc" * 500


def arm64_image(dport=40):
    """No ELF: banner, BTF and notes somewhere in it, and two vDSOs, ELF files with build-ids of their own."""
    vdso = elf([(".note", 7, 2, note(b"v" * 20))], machine=183).ljust(4096, b"\0")
    vdso32 = elf([(".note", 7, 2, note(b"w" * 20))], machine=40, bits=32).ljust(4096, b"\0")
    head = bytearray(64)
    head[:2], head[56:60] = b"MZ", b"ARM\x64"
    banner = BANNER.replace(b"6.1.0-test", b"6.1.0-arm")
    return bytes(head) + vdso + vdso32 + banner + btf(dport) + bytes(8) + note(BUILD_ID) + bytes(64)


def zboot(packed):
    return b"MZ\0\0zimg" + struct.pack("<II", 64, len(packed)) + b"\0" * 8 + b"gzip".ljust(40, b"\0") + packed


def lz4_legacy(data):
    import lz4.block

    packed = lz4.block.compress(data, store_size=False)
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(packed)) + packed


def deb(directory, members, compression):
    root = directory / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text("Package: k-dbg\nVersion: 1\nArchitecture: all\nMaintainer: m <m@m>\n"
                                         "Description: d\n")
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    path = directory / "package"
    subprocess.run(["dpkg-deb", f"-Z{compression}", "--root-owner-group", "-b", root, path], check=True,
                   capture_output=True, timeout=60)
    return path


def cpio(members):
    """The "newc" form of cpio(5)."""
    def entry(name, content, mode):
        head = b"070701" + b"".join(b"%08x" % n for n in (1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0,
                                                          len(name) + 1, 0))
        named = head + name.encode() + b"\0"
        return named + bytes(-len(named) % 4) + content + bytes(-len(content) % 4)

    return b"".join(entry(n, c, 0o100644) for n, c in members.items()) + entry("TRAILER!!!", b"", 0)


def rpm(members, pack=lzma.compress):
    """Lead, signature header padded to 8 bytes, header, packed cpio: rpm's file format, with empty headers."""
    lead = (b"\xed\xab\xee\xdb\x03\0").ljust(96, b"\0")
    signature = b"\x8e\xad\xe8\x01\0\0\0\0" + struct.pack(">II", 1, 5) + bytes(16) + b"12345"
    header = b"\x8e\xad\xe8\x01\0\0\0\0" + struct.pack(">II", 2, 3) + bytes(32) + b"123"
    return lead + signature + bytes(-len(signature) % 8) + header + pack(cpio(members))
