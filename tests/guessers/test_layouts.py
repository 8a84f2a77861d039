"""Kernels from before BTF that cannot be booted here: the solver over memory laid out as theirs was."""

import json
import os
import random
from pathlib import Path

import pytest

from guessers.conclusions import Findings
from guessers.guess import FOLLOWED as BY_POINTER
from guessers.guess import deduce
from guessers.pointers import SockSample, search_netns, search_socket
from guessers.search import Sample
from kcompat.fields import CATALOGUE, find
from kcompat.offsets import State
from tests.guessers.synthetic import IMPERFECT, Noise, free_place, sock_values, sock_world, tells
from tests.guessers.test_pointers import Kernel

SHARED = Path(os.environ.get("KCOMPAT_SHARED") or Path(__file__).resolve().parents[3] / "shared")
LAYOUTS = SHARED / "data" / "layouts-pre-btf.json"
RELEASES = json.loads(LAYOUTS.read_text()) if LAYOUTS.is_file() else {}
# What stands in windows of memory made up here; sk_socket and skc_net too, with what they lead to.
REPLAYED = ("sock", "net", "flowi4", "flowi6", "sk_buff")
FOLLOWED = (BY_POINTER | {find("sk_buff.head")}) - {find("sk_socket"), find("skc_net"), find("net.ns.inum")}
# Anonymous unions of sock_common, which the data leaves out: so in every kernel whose skc_family stands at 16.
UNNAMED = {"skc_daddr": 0, "skc_rcv_saddr": 4, "skc_dport": 12, "skc_num": 14}


def places(release):
    """{field: offset} of everything the data tells of a kernel."""
    structs = RELEASES[release]
    members = {name: struct["members"] for name, struct in structs.items()}
    told = {f: at for f in CATALOGUE if f.base in REPLAYED and f not in FOLLOWED and f.struct in members
            for path in f.paths if isinstance(at := members[f.struct].get(path), int)}
    word, bits = members["sock"]["sk_protocol"]
    assert bits == 8
    # unsigned int flags : 8, sk_protocol : 8, sk_type : 16, from the low end up.
    told |= {find("sk_protocol"): word + 1, find("sk_type"): word + 2}
    assert members["sock_common"]["skc_family"] == 16
    told |= {find(name): offset for name, offset in UNNAMED.items()}
    net = members["net"]
    told[find("net.ns.inum")] = net["proc_inum"] if "proc_inum" in net else net["ns"] + members["ns_common"]["inum"]
    for key in ("flowi4", "flowi6"):
        common, ports = members["flowi_common"], members[key]["uli"]
        told |= {find(f"{key}.flowi_{name}"): common[f"flowic_{name}"] for name in ("oif", "mark", "proto")}
        told |= {find(f"{key}.dport"): ports, find(f"{key}.sport"): ports + 2}
    return told


