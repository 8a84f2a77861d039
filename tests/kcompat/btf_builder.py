"""Writes BTF bytes, right or wrong ones, in either byte order; shares no code with the parser under test."""

import struct


class BtfBuilder:
    """Each method adds one type and returns its id; `base` makes split BTF."""

    def __init__(self, order="<", base=None):
        self.order, self.types = order, b""
        self.strings = b"" if base else b"\0"
        self.first_string = base.first_string + len(base.strings) if base else 0
        self.next_id = base.next_id if base else 1

    def string(self, text):
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return self.first_string + len(self.strings) - len(text) - 1

    def type(self, kind, name="", size_or_type=0, vlen=0, flag=False, tail=()):
        info = flag << 31 | kind << 24 | vlen
        self.types += struct.pack(f"{self.order}{3 + len(tail)}I", self.string(name), info, size_or_type, *tail)
        self.next_id += 1
        return self.next_id - 1

    def int(self, name, size, bits=None, shift=0):
        return self.type(1, name, size, tail=(shift << 16 | (size * 8 if bits is None else bits),))

    def ptr(self, to=0):
        return self.type(2, size_or_type=to)

    def array(self, element, count):
        return self.type(3, tail=(element, element, count))

    def struct(self, name, size, *members, kind=4, flag=False):
        """A member is (name, type id, bit position) or, with `flag`, (name, type id, bit position, bits)."""
        tail = [word for name_, type_id, place, *bits in members
                for word in (self.string(name_), type_id, place | (bits[0] << 24 if bits else 0))]
        return self.type(kind, name, size, len(members), flag, tail)

    def union(self, name, size, *members):
        return self.struct(name, size, *members, kind=5)

    def build(self, **wrong):
        """The bytes; keywords replace header values to make wrong ones."""
        header = {"magic": 0xEB9F, "version": 1, "flags": 0, "hdr_len": 24, "type_off": 0, "type_len": len(self.types),
                  "str_off": len(self.types), "str_len": len(self.strings)} | wrong
        return struct.pack(self.order + "HBBIIIII", *header.values()) + self.types + self.strings


def every_kind(order="<"):
    """BTF with all 19 kinds, and a ``struct sample`` that is reached through most of them."""
    b = BtfBuilder(order)
    u32, u64 = b.int("unsigned int", 4), b.int("long unsigned int", 8)
    pointer = b.ptr(b.type(7, "elsewhere"))
    typedef = b.type(8, "u32_t", u32)
    qualified = b.type(9, size_or_type=b.type(10, size_or_type=b.type(11, size_or_type=typedef)))
    tagged = b.type(18, "user", qualified)
    enum = b.type(6, "colour", 4, 1, tail=(b.string("RED"), 0))
    enum64 = b.type(19, "big", 8, 2, tail=(b.string("LOW"), 1, 0, b.string("HIGH"), 0, 1))
    real = b.type(16, "double", 8)
    proto = b.type(13, size_or_type=0, vlen=1, tail=(b.string("arg"), u32))
    b.type(12, "function", proto, 1)
    variable = b.type(14, "counter", u64, tail=(1,))
    b.type(15, ".data", 8, 1, tail=(variable, 0, 8))
    inner = b.union("", 4, ("low", u32, 0), ("high", tagged, 0))
    sample = b.struct("sample", 64, ("a", u32, 0), ("", inner, 32), ("p", pointer, 64), ("e", enum, 128),
                      ("f", real, 192), ("g", enum64, 256), ("v", b.array(u32, 3), 320), ("last", tagged, 448))
    b.type(17, "tag", sample, tail=(0xFFFFFFFF,))
    return b
