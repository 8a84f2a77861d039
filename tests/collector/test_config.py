"""What users may set, and what they are told when it is wrong."""

import pytest

from collector.config import Exclusions, NetflowOptions
from kcompat.errors import KcompatError


def test_the_defaults_are_valid():
    options = NetflowOptions("box")

    assert (options.interval_s, options.ephemeral_port, options.loopback) == (60, 32768, False)
    assert options.exclude == Exclusions()


@pytest.mark.parametrize(("setting", "message"), [
    ({"interval_s": 0.9}, "interval of 0.9 s: must be 1 s to 1800 s"),
    ({"interval_s": 1801}, "interval of 1801 s"),
    ({"interval_s": float("nan")}, "interval of nan s"),
    ({"ephemeral_port": -1}, "ephemeral port -1"),
    ({"ephemeral_port": 65536}, "ephemeral port 65536"),
    ({"max_flows": 0}, "at most 0 flows"),
    ({"host": ""}, "host name is empty"),
])
def test_a_wrong_option_is_named(setting, message):
    with pytest.raises(KcompatError, match=message):
        NetflowOptions(**{"host": "box", **setting})


@pytest.mark.parametrize("interval_s", [1, 1800])
def test_the_interval_bounds_are_inclusive(interval_s):
    assert NetflowOptions("box", interval_s=interval_s).interval_s == interval_s


def test_exclusions_are_parsed():
    exclusions = Exclusions.parse(["cidr=10.0.0.0/8", "cidr = fd00::/8", "port=22", "process=sshd",
                                   "process=systemd-resolved", "direction=incoming"])

    assert len(exclusions.cidrs) == 2
    assert exclusions.ports == {22}
    assert exclusions.processes == {"sshd", "systemd-resolved", "systemd-resolve"}
    assert exclusions.directions == {"incoming"}


@pytest.mark.parametrize(("rule", "message"), [
    ("port", "expected one of"), ("port=", "expected one of"), ("user=root", "expected one of"),
    ("port=0", "1 to 65535"), ("port=65536", "1 to 65535"), ("port=ssh", "1 to 65535"), ("port=²", "1 to 65535"),
    ("direction=up", "incoming or outgoing"), ("cidr=10.0.0.1/8", "has host bits set"), ("cidr=ten", "does not appear"),
])
def test_a_wrong_exclusion_is_named(rule, message):
    with pytest.raises(KcompatError, match=message) as error:
        Exclusions.parse([rule])

    assert repr(rule) in str(error.value)
