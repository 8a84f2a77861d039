"""Recordings: what was guessed is guessed again from the file, which holds no address if it should not, and no trap."""

import json
import lzma
import random
import re
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guessers.codec import decode, encode
from guessers.guess import replay
from guessers.masking import Pseudonyms, lowest_of, told_apart
from guessers.recording import FORMAT, VERSION, dumps, load, loads, save
from guessers.search import FOUR_LEVELS, is_pointer
from kcompat.errors import BadInput
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import State
from tests.guessers import corpus

NAME = corpus.NAMES[0]
RAW = (corpus.DIRECTORY / f"{NAME}.guess").read_bytes()
words = st.integers(0, 2**64 - 1) | st.integers(0xFFFF_8880_0000_0000, 0xFFFF_8880_FFFF_FFFF)


@pytest.mark.parametrize("name", corpus.NAMES)
def test_every_recorded_kernel_is_guessed_right(name):
    """Whatever changes in the solver. What was sampled is solved, and what was not says why."""
    truth, offsets = corpus.answers(name), replay(corpus.recording(name)).offsets
    assert list(offsets) == list(CATALOGUE)
    assert {f.name: (o.offset, truth[f]) for f, o in offsets.items()
            if o.state is not State.UNKNOWN and f in truth and o.offset != truth[f]} == {}
    assert {f.name: o.reason for f, o in offsets.items()
            if o.state is State.UNKNOWN and (o.evidence["samples"] or not o.reason)} == {}


@pytest.mark.parametrize("name", corpus.NAMES)
def test_a_recording_of_a_recording_is_the_same(name):
    recording = corpus.recording(name)
    assert loads(dumps(recording)) == recording
    assert len(dumps(recording)) < 250_000


@pytest.mark.parametrize("name", corpus.NAMES)
def test_masked_there_is_no_address_and_the_same_answer(name):
    recording = corpus.recording(name)
    before = replay(recording).offsets
    places = {f: o.offset for f, o in before.known().items()}
    masked = dumps(recording, places)
    after = replay(loads(masked)).offsets
    assert {f.name: o.reason for f, o in after.items() if not o.same_place(before[f])} == {}
    # Pseudonyms get pseudonyms of their own: what was recorded is gone from the file, but for numbers of ours.
    assert json.loads(lzma.decompress(masked))["masked"]
    (haul, ours), lowest = told_apart(recording.haul, places), lowest_of(recording.haul)
    recorded = addresses(dumps(replace(recording, haul=haul)), lowest)
    assert len(recorded) > 300
    assert addresses(masked, lowest) & recorded <= ours


def test_a_port_that_ends_in_ff_is_no_address():
    """Of a kernel with five levels of page tables every word that does might be one."""
    name, num = "6.12.118-kprobe", find("skc_num")
    recording, at = corpus.recording(name), corpus.answers(name)[num]
    assert lowest_of(recording.haul) < FOUR_LEVELS and at % 8 == 6
    socks = list(recording.haul.socks)
    which = next(i for i, s in enumerate(socks) if num in s.sample.values)
    sample = socks[which].sample
    window = sample.window[:at] + b"\x12\xff" + sample.window[at + 2:]
    socks[which] = replace(socks[which], sample=replace(sample, window=window, values={**sample.values,
                                                                                      num: (b"\x12\xff",)}))
    recording = replace(recording, haul=replace(recording.haul, socks=socks))
    before = replay(recording).offsets
    assert before[num].offset == at
    after = replay(loads(dumps(recording, {f: o.offset for f, o in before.known().items()}))).offsets
    assert {f.name: o.reason for f, o in after.items() if not o.same_place(before[f])} == {}


def addresses(data, lowest):
    """Every number that could be an address, at every place a pointer can stand."""
    text = lzma.decompress(data).decode()
    found = {int(number) for number in re.findall(r"(?<![\da-f])\d{18,20}(?![\da-f])", text)}
    for code in map(bytes.fromhex, re.findall('"((?:[0-9a-f]{16})+)(?:[0-9a-f]{2})*"', text)):
        found |= {word for word, in struct.iter_unpack("<Q", code)}
    return {one for one in found if is_pointer(one, lowest + 1) and one != FOUR_LEVELS
            and one >> 31 != 0x1_FFFF_FFFE}