def findings_of(rng, layout):
    """Socks, namespaces behind them and routing keys of such a kernel, with decoys."""
    in_sock = {f: o for f, o in layout.items() if f.base == "sock"}
    taken, decoys = dict(in_sock), []
    for member in rng.choices([f for f in in_sock if f.width < 16 and find("sk_socket") is not f], k=20):
        if (at := free_place(rng, member, taken)) is not None:
            taken[len(taken)] = at
            decoys.append((member, at, rng.choice(IMPERFECT)))
    world = sock_world(rng, in_sock, decoys, per_kind=6)
    while alike := {at for _, at, _ in decoys for f in in_sock if not tells(world, f, at)}:
        decoys = [decoy for decoy in decoys if decoy[1] not in alike]
        world = sock_world(rng, in_sock, decoys, per_kind=6)
    samples, inum_at = world.samples["sock"], layout[find("net.ns.inum")]
    kernel = Kernel(rng, per_namespace=len(samples) // 2, decoys=False, inum_at=inum_at)
    socks = [with_pointers(sample, sock, layout) for sample, sock in zip(samples, kernel.socks, strict=True)]
    findings = Findings({key: flows_of(rng, key, layout) for key in ("flowi4", "flowi6")} | {
        "sock": [s.sample for s in socks], "sk_buff": packets_of(rng, layout)})
    for found in (search_socket(socks, kernel.memory.read), *search_netns(socks, kernel.memory.read)):
        findings.reached[found.field] = found
    return findings


def with_pointers(sample, sock, layout):
    """The sample with the pointers of `sock`, at the places of the layout."""
    window = bytearray(sample.window)
    for name, at in (("sk_socket", 96), ("skc_net", 48)):
        window[layout[find(name)]:layout[find(name)] + 8] = sock.sample.window[at:at + 8]
    return SockSample(Sample(bytes(window), sample.values), sock.address, sock.netns, sock.inode)


def flows_of(rng, key, layout):
    """Routing keys: 128 bytes of a stack, the key at its head."""
    noise, samples = Noise(rng, 128), []
    for number in range(24):
        values = sock_values(rng, 2 if key == "flowi4" else 10, "client")
        address = "skc_rcv_saddr skc_daddr" if key == "flowi4" else "skc_v6_rcv_saddr skc_v6_daddr"
        names = dict(zip(("saddr", "daddr"), address.split(), strict=True))
        names |= {"sport": "inet_sport", "dport": "skc_dport", "flowi_mark": "sk_mark", "flowi_oif": "skc_bound_dev_if"}
        known = {find(f"{key}.{name}"): values[find(of)] for name, of in names.items()}
        known[find(f"{key}.flowi_proto")] = (bytes([6 if number % 2 else rng.randrange(148, 250)]),)
        window = noise.window(rng)
        for field, (code, *_) in known.items():
            window[layout[field]:layout[field] + len(code)] = code
        samples.append(Sample(bytes(window), known))
    return samples


def packets_of(rng, layout):
    """Packets on their way and waiting: 256 bytes, the sk_buff at their head."""
    noise, samples = Noise(rng, 256), []
    in_skb = {f.member: (f, at) for f, at in layout.items() if f.base == "sk_buff"}
    for number in range(32):
        head, network = 0xFFFF_8880_0000_0000 + rng.randrange(1 << 20) * 512, rng.randrange(16, 90)
        values = {"sk": head + (1 << 40), "len": rng.randrange(100, 999), "mark": rng.randrange(1 << 24, 1 << 31),
                  "protocol": 0x0008 if rng.random() < 0.5 else 0xDD86, "data": head + network + rng.randrange(99),
                  "transport_header": network + rng.randrange(20, 60, 4), "network_header": network,
                  "mac_header": network - 14, "_nfct": head + (1 << 41)}
        known = {find(f"sk_buff.{name}"): (value.to_bytes(in_skb[name][0].width, "little"),)
                 for name, value in values.items() if name in in_skb and (number % 2 or name not in ("sk", "_nfct"))}
        window = noise.window(rng)
        for field, (code, *_) in known.items():
            window[layout[field]:layout[field] + len(code)] = code
        samples.append(Sample(bytes(window), known))
    return samples


@pytest.mark.skipif(not RELEASES, reason=f"no {LAYOUTS}")
@pytest.mark.parametrize("release", RELEASES or ["none"])
def test_every_field_comes_out_exactly(release):
    layout = places(release)
    answers = deduce(CATALOGUE, findings_of(random.Random(release), layout), {})
    missed = {f.name: (answers[f].offset, offset, answers[f].reason, answers[f].candidates)
              for f, offset in layout.items() if answers[f].offset != offset}
    assert not missed
    assert all(answers[f].state is State.UNKNOWN for f in CATALOGUE if f not in layout)
    assert answers[find("sk_protocol")].width == 1


def test_the_data_has_what_the_replay_needs():
    if not RELEASES:
        pytest.skip(f"no {LAYOUTS}")
    assert len(RELEASES) == 31
    assert min(len(places(release)) for release in RELEASES) >= 30
