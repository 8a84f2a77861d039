"""Runs of the matrix as they could be: the catalogue's fields, offsets that move as layouts do, and a hostile guest."""

import random
from pathlib import Path

from ci.results import CHECKS, Check, FieldResult, KernelResult, MatrixResult
from ci.verdict import Outcome

HERE = Path(__file__).parent
PASS, FAIL, UNKNOWN = Outcome.PASS, Outcome.FAIL, Outcome.UNKNOWN
HOSTILE = '<script>alert(1)</script><img src=http://127.0.0.1/x>"\'&]]>\x1b[31m\x00\u202e\ud800\ufffe| `x` [a](b)'
HOST = {"name": "builder", "machine": "2 processors (Xeon), x86_64", "emulator": "QEMU 7.2.22, no KVM"}

# As `kcompat resolve` says of 6.18.
OFFSETS = {
    "sock_common": {
        "skc_daddr": 0, "skc_rcv_saddr": 4, "skc_dport": 12, "skc_num": 14, "skc_family": 16, "skc_state": 18,
        "skc_net": 48, "skc_v6_daddr": 56, "skc_v6_rcv_saddr": 72, "skc_cookie": 88, "skc_bound_dev_if": 20,
    },
    "sock": {"sk_type": 534, "sk_protocol": 532, "sk_socket": 288, "sk_mark": 524, "sk_rcvbuf": 244, "sk_sndbuf": 568},
    "inet_sock": {"inet_saddr": 808, "inet_sport": 814},
    "tcp_sock": {
        "srtt_us": 1680, "mdev_us": 1588, "copied_seq": 1464, "write_seq": 1576, "rcv_nxt": 1664, "snd_nxt": 1668,
        "snd_una": 1672, "segs_in": 1760, "segs_out": 1536, "bytes_acked": 1824, "bytes_received": 1752,
        "total_retrans": 2200,
    },
    "net": {"ns.inum": 176},
    "flowi4": {
        "saddr": 40, "daddr": 44, "sport": 50, "dport": 48, "flowi_proto": 18, "flowi_oif": 0, "flowi_mark": 12,
    },
    "flowi6": {
        "saddr": 56, "daddr": 40, "sport": 78, "dport": 76, "flowi_proto": 18, "flowi_oif": 0, "flowi_mark": 12,
    },
}
# Beside 6.18: from that byte of the struct on, so many bytes further.
SHIFTS = {
    "5.10": {"sock": (200, -24), "inet_sock": (0, -40), "tcp_sock": (1500, -152), "net": (0, -40), "flowi4": (17, -4),
             "flowi6": (17, -4)},
    "6.1": {"sock": (500, -16), "inet_sock": (0, -16), "tcp_sock": (1500, -88), "net": (0, -40)},
    "6.12": {"sock": (500, -8), "inet_sock": (0, -8), "tcp_sock": (1700, 16)},
    "6.17": {"tcp_sock": (1700, 8)},
    "6.18": {},
    "7.2": {"sock": (240, 8), "inet_sock": (0, 8), "tcp_sock": (1400, -64)},
}
RT = {"sock": (100, 40), "inet_sock": (0, 48), "tcp_sock": (0, 56), "net": (0, 24)}


def offsets(version, *, rt=False, seed=None):
    found = {}
    for struct, members in OFFSETS.items():
        places = list(members.values())
        if seed:
            random.Random(f"{seed} {struct}").shuffle(places)
        for member, place in zip(members, places, strict=True):
            for shifts in (SHIFTS[version], RT if rt else {}):
                start, delta = shifts.get(struct, (0, 0))
                place += delta if place >= start else 0
            found[f"{struct}.{member}"] = place
    return found


def field(name, offset, outcome=PASS, verdict="ok", guess=None, candidates=(), reason=""):
    state = "known" if offset is not None else "absent"
    return FieldResult(name, verdict, offset if guess is None else guess, {"btf": {"state": state, "offset": offset}},
                       outcome, candidates, reason)


