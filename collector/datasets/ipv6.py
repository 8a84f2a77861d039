"""Whether a dataset of connections reads the addresses of IPv6 sockets, and why it must not be loaded without."""

from __future__ import annotations

from guessers.absence import has_ipv6
from kcompat.errors import UnknownField
from kcompat.fields import find
from kcompat.offsets import Offset, Offsets, State

_ADDRESSES = (find("skc_v6_daddr"), find("skc_v6_rcv_saddr"))


def reads_ipv6(name: str, offsets: Offsets) -> bool:
    """False on a kernel without IPv6: built so, or booted so (ipv6.disable=1), where a guess cannot tell.

    Raises UnknownField where there are IPv6 sockets: programs without these fields would have no addresses for them,
    nor for what goes over IPv4 through them, and the canary could not show it.
    """
    told = [offsets.get(field) or Offset.unknown(field, "none", "") for field in _ADDRESSES]
    unknown = {o.field.name: o.reason or "" for o in told if o.state is State.UNKNOWN}
    if unknown and has_ipv6():
        raise UnknownField(name, [*unknown], unknown)
    return all(o.state is State.KNOWN for o in told)
