"""What waiting packets show of struct sk_buff, over memory made up in Python."""

import dataclasses
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guessers.memory import ReadFault
from guessers.search import Sample, search
from guessers.skbuff import Packet, Wire, leads_to_bytes, samples, search_device, search_head
from kcompat.fields import find

HEAD, DATA, LEN, NETWORK, TRANSPORT, MAC = (find(f"sk_buff.{n}") for n in (
    "head", "data", "len", "network_header", "transport_header", "mac_header"))
seeds = st.integers(0, 2**48)


def wire_of(rng, family):
    length = 4 if family == 2 else 16
    return Wire(family, rng.randbytes(length), rng.randbytes(length), rng.randbytes(4))


def buffer_of(rng, wire, room, options, payload):
    """Head room, a loopback's Ethernet header, an IP header, a UDP header."""
    if wire.family == 2:
        ip = struct.pack(">BBH8x", 0x45 + options, 0, 28 + 4 * options + payload) + wire.source + wire.destination
        ip += b"\x01" * 4 * options
        kind = b"\x08\x00"
    else:
        ip = struct.pack(">IHH", 6 << 28, 8 + payload, 0x1140) + wire.source + wire.destination
        kind = b"\x86\xdd"
    made = rng.randbytes(room) + bytes(12) + kind + ip + wire.ports + rng.randbytes(payload + 4)
    return made[:512].ljust(512, b"\0"), room + 14, room + 14 + len(ip)


class World:
    """Waiting packets, whose fields lie where `layout` says, among pointers that lead elsewhere."""

    def __init__(self, seed, layout, count=12, *, old=False):
        rng = random.Random(seed)
        self.packets = [self.packet(rng, layout, n, old) for n in range(count)]

    @staticmethod
    def packet(rng, layout, number, old):
        wire = wire_of(rng, rng.choice((2, 10)))
        payload = rng.randrange(100, 300)
        buffer, network, transport = buffer_of(rng, wire, rng.randrange(2, 200), rng.randrange(11), payload)
        base = 0xFFFF_8880_0000_0000 + number * 4096
        frame = transport - network + 14 + 8 + payload
        end = transport + 8 if old else transport
        window = bytearray(rng.randbytes(256))
        for field, value in {HEAD: base, DATA: base + end, LEN: frame - (end - network + 14), NETWORK: network,
                             TRANSPORT: transport, MAC: network - 14}.items():
            window[layout[field]:layout[field] + field.width] = value.to_bytes(field.width, "little")
        sent = bytearray(window)
        sent[layout[DATA]:layout[DATA] + 8] = (base + network - 14).to_bytes(8, "little")
        sent[layout[LEN]:layout[LEN] + 4] = frame.to_bytes(4, "little")
        behind = ((layout[HEAD], buffer), (layout[DATA], buffer[end:].ljust(512, b"\0")), (88, rng.randbytes(512)))
        return Packet(Sample(bytes(sent), {find("sk_buff.mark"): (b"mark",)}, None, "IPv4 UDP"), base, 7, wire,
                      bytes(window), behind)


LAYOUTS = ({HEAD: 192, DATA: 200, LEN: 112, TRANSPORT: 178, NETWORK: 180, MAC: 182},
           {HEAD: 224, DATA: 16, LEN: 104, TRANSPORT: 40, NETWORK: 196, MAC: 194})


@settings(max_examples=20)
@given(seeds, st.sampled_from(LAYOUTS), st.booleans())
def test_head_leads_to_the_headers_and_they_tell_the_rest(seed, layout, old):
    packets = World(seed, layout, old=old).packets
    head = search_head(packets)
    assert head.candidates == (layout[HEAD],)
    assert head.evidence["null_survivors"] == 0
    known = samples(packets, layout[HEAD])
    assert {f: search(f, known).candidates for f in layout if f is not HEAD} == {
        f: (at,) for f, at in layout.items() if f is not HEAD}


def test_a_packet_whose_head_leads_elsewhere_ends_the_answer():
    packets = World(1, LAYOUTS[0]).packets
    packets[7] = Packet(packets[7].sent, 1, 7, packets[6].wire, packets[7].waiting, packets[7].behind)
    assert search_head(packets).candidates == ()
    assert leads_to_bytes(packets, 192) is False


def test_without_head_nothing_is_said_of_what_hangs_on_it():
    known = samples(World(2, LAYOUTS[0]).packets, None)
    assert all(search(f, known).evidence == {"samples": 0} for f in (DATA, LEN, NETWORK, TRANSPORT, MAC))
    assert search_head([]).evidence == {"samples": 0}
    assert leads_to_bytes([], 192) is None


def test_a_head_that_moved_says_nothing_of_data_as_it_was_sent():
    """As TCP's does for IP options: the bytes are copied, and the old place tells nothing."""
    packet = World(3, LAYOUTS[0]).packets[0]
    moved = bytearray(packet.sent.window)
    moved[192:200] = b"elsewher"
    sent, waiting = samples([Packet(Sample(bytes(moved), packet.sent.values), *(getattr(packet, n) for n in (
        "address", "netns", "wire", "waiting", "behind")))], 192)
    assert DATA not in sent.values and DATA in waiting.values


@pytest.mark.parametrize("spoil", [lambda b: b[:12] + b"\x09" + b[13:], lambda b: bytes(512), lambda b: b[14:]])
def test_a_header_is_known_by_frame_addresses_and_ports(spoil):
    rng = random.Random(4)
    wire = wire_of(rng, 2)
    buffer, network, _ = buffer_of(rng, wire, 0, 3, 200)
    assert wire.header_in(buffer) == network
    assert wire.header_in(spoil(buffer)) is None


@pytest.mark.parametrize("family", [2, 10])
def test_what_is_left_of_an_earlier_packet_between_the_same_addresses_hides_no_header(family):
    """Seen once in some hundred guesses: a segment's buffer that a datagram had used before, with less room ahead."""
    rng = random.Random(5)
    wire = wire_of(rng, family)
    earlier = dataclasses.replace(wire, ports=b"\1\2\3\4")
    stale, older, _ = buffer_of(rng, earlier, 2, 0, 20)
    buffer, network, _ = buffer_of(rng, wire, 100, 0, 100)
    assert wire.header_in(stale[:100] + buffer[100:]) == network
    assert earlier.header_in(stale[:100] + buffer[100:]) == older


def devices(names, at, packets=6):
    """Packets of one namespace a name, a device behind the word at `at`, and a constant beside it."""
    rng, memory, made = random.Random(5), {}, []
    for number, name in enumerate(names):
        address = 0xFFFF_8881_0000_0000 + number * 8192
        memory[address] = rng.randbytes(296) + name.ljust(16, b"\0") + rng.randbytes(3784)
        for _ in range(packets):
            window = bytearray(rng.randbytes(256))
            window[at:at + 8] = address.to_bytes(8, "little")
            window[96:104] = (0xFFFF_FFFF_8100_0000).to_bytes(8, "little")
            made.append(Packet(Sample(bytes(window), {}), address, number))

    def read(address, size):
        if address not in memory:
            raise ReadFault(address, 14)
        return memory[address][:size]

    return search_device(made, read)


def test_the_device_is_the_namespaces_own_and_bears_its_name():
    found = devices([b"lo", b"lo"], 16)
    assert found.candidates == (16,)
    assert found.evidence["expected_false_positives"] < 1e-6


@pytest.mark.parametrize("names", [[b"lo", b"eth0"], [b"lost"], [b"eth0"]])
def test_another_name_is_another_device(names):
    assert devices(names, 16).candidates == ()