def kernel(name, version="6.12", *, rt=False, seed=None, checks=None, swap=(), **kwargs):
    """One that passed, unless `checks` and `swap`ped fields say otherwise."""
    fields = {n: field(n, o) for n, o in offsets(version, rt=rt, seed=seed).items()} | {f.name: f for f in swap}
    steps = {"info": 3.1, "compile": 14.0, "guess": 11.5, "btf": 4.2, "tests": 22.9, "collect": 9.3}
    told = {"machine": "x86_64", "flavour": "rt" if rt else "generic", "release": f"{version}.48-amd64",
            "package": f"linux-image-{version}-amd64", "version": f"{version}.48-1", "build_id": "e4f18d9dc1d0" * 3,
            "boot_s": 21.4, "total_s": 91.3, "steps_s": steps, "fields": tuple(fields.values())}
    passed = tuple(Check(n, PASS, "46 fields equal" if n in ("btf", "dwarf", "headers") else "", 4.25) for n in CHECKS)
    return KernelResult(name, checks=passed if checks is None else checks, **told | kwargs)


def matrix(*kernels):
    return MatrixResult("2026-11-23T22:29:00Z", 1834.2, HOST, kernels, "0123456789abcdef")


def lost(name="6.17", **kwargs):
    checks = (Check("fetch", PASS, "", 2.0), *(Check(n, UNKNOWN, "Kernel panic - not syncing: Attempted to kill init!")
                                               for n in CHECKS[1:] if n not in ("dwarf", "headers")))
    console = ("[   12.345678] Run /init as init process", "[   12.5] Kernel panic - not syncing: Attempted to kill")
    return kernel(name, "6.17", checks=checks, boot_s=None, total_s=31.0, steps_s={}, console=console, fields=(),
                  **kwargs)


def failing(name="6.1", version="6.1"):
    """One field wrong, one ambiguous, one open, one absent, and a test that fails."""
    swap = (
        field("sock.sk_mark", 508, FAIL, guess=500, reason="the guess says 500, btf says 508, 4 bytes"),
        field("tcp_sock.segs_in", 1672, UNKNOWN, "ambiguous", 1672, (1672, 1676), "two places fit every sample"),
        FieldResult("net.ns.inum", "unverified", None, {}, UNKNOWN, (), "no sample reached it"),
        field("flowi6.flowi_mark", None, PASS, "absent"),
    )
    test = ["tests/kernel/test_guess.py::test_mark", "failed", 1.5, "AssertionError: 500 == 508\n+ 500\n- 508"]
    checks = (*(Check(n, PASS, "", 3.0) for n in CHECKS[:4]),
              Check("btf", FAIL, "1 wrong: sock.sk_mark: the guess says 500, btf says 508", 4.0),
              Check("tests", FAIL, "1 failed: test_mark", 22.0, {"tests": [test]}),
              Check("collect", PASS, "5 counts equal", 9.0), Check("shutdown", PASS, "", 1.0))
    return kernel(name, version, checks=checks, swap=swap, console=("login:", "halted"))


def hostile():
    """Every word the guest, or whoever wrote the JSON, could choose."""
    checks = (Check("boot", UNKNOWN, HOSTILE, 1.0), Check("tests", FAIL, HOSTILE * 300, 1.0, {"tests": [
        [HOSTILE, "failed", 0.1, HOSTILE]]}))
    swap = (field(HOSTILE, 8, FAIL, "ok", 9, (1, 2), HOSTILE),)
    return kernel(HOSTILE, checks=checks, swap=swap, release=HOSTILE, build_id=HOSTILE, notes=(HOSTILE,),
                  steps_s={HOSTILE: 5.0}, console=(HOSTILE, HOSTILE), log=HOSTILE, package=HOSTILE, worker=HOSTILE)


def whole():
    """Twenty-odd kernels, as the full matrix has them."""
    own = {"origin": "built", "flavour": "own"}
    return matrix(
        kernel("5.10", "5.10"), kernel("5.10-rt", "5.10", rt=True), kernel("5.10-cloud", "5.10", flavour="cloud"),
        failing(), kernel("6.1-rt", "6.1", rt=True), kernel("6.1-cloud", "6.1", flavour="cloud"),
        kernel("6.12"), kernel("6.12-rt", rt=True), lost(), kernel("6.18", "6.18"),
        kernel("7.2", "7.2", notes=("bullseye-backports has it no more; sid has",)),
        kernel("6.12-arm64", machine="aarch64", total_s=214.0, boot_s=88.0, notes=("Why the arm64 kernel is slow",)),
        *(kernel(f"5.10-{v}", "5.10", seed=s, **own) for v, s in (("randstruct-1", 1), ("noipv6", 0), ("nonetns", 0))),
        *(kernel(f"6.12-{v}", seed=s, **own) for v, s in (("randstruct-2-up", 2), ("nokprobes", 0), ("nojit", 0))),
        kernel("given-6.1-fleet", "6.1", origin="given", attempts=2, worker="tcp://127.0.0.1:40001"),
    )
