"""What a haul shows: samples by object, and the pointers found by following them. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as dc_field

from guessers.conntrack import search_owner, search_tuples
from guessers.files import FILE_FAMILY, conclude_files
from guessers.haul import Haul
from guessers.messages import MESSAGE_FAMILY, conclude_messages
from guessers.pointers import search_netns, search_socket
from guessers.search import Found, Sample
from guessers.skbuff import samples, search_device, search_head
from guessers.tape import Followed, Reader, Tape
from guessers.timeout import search_timeout
from kcompat.fields import Field, find

# Pointers, proved by following them instead of by their value.
FOLLOWED = FILE_FAMILY | MESSAGE_FAMILY | frozenset(map(find, (
    "sk_socket", "skc_net", "net.ns.inum", "sk_buff.dev", "ct_net")))
SOCKET, NAMESPACE, DEVICE, OWNER = "socket", "netns", "device", "owner"


@dataclass(slots=True)
class Findings:
    """Samples for the solver, by base object; what searches of their own found; and what is proved not to be there."""

    samples: dict[str, list[Sample]]
    reached: dict[Field, Found] = dc_field(default_factory=dict)
    absent: dict[Field, str] = dc_field(default_factory=dict)


def conclude(haul: Haul) -> Findings:
    """All there is to conclude, the same each time it is asked: of a live kernel and of a recording of it."""
    head = search_head(haul.packets)
    findings = Findings({"sock": [s.sample for s in haul.socks], **haul.flows,
                         "sk_buff": samples(haul.packets, head.candidates[0] if len(head.candidates) == 1 else None),
                         "nf_conn": [t.sample for t in haul.tracked]})
    found = [head, *search_tuples(haul.tracked), search_timeout(haul.tracked, haul.hz)]
    for name, done in haul.followed.items():
        found += follow(haul, name, done)
    if haul.files:
        of_files, seen = conclude_files(haul.files)
        findings.samples |= seen
        found += of_files
    if haul.messages:
        of_messages, findings.samples["msghdr"], findings.absent = conclude_messages(haul.messages)
        found += of_messages
    findings.reached = {one.field: one for one in found}
    return findings


def follow(haul: Haul, name: str, done: Followed) -> list[Found]:
    """One search that follows pointers, over the samples there were. Raises KeyError for a name that is none."""
    return {
        SOCKET: lambda: [search_socket(haul.socks[:done.samples], done.tape.read, haul.machine)],
        NAMESPACE: lambda: [*search_netns(haul.socks[:done.samples], done.tape.read, haul.machine)],
        DEVICE: lambda: [search_device(haul.packets[:done.samples], done.tape.read, haul.machine)],
        OWNER: lambda: [search_owner(haul.tracked[:done.samples], done.tape.read, haul.machine)],
    }[name]()


def follow_now(haul: Haul, name: str, read: Reader) -> list[Found]:
    """The same while what the pointers lead to is alive; what was read is kept in the haul."""
    count = len(haul.packets) if name == DEVICE else len(haul.tracked) if name == OWNER else len(haul.socks)
    done = haul.followed[name] = Followed(count, Tape.of(read))
    try:
        return follow(haul, name, done)
    finally:
        done.tape.stop()
