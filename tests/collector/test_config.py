"""What users may set, and what they are told when it is wrong."""

import pytest

from collector.config import Options, endpoint, seconds
from collector.config_reading import BadConfig, Given, read


def test_the_defaults_are_what_an_empty_configuration_says():
    assert read() == Options()
    assert (Options().interval_s, Options().ephemeral_port, Options().loopback) == (60, 32768, False)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("interval_s", 0.9, "interval_s = 0.9: must be greater than or equal to 1"),
    ("interval_s", 1801, "interval_s = 1801: must be less than or equal to 1800"),
    ("interval_s", float("nan"), "interval_s = nan"),
    ("interval_s", "1 fortnight", "expected seconds, or a time like 90s"),
    ("ephemeral_port", -1, "ephemeral_port = -1"),
    ("ephemeral_port", 65536, "ephemeral_port = 65536"),
    ("max_flows", 0, "max_flows = 0"),
    ("host", "", "host = ''"),
    ("datasets", [], "datasets: "),
    ("offsets.source", "nowhere", "offsets.source = 'nowhere': must be 'auto', 'db', 'btf', 'dwarf' or 'guess'"),
])
def test_a_wrong_value_is_named_with_where_it_was_set(key, value, message):
    with pytest.raises(BadConfig) as error:
        read(flags=[Given("--here", key, value)])

    assert str(error.value).startswith("--here: ") and message in str(error.value)


@pytest.mark.parametrize("interval_s", [1, 1800])
def test_the_interval_bounds_are_inclusive(interval_s):
    assert read(flags=[Given("--interval", "interval_s", interval_s)]).interval_s == interval_s


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("90s", 90), ("1m30s", 90), ("1m 30s", 90), ("0.5h", 1800),
                                             ("500ms", 0.5), ("2.5", 2.5)])
def test_times_are_written_with_units_or_without(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "s", "1x", "-1", "1s2", "1 m m", "m1", "1..5s"])
def test_a_wrong_time_is_none(text):
    with pytest.raises(ValueError, match="expected seconds"):
        seconds(text)


@pytest.mark.parametrize(("text", "host", "port"), [
    ("9435", "127.0.0.1", 9435), (":9435", "127.0.0.1", 9435), ("0.0.0.0:80", "0.0.0.0", 80),
    ("[::1]:9435", "::1", 9435), ("localhost:9435", "localhost", 9435)])
def test_a_port_alone_is_of_the_loopback_interface(text, host, port):
    assert endpoint(text) == (host, port)


@pytest.mark.parametrize("text", ["", "x", "host", "::1:80", "host:0", "host:65536", "host:80/path", "[::1]", "a b:80"])
def test_a_wrong_endpoint_is_told(text):
    with pytest.raises(BadConfig, match="expected HOST:PORT"):
        read(flags=[Given("--here", "metrics.listen", text)])
