"""Rules for flows that nobody wants."""

import pytest

from collector.exclusions import Exclusions
from kcompat.errors import KcompatError


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
