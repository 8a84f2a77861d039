"""Recorded guesses of real kernels, and what a judge that is not the guess says of each: BTF or DWARF."""

import json
from pathlib import Path

from guessers.recording import load
from kcompat.fields import find

DIRECTORY = Path(__file__).resolve().parents[1] / "data/recordings"
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.guess"))


def recording(name):
    return load(DIRECTORY / f"{name}.guess")


def answers(name):
    """Field -> offset, None where the judge says it is not there; of a bitfield the byte it begins in."""
    told = json.loads((DIRECTORY / f"{name}.json").read_text())["fields"]
    return {find(f"{a['struct']}.{a['member']}"): a["offset"] for a in told if a["state"] != "unknown"}
