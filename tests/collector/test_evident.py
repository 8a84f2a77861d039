"""collector.evident: whatever it is sure of pydantic says too, and an ordinary start needs no pydantic."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Gt
from hypothesis import given
from hypothesis import strategies as st

from collector.adapter import adapter
from collector.config import Options
from collector.config_keys import keys, sample
from collector.evident import Unsure, evident, evident_text
from collector.sinks.options import Http, Lines, Otlp

ODD = st.sampled_from([None, True, False, 0, 1, 59, -1, 1 << 70, 0.5, float("nan"), float("inf"), "", "auto", "on",
                       "90s", "1m30s", "9435", "[::1]:80", "port=22", "path=/a", "no", "http://h/", "://", "\udcff", [],
                       ["\udcff"], ["process=\udcff"], {"a": "\udcff"},
                       ["netflow"], [1], ["port=22"], ["command=x"], ["port=99999"], [{"kind": "datakit"}], {},
                       {"a": "b"}, {"a": 1}])
NAMES = st.sampled_from([*keys(), "nothing", "offsets.nothing"])


def tree(set_keys: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for path, value in set_keys.items():
        *tables, name = path.split(".")
        inner = made
        for table in tables:
            inner = inner.setdefault(table, {})
        inner[name] = value
    return made


def both(hint: Any, value: Any) -> None:
    """If it is sure, then of what pydantic says, to the type."""
    try:
        sure = evident(hint, value)
    except Unsure:
        return
    judged = adapter(hint).validate_python(value)
    assert repr(sure) == repr(judged) and type(sure) is type(judged)


@given(st.dictionaries(NAMES, ODD, max_size=4))
def test_of_options_it_is_sure_only_of_what_pydantic_says(values):
    both(Options, tree(values))


@given(st.sampled_from(list(keys().values())), ODD)
def test_of_numbers_and_truths_it_is_sure_only_of_what_is_right_strictly(key, value):
    try:
        evident(Options, tree({key.path: value}))
    except Unsure:
        return
    if key.hint in (bool, int, float) and not key.timed:
        adapter(key.hint).validate_python(value, strict=True)


@given(st.sampled_from([Lines, Http, Otlp]), st.data())
def test_of_sinks_it_is_sure_only_of_what_pydantic_says(cls, data):
    names = st.sampled_from([*(one.name for one in fields(cls)), "nothing"])
    values = data.draw(st.dictionaries(names, ODD, max_size=4))
    both(cls, values)
    both(cls, {"url": "https://host:80/", **values})


@given(st.sampled_from([bool, int, float, int | None, float | None]),
       st.one_of(st.sampled_from(["true", "false", "yes", "1", "0", "1.", ".5", "1e5", "0x10", "-1", "1_0", " 1", "nan",
                                  "\N{ARABIC-INDIC DIGIT THREE}"]),
                 st.from_regex(r"[0-9]{1,17}(\.[0-9]{1,17})?", fullmatch=True)))
def test_of_text_it_is_sure_only_of_what_pydantic_says(hint, text):
    try:
        sure = evident_text(hint, text)
    except Unsure:
        return
    judged = adapter(hint).validate_python(text)
    assert sure == judged and type(sure) is type(judged)


@pytest.mark.parametrize("values", [
    {"datasets": ["netflow", "dnsflow"], "interval_s": 10, "outputs": ["jsonl:-"]}, {"interval_s": "1m30s"},
    {"tags": {"zone": "a"}, "exclude": ["port=22"], "metrics": {"listen": "9435"}}, {"offsets": {"vmlinux": "/boot/v"}},
    {"outputs": [{"kind": "datakit", "url": "http://h"}], "limits": {"cpu_percent": 20, "memory_mb": 150}},
])
def test_of_what_people_write_it_is_sure(values):
    assert evident(Options, values) == adapter(Options).validate_python(values)


@pytest.mark.parametrize("hint, value", [
    (Annotated[int, Gt(1)], 5), (int | str, 5), (list[int], [5]), (int, True), (float, "5"), (Literal["a"], "b"),
    (tuple[int, str], [1, "a"]), (float, 1 << 2000),
])
def test_what_is_not_evident_is_for_pydantic(hint, value):
    with pytest.raises(Unsure):
        evident(hint, value)


def test_reading_a_file_and_flags_imports_no_pydantic(tmp_path):
    file = tmp_path / "kcompat.toml"
    file.write_text(sample())
    said = subprocess.run([sys.executable, "-c", f"""
import sys
from pathlib import Path
from collector.config_check import judge
from collector.config_reading import Given, read
read(Path({str(file)!r}), {{"KCOMPAT_COLLECT_LOOPBACK": "true"}},
     [Given("--interval", "interval_s", "1"), Given("--output", "outputs", ["jsonl:-"])], judge)
print([name for name in ("pydantic", "guessers.guess") if name in sys.modules])"""],
                          capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
