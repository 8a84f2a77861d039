import random

import pytest

from guessers.messages import (
    COUNT,
    IOV,
    NAME,
    NR_SEGS,
    UBUF,
    Received,
    Seen,
    Sent,
    near,
    samples,
    search_iter,
    search_messages,
)
from guessers.messages import wraps_single_buffers as wraps
from guessers.search import search
from tests.guessers.test_pointers import put

CALLS = {"write": (1, False), "send": (1, False), "sendmsg of pieces": (5, False), "writev of pieces": (3, False),
         "sendto an address": (1, True), "sendmsg of pieces to an address": (4, True)}
STACK = 0xFFFF_C900_0000_4000
# Offsets as in 6.18 and in 5.10: with a buffer in the place of the iovec, and always an iovec.
NEW = {"name": 0, "iov": 32, "count": 40, "nr_segs": 48, "ubuf": True}
OLD = {"name": 0, "iov": 40, "count": 32, "nr_segs": 48, "ubuf": False}


def sent(rng, call):
    count, named = CALLS[call]
    pieces = tuple((0x7F00_0000_0000 + rng.randrange(1 << 20), rng.randrange(20, 700)) for _ in range(count))
    return Sent(call, pieces, rng.randbytes(8) if named else None)


def seen(rng, layout, message, followed=None):
    """The message as a kernel of that layout has it; write(2) leaves the buffer's address in a register, too."""
    window = bytearray(rng.randbytes(128))
    single = len(message.pieces) == 1
    leads = {layout["iov"]: message.iovec, layout["name"]: message.name}
    put(window, layout["name"], STACK + 512 if message.name else 0, 8)
    put(window, layout["iov"], message.pieces[0][0] if single and layout["ubuf"] else STACK + 256, 8)
    put(window, layout["count"], message.length, 8)
    put(window, layout["nr_segs"], len(message.pieces), 8)
    put(window, 112, message.pieces[0][0] if message.call == "write" else 7, 8)
    put(window, 120, STACK - 96, 8)
    lead = leads.get(followed)
    on_stack = followed is not None and abs(int.from_bytes(window[followed:followed + 8], "little") - STACK) < 4096
    return Seen(message, STACK, bytes(window), followed, (lead or rng.randbytes(64)) if on_stack else None)


def everything(layout, seed=1):
    rng = random.Random(seed)
    return [seen(rng, layout, sent(rng, call), followed) for followed in (None, layout["iov"], layout["name"], 120)
            for call in CALLS for _ in range(2)]


@pytest.mark.parametrize("layout", [NEW, OLD], ids=["new", "old"])
def test_every_member_is_where_it_was_put(layout):
    messages = everything(layout)
    found = {f.field: f.candidates for f in search_messages(messages)}
    assert found == {IOV: (layout["iov"],), NAME: (layout["name"],),
                     UBUF: (layout["iov"],) if layout["ubuf"] else ()}
    assert search(COUNT, samples(messages)).candidates == (layout["count"],)
    assert search(NR_SEGS, samples(messages)).candidates == (layout["nr_segs"],)


def test_what_is_worth_following_leads_to_the_messages_own_stack():
    messages = everything(NEW)
    assert near(s for s in messages if len(s.sent.pieces) > 1) == {32, 120}
    assert near(s for s in messages if s.sent.name) >= {0, 120}


def test_a_kernel_that_wraps_one_buffer_in_an_iovec_says_so():
    assert wraps(everything(OLD), OLD["iov"])
    assert not wraps(everything(NEW), NEW["iov"])


def test_without_the_iovec_a_register_is_not_taken_for_the_buffer():
    """Of write(2) alone the saved register says the same as ubuf: nothing is claimed."""
    messages = [s for s in everything(NEW) if s.followed is None]
    found = {f.field: f for f in search_messages(messages)}
    assert found[UBUF].candidates == ()
    assert found[IOV].evidence["samples"] == 0


def test_one_message_whose_pointer_leads_elsewhere_ends_the_claim():
    messages = everything(NEW)
    at = next(i for i, s in enumerate(messages) if s.followed == 32 and len(s.sent.pieces) > 1)
    messages[at] = Seen(messages[at].sent, STACK, messages[at].data, 32, bytes(128))
    assert next(f for f in search_messages(messages) if f.field is IOV).candidates == ()


def test_the_iterator_lies_at_one_distance_in_every_message():
    received = [Received("read" if n % 128 else "recv", STACK + n, (STACK + n + 16, STACK - 64, STACK + 8 * n))
                for n in range(64, 512, 64)]
    found, by_one_call = search_iter(received), search_iter(received[1::2])
    assert found.candidates == by_one_call.candidates == (16,)
    # However often one call lays out its stack in the same way, it says the same thing.
    assert found.evidence["expected_false_positives"] < 1e-5 < by_one_call.evidence["expected_false_positives"]


def test_iterators_of_something_else_are_no_distance():
    rng = random.Random(2)
    received = [Received("recv", STACK, (STACK + 8 * rng.randrange(16, 999),)) for _ in range(6)]
    assert search_iter(received).candidates == ()
    assert search_iter([]).evidence["samples"] == 0
