"""Kernel memory made up in Python: objects with fields where we say, in noise like the kernel's, among decoys."""

import random
from dataclasses import dataclass, field

from guessers.search import Sample
from guessers.verdicts import NESTING
from kcompat.fields import CATALOGUE, Field, find

WINDOW = 4096
FOLLOWED = {find("sk_socket"), find("skc_net"), find("net.ns.inum")}
SOCK_FIELDS = tuple(f for f in CATALOGUE if f.base == "sock" and f not in FOLLOWED)
KINDS = [(family, kind) for family in (2, 10)
         for kind in ("client", "accepted", "listening", "udp", "multicast", "raw")]


@dataclass
class World:
    """A kernel: where its fields lie, the samples drawn from it, and what is not there at all."""

    layout: dict[Field, int]
    samples: dict[str, list[Sample]] = field(default_factory=dict)


def random_layout(rng: random.Random, fields=SOCK_FIELDS, absent=(), end=WINDOW - 64) -> dict[Field, int]:
    """Fields of the nest in nest order, each struct's in any order, with gaps of any size, aligned as C does."""
    present = [f for f in fields if f not in absent]
    spare = end - sum(max(f.widths) + 8 for f in present)
    gaps = sorted(rng.randrange(spare) for _ in present)
    layout, at, used = {}, 0, 0
    for struct in NESTING:
        members = [f for f in present if f.struct == struct]
        rng.shuffle(members)
        for member in members:
            at += gaps[len(layout)] - used
            used = gaps[len(layout)]
            step = min(max(member.widths), 8) if member.width != 16 else 4
            at = -(-at // step) * step
            layout[member] = at
            at += max(member.widths)
    return layout


def sock_values(rng: random.Random, family: int, kind: str) -> dict[Field, tuple[bytes, ...]]:
    """What a socket tells of itself, as guessers.facts does."""
    port, peer_port = (rng.randrange(1024, 65536) for _ in range(2))
    local, peer = _address(rng, family), _address(rng, family)
    known = {
        "skc_family": _host(family, 2), "sk_mark": _host(rng.randrange(1 << 24, 1 << 31), 4),
        "sk_rcvbuf": _host(2 * rng.randrange(20_000, 100_000), 4),
        "sk_sndbuf": _host(2 * rng.randrange(20_000, 100_000), 4),
        "skc_bound_dev_if": _host(rng.randrange(2), 4), "skc_cookie": _host(rng.randrange(1, 1 << 20), 8),
        "sk_type": _host({"udp": 2, "multicast": 2, "raw": 3}.get(kind, 1), 2),
        "sk_protocol": _host({"udp": 17, "multicast": 17, "raw": rng.randrange(148, 250)}.get(kind, 6), 1),
    }
    talks = kind in ("client", "accepted") or (kind == "udp" and rng.random() < 0.6)
    if kind != "raw":
        known |= {"skc_num": _host(port, 2), "inet_sport": port.to_bytes(2, "big"),
                  "skc_dport": peer_port.to_bytes(2, "big") if talks else bytes(2),
                  "skc_state": _host(1 if talks else 10 if kind == "listening" else 7, 1)}
    if family == 2:
        group = bytes([239]) + local[1:] if kind == "multicast" else local
        known |= {"skc_rcv_saddr": group, "inet_saddr": bytes(4) if kind == "multicast" else local}
        if kind != "raw":
            known["skc_daddr"] = peer if talks else bytes(4)
    else:
        known["skc_v6_rcv_saddr"] = local
        if talks:
            known["skc_v6_daddr"] = peer
    encoded = {find(name): (code,) for name, code in known.items()}
    return encoded | (_tcp_values(rng) if kind in ("client", "accepted") else {})


def _tcp_values(rng: random.Random) -> dict[Field, tuple[bytes, ...]]:
    rtt, rttvar = rng.randrange(20, 900), rng.randrange(5, 400)
    write_seq, rcv_nxt = (rng.randrange(1 << 31) for _ in range(2))
    numbers = {
        "copied_seq": rcv_nxt - rng.choice((0, rng.randrange(5000))), "write_seq": write_seq, "rcv_nxt": rcv_nxt,
        "snd_nxt": write_seq - rng.choice((0, rng.randrange(9000))), "snd_una": write_seq - rng.randrange(9000, 20_000),
        "segs_in": rng.randrange(3, 60), "segs_out": rng.randrange(3, 60),
        "total_retrans": rng.choice((0, 0, 1, 2, 3, 4)),
        "bytes_acked": rng.randrange(1, 60_000), "bytes_received": rng.randrange(1, 60_000),
    }
    known = {find(name): (_host(value % (1 << 32), find(name).width),) for name, value in numbers.items()}
    return known | {find("srtt_us"): tuple(_host(rtt << 3 | low, 4) for low in range(8)),
                    find("mdev_us"): tuple(_host(rttvar << 2 | low, 4) for low in range(4))}


class Noise:
    """What lies between the fields: each word keeps its nature from object to object, as a member does."""

    def __init__(self, rng: random.Random, size: int = WINDOW) -> None:
        self.kinds = [rng.choices(("zero", "constant", "small", "pointer", "random"), (9, 2, 4, 4, 2))[0]
                      for _ in range(size // 4)]
        self.constants = [rng.choice((rng.randrange(16), rng.randrange(1 << 32))) for _ in self.kinds]

        still = [c if k == "constant" else 0 for k, c in zip(self.kinds, self.constants, strict=True)]
        self._still = b"".join(value.to_bytes(4, "little") for value in still)
        self._moving = [(4 * i, kind) for i, kind in enumerate(self.kinds) if kind in ("small", "pointer", "random")]

    def window(self, rng: random.Random) -> bytearray:
        made = bytearray(self._still)
        for at, kind in self._moving:
            if kind == "small":
                value = rng.choice((0, 0, 1, 2, 3, 10, rng.getrandbits(8)))
            elif kind == "pointer" and rng.getrandbits(1):
                value = 0xFFFF8880 | rng.getrandbits(7)
            else:
                value = rng.getrandbits(32)
            made[at:at + 4] = value.to_bytes(4, "little")
        return made


def sock_world(rng: random.Random, layout: dict[Field, int], decoys=(), per_kind: int = 5, limit=None,
               size: int = WINDOW) -> World:
    """Sockets of every kind. A decoy is (field, offset, forge): forge(rng, code, field) writes what stands there."""
    noise, samples, told = Noise(rng, size), [], []
    for family, kind in KINDS * per_kind:
        values = sock_values(rng, family, kind)
        window = noise.window(rng)
        for name, codes in values.items():
            if name in layout:
                _write(window, layout[name], rng.choice(codes))
            told.append((name, codes))
        for name, offset, forge in decoys:
            if name in values:
                _write(window, offset, forge(rng, rng.choice(values[name]), [c for f, c in told if f is name]))
        samples.append(Sample(bytes(window), values, limit, f"{family} {kind}"))
    return World(layout, {"sock": samples})


def copy(rng, code, earlier):
    """The very value: only C's rules can tell it from the field."""
    return code


def stale(rng, code, earlier):
    """The value, but now and then the one of another sample (a cork's copy, a transition missed)."""
    return rng.choice(rng.choice(earlier)) if rng.random() < 0.3 else code


def swapped(rng, code, earlier):
    return code[::-1]


def shifted(rng, code, earlier):
    """The value in another unit, as rtt beside srtt_us."""
    return (int.from_bytes(code, "little") >> rng.choice((2, 3))).to_bytes(len(code), "little")


def near(rng, code, earlier):
    """A neighbour that is often the same, as snd_nxt and pushed_seq."""
    value = int.from_bytes(code, "little") + rng.choice((0, 0, 1, rng.randrange(3000)))
    return (value % (1 << 8 * len(code))).to_bytes(len(code), "little")


def others(rng, code, earlier):
    """The value of another sample."""
    return rng.choice(rng.choice(earlier))


def unset(rng, code, earlier):
    return code if rng.random() < 0.7 else bytes(len(code))


IMPERFECT = (stale, swapped, shifted, near, others, unset)


def free_place(rng: random.Random, member: Field, taken: dict[Field, int], lowest=0, end=WINDOW) -> int | None:
    """An aligned place for `member` that overlaps nothing."""
    step = min(max(member.widths), 8) if member.width != 16 else 4
    for _ in range(50):
        at = rng.randrange(lowest // step, (end - 16) // step) * step
        if at >= lowest and all(at + 16 <= o or o + 16 <= at for o in taken.values()):
            return at
    return None


def tells(world: World, member: Field, offset: int) -> bool:
    """Whether at least one sample shows that `offset` is not the field."""
    knowing = [s for s in world.samples[member.base] if member in s.values]
    return not knowing or any(not any(s.window.startswith(c, offset) for c in s.values[member]) for s in knowing)


def _address(rng: random.Random, family: int) -> bytes:
    if family == 2:
        return bytes([127, *(rng.randrange(1, 255) for _ in range(3))])
    return b"\xfd" + rng.randbytes(15)


def _host(value: int, width: int) -> bytes:
    return value.to_bytes(width, "little")


def _write(window: bytearray, offset: int, code: bytes) -> None:
    window[offset:offset + len(code)] = code[:max(0, len(window) - offset)]
