"""Draws docs/guess-*.svg from the recorded guess of a real kernel: `.venv/bin/python docs/pictures.py`."""

from __future__ import annotations

from pathlib import Path

from guessers.recording import load
from guessers.search import Sample, alignment, hits
from kcompat.fields import find

HERE = Path(__file__).resolve().parent
RECORDING = HERE.parent / "tests" / "data" / "recordings" / "5.10.0-46-kprobe.guess"
# What each picture shows, and how many of the samples.
PICTURES = {"snd_nxt": 9, "sk_type": 22, "skc_daddr": 24}
_LEFT, _TOP, _WIDTH, _ROW, _BOTTOM = 96, 44, 660, 13, 46
_STYLE = """\
  <style>
    text { font: 12px system-ui, sans-serif; fill: #24292f }
    .row { fill: #f0f2f4 } .hit { fill: #6e7781 } .left { fill: #1a7f37 } .trail { fill: #57606a; font-size: 11px }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .row { fill: #21262d } .hit { fill: #8b949e } .left { fill: #3fb950 }
      .trail { fill: #9198a1 }
    }
  </style>
"""


def picture(member: str, rows: int, samples: list[Sample]) -> str:
    """A row a sample: where in the object the known value stands. What is left of all of them is green."""
    field = find(member)
    known = [sample for sample in samples if field in sample.values][:rows]
    found = [hits(sample, sample.values[field], alignment(field)) for sample in known]
    left, trail = set(found[0]), []
    for places in found:
        left &= places
        trail.append(len(left))
    size = max(sample.end for sample in known)
    height = _TOP + _ROW * len(known) + _BOTTOM
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 84} {height}" role="img">\n',
             f"  <title>Where the known value of {field.name} stands in {len(known)} sockets</title>\n", _STYLE,
             f'  <text x="{_LEFT}" y="18">{field.name}: every place where the known value stands</text>\n',
             f'  <text class="trail" x="{_LEFT + _WIDTH + 8}" y="{_TOP - 8}">places left</text>\n']
    for number, (places, rest) in enumerate(zip(found, trail, strict=True)):
        y = _TOP + number * _ROW
        parts.append(f'  <text class="trail" x="8" y="{y + 9}">socket {number + 1}</text>\n'
                     f'  <rect class="row" x="{_LEFT}" y="{y}" width="{_WIDTH}" height="{_ROW - 2}"/>\n')
        for place in sorted(places):
            x = _LEFT + _WIDTH * place / size
            parts.append(f'  <rect class="{"left" if place in left else "hit"}" x="{x:.1f}" y="{y}" width="3" '
                         f'height="{_ROW - 2}"><title>offset {place}</title></rect>\n')
        parts.append(f'  <text class="trail" x="{_LEFT + _WIDTH + 8}" y="{y + 9}">{rest}</text>\n')
    told = ", ".join(map(str, sorted(left)))
    y = _TOP + len(known) * _ROW + 16
    parts += [f'  <text x="{_LEFT}" y="{y}">left: offset {told}</text>\n' if len(left) < 5 else
              f'  <text x="{_LEFT}" y="{y}">left: {len(left)} places</text>\n',
              f'  <text class="trail" x="{_LEFT}" y="{y + 18}">0</text>\n',
              f'  <text class="trail" x="{_LEFT + _WIDTH}" y="{y + 18}" text-anchor="end">{size} bytes</text>\n',
              "</svg>\n"]
    return "".join(parts)


def main() -> None:
    samples = [sock.sample for sock in load(RECORDING).haul.socks]
    for member, rows in PICTURES.items():
        (HERE / f"guess-{member}.svg").write_text(picture(member, rows, samples))


if __name__ == "__main__":
    main()
