"""Records survive both spellings: read back by json and by an independent line protocol parser."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from line_protocol_parser import parse_line

from collector.record import Record, apart, to_json, to_line_protocol, to_lines

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda text: not text.startswith("#"))
# No control characters and no backslash: what line protocol can carry unchanged.
exact_names = names.filter(lambda text: "\\" not in text)
measurements = exact_names
# The parser takes a subnormal for an overflow.
normal_floats = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
times = st.integers(0, 2**63 - 2)  # InfluxDB keeps the last nanosecond of 64 bits for itself
strings = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
values = st.integers(-2**63, 2**63 - 1) | normal_floats | strings | st.booleans()
hostile = st.text(st.sampled_from(list(", =\\\"\n\r\t\0a#\ud800é\u2028")), min_size=1, max_size=8)


@given(measurements, st.dictionaries(exact_names, exact_names), st.dictionaries(exact_names, values, min_size=1),
       times)
def test_line_protocol_reads_back_as_it_was(measurement, tags, fields, time):
    line = to_line_protocol(Record(measurement, tags, fields, time))

    assert parse_line(line) == {"measurement": measurement, "tags": tags, "fields": fields, "time": time}


@given(st.lists(st.builds(Record, names | hostile, st.dictionaries(names | hostile | st.just("%s"), strings | hostile),
                          st.dictionaries(names | st.just("%d"), st.integers(-2**64, 2**64) | values, min_size=1),
                          times)))
def test_many_are_spelled_as_each_is_alone(records):
    try:
        expected = [*map(to_line_protocol, records)]
    except ValueError:
        with pytest.raises(ValueError, match="without a field"):
            to_lines(records)
    else:
        assert to_lines(records) == expected


@given(hostile, hostile, hostile, hostile)
@example("\\", "a\\,", "\\ b=1i 1\nx", "q\\\"\n")
def test_no_text_breaks_the_framing(key, tag, field, value):
    line = to_line_protocol(Record("netflow", {key: tag, "next": "tag"}, {field: value, "last": 1}, 7))
    point = parse_line(line)

    assert "\n" not in line and "\r" not in line
    assert point["measurement"] == "netflow" and point["time"] == 7
    assert point["tags"]["next"] == "tag" and len(point["tags"]) <= 2
    assert point["fields"]["last"] == 1 and len(point["fields"]) <= 2


@given(st.text(st.sampled_from(list(", =\\\"\n\r\ta")), max_size=8))
def test_a_tag_value_ends_at_the_same_place_for_parsers_that_read_backslashes_in_pairs(value):
    line = to_line_protocol(Record("m", {"t": "x" + value}, {"f": 1}, 7))
    tag, rest = _end_of_tag_read_in_pairs(line.removeprefix("m,t="))

    assert rest == "f=1i 7"
    assert tag[0] == "x"


def _end_of_tag_read_in_pairs(text):
    at = 0
    while text[at] not in ", ":
        at += 2 if text[at] == "\\" else 1
    return text[:at], text[at + 1:]


@pytest.mark.parametrize(("value", "text"), [
    (3, "3i"), (-1, "-1i"), (True, "true"), (False, "false"), (1.5, "1.5"), ("", '""'), ('a"b', '"a\\"b"'),
    ("C:\\", '"C:\\\\"'), ("two\nlines", '"two\\\\nlines"'), ("tab\there", '"tab\there"'), ("nul\0", '"nul "'),
])
def test_field_values(value, text):
    assert to_line_protocol(Record("m", {}, {"f": value}, 1)) == f"m f={text} 1"


def test_tags_are_sorted_and_empty_ones_left_out():
    record = Record("m", {"b": "2", "empty": "", "a": "1", "": "nameless", "slash": "\\"}, {"f": 1}, 1)

    assert to_line_protocol(record) == "m,a=1,b=2 f=1i 1"


def test_values_that_cannot_be_spelled_are_left_out():
    record = Record("m", {}, {"nan": math.nan, "inf": math.inf, "wide": 2**63, "f": 1}, 1)

    assert to_line_protocol(record) == "m f=1i 1"
    assert json.loads(to_json(record))["fields"] == {"wide": 2**63, "f": 1}
    with pytest.raises(ValueError, match="without a field"):
        to_line_protocol(Record("m", {}, {"nan": math.nan}, 1))


@given(names, st.dictionaries(names, st.text()), st.dictionaries(names, values | st.text()), st.integers())
def test_json_is_one_ascii_line_and_reads_back(measurement, tags, fields, time):
    line = to_json(Record(measurement, tags, fields, time))

    assert line.isascii() and len(line.splitlines()) == 1
    assert json.loads(line) == {"measurement": measurement, "tags": tags, "fields": fields, "time": time}


def test_a_lone_surrogate_is_replaced():
    record = Record("m", {"t": "a\udcff"}, {"f": "b\ud800"}, 1)

    assert json.loads(to_json(record))["tags"] == {"t": "a?"}
    assert to_line_protocol(record).encode() == b'm,t=a? f="b?" 1'


def test_points_that_differ_in_fields_alone_have_times_of_their_own():
    one, other = {"src_ip": "10.0.0.1"}, {"src_ip": "10.0.0.2"}
    records = apart(Record("dnsflow", tags, {"rcode": number}, 7) for number, tags in enumerate((one, other, one, one)))

    assert [(r.tags, r.fields["rcode"], r.time) for r in records] == [
        (one, 0, 7), (other, 1, 7), (one, 2, 8), (one, 3, 9)]