@given(st.lists(words, max_size=30), st.integers())
def test_pseudonyms_are_equal_where_addresses_are_and_as_far_apart(values, seed):
    mask = Pseudonyms(FOUR_LEVELS, random.Random(seed).randrange)
    made = {value: mask(value) for value in values}
    assert len(set(made.values())) == len(made)
    for one in values:
        assert (made[one] != one) == (is_pointer(one, FOUR_LEVELS + 1) and one >> 31 != 0x1_FFFF_FFFE)
        assert mask(one.to_bytes(8, "little")) == made[one].to_bytes(8, "little")
        assert is_pointer(made[one], FOUR_LEVELS) == is_pointer(one, FOUR_LEVELS)
        for other in values:
            if one >> 21 == other >> 21:
                assert made[one] - made[other] == one - other


def test_what_is_no_whole_word_stays():
    mask = Pseudonyms(FOUR_LEVELS)
    window = bytes(3) + b"\xff" * 10
    assert mask(window[:5]) == window[:5]
    assert mask(window)[8:] == window[8:]


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_file_is_refused_in_one_line(tmp_path_factory, data):
    cut, at = data.draw(st.booleans()), data.draw(st.integers(0, len(RAW) - 1))
    damaged = RAW[:at] if cut else RAW[:at] + bytes([RAW[at] ^ data.draw(st.integers(1, 255))]) + RAW[at + 1:]
    path = tmp_path_factory.mktemp("recording") / "damaged"
    path.write_bytes(damaged)
    with pytest.raises(BadInput) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def packed(value):
    return lzma.compress(json.dumps(value).encode())


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "cut off"), (b"\x7fELF" + bytes(60), "no recording"), (lzma.compress(b"not JSON"), "not JSON"),
    (lzma.compress(b"\xff"), "not JSON"),
    (packed([]), "no recording"), (packed({"format": "something"}), "no recording"),
    (packed({"format": FORMAT, "version": VERSION + 1}), f"version {VERSION + 1}"),
    (packed({"format": FORMAT, "version": VERSION}), "NoneType instead of dict"),
    (packed({"format": FORMAT, "version": VERSION, "recording": {"kernel": {}}}), "Recording with other members"),
    (lzma.compress(b"[" * 1_000_000), "not JSON"),
    (lzma.compress(bytes(100 << 20), preset=1), "longer than 16 MB"),
    (lzma.compress(b"{}")[:-1], "cut off"),
])
def test_what_is_no_recording_says_so(data, reason):
    with pytest.raises(ValueError, match=reason):
        loads(data)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_recording_that_lies_is_refused_or_solved_but_never_breaks(data):
    """Every value of it, well packed, may be another one of JSON's."""
    body = json.loads(lzma.decompress(RAW))
    at, key = body, "recording"
    while isinstance(at[key], (dict, list)) and at[key] and data.draw(st.integers(0, 9)):
        at = at[key]
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
    at[key] = data.draw(st.sampled_from([None, True, -1, 0, 2**70, 1e308, "", "00", "zz", [], {}, [[]], "ff" * 4096]))
    with suppress(ValueError, LookupError, ArithmeticError):  # which kcompat/cli_recording.py says in one line
        replay(loads(packed(body)))


def test_a_file_is_its_owners_and_whole(tmp_path):
    path = tmp_path / "one.guess"
    save(path, RAW)
    assert path.read_bytes() == RAW and path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["one.guess"]
    with pytest.raises(BadInput, match="No such file"):
        save(tmp_path / "nowhere/one.guess", RAW)
    with pytest.raises(BadInput, match="No such file"):
        load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="not a regular file"):
        save(Path("/dev/null"), RAW)


@pytest.mark.parametrize(("kind", "value", "refused"), [
    (int, 3, True), (int, 3, 3.0), (float, 2.5, "2.5"), (bytes, b"\0\xff", [0]), (str | None, None, 4),
    (dict[int, bytes], {3: b"x"}, {"3": "78"}), (tuple[int, ...], (1, 2), 1), (tuple[int, bytes], (1, b""), [1]),
    (list[tuple[int, int]], [(1, 2)], [[1, 2, 3]]), (Kernel, Kernel("a", "b", "c", "d", {"e": "f"}), {"build_id": "a"}),
])
def test_the_codec_takes_what_it_made_and_nothing_else(kind, value, refused):
    assert decode(kind, json.loads(json.dumps(encode(value)))) == value
    with pytest.raises(ValueError):
        decode(kind, refused)
