"""Recorded kernels changed as no compiler was asked to: a field moved in every window, a value forged, a byte lost."""

from dataclasses import replace

from guessers.tape import Followed, Tape
from kcompat.fields import find

NET, SOCKET, PRIVATE, FILES, FDT = map(find, ("skc_net", "sk_socket", "private_data", "task_struct.files",
                                              "files_struct.fdt"))
TUPLES = tuple(map(find, ("tuplehash0.tuple", "tuplehash1.tuple")))
ITER = find("msghdr.msg_iter")


def whole(field):
    """How many bytes have to stay together for the field to be one: an iov_iter is wherever its first byte is."""
    return 1 if field is ITER else min(field.widths)


class Shift:
    """`width` bytes at `at` change places with the `by` bytes behind them."""

    def __init__(self, at, width, by):
        self.at, self.width, self.by, self.end = at, width, by, at + width + by

    def window(self, data, base=0):
        begin, cut, end = base + self.at, base + self.at + self.width, base + self.end
        return data[:begin] + data[cut:end] + data[begin:cut] + data[end:]

    def place(self, offset, width):
        """Where what was there is now; None for what was torn apart."""
        if offset + width <= self.at or offset >= self.end:
            return offset
        if self.at <= offset and offset + width <= self.at + self.width:
            return offset + self.by
        return offset - self.width if offset >= self.at + self.width and offset + width <= self.end else None


class Swaps:
    """Blocks of an object that change places, one pair after the other: (one, other, width)."""

    def __init__(self, pairs):
        self.pairs = pairs

    def window(self, data, base=0):
        made = bytearray(data)
        for a, b, width in self.pairs:
            if base + max(a, b) + width <= len(made):
                one, other = slice(base + a, base + a + width), slice(base + b, base + b + width)
                made[one], made[other] = made[other], made[one]
        return bytes(made)

    def place(self, offset, width):
        at = list(range(offset, offset + width))
        for a, b, size in self.pairs:
            at = [p - a + b if a <= p < a + size else p - b + a if b <= p < b + size else p for p in at]
        return at[0] if at == list(range(at[0], at[0] + width)) else None


def moved(recording, base, truth, shift):
    """The recording with the change in everything that is a `base`, and in what was looked up by place there."""
    haul = changed(recording.haul, base, truth, shift.window)
    if base == "sk_buff":
        haul = replace(haul, packets=[replace(p, behind=tuple(
            (to, data) for at, data in p.behind if (to := shift.place(at, 8)) is not None)) for p in haul.packets])
    if base == "msghdr" and haul.messages:
        haul = replace(haul, messages=replace(
            haul.messages,
            followed=[replace(s, followed=to) for s in haul.messages.followed
                      if (to := shift.place(s.followed, 8)) is not None],
            received=[replace(r, iterators=tuple(r.address + shift.place(i - r.address, 1) for i in r.iterators))
                      for r in haul.messages.received]))
    return replace(recording, haul=haul)


def changed(haul, base, truth, change):
    """The haul with `change(window)` for every window of that kind, on the tapes too."""
    if base == "nf_conntrack_tuple":
        def both(window):
            for tuple_ in TUPLES:
                window = change(window, truth[tuple_])
            return window
        return changed(haul, "nf_conn", truth, both)
    here = addresses(haul, base, truth)

    def of(sample):
        return replace(sample, window=change(sample.window))

    def tape(one):
        return Tape({(at, size): change(data) if data and size > 8 and at in here else data
                     for (at, size), data in one.held.items()})

    def files(one):
        walks = [replace(w, tables=[replace(t, tape=tape(t.tape)) for t in w.tables]) for w in one.walks]
        if base == "task_struct":
            walks = [replace(w, before=change(w.before), again=change(w.again), after=change(w.after)) for w in walks]
        return replace(one, walks=walks, tape=tape(one.tape))

    def each(samples, wanted):
        return [of(s) for s in samples] if base == wanted else samples

    made = replace(haul, followed={n: Followed(f.samples, tape(f.tape)) for n, f in haul.followed.items()},
                   files=haul.files and files(haul.files),
                   flows={name: each(flows, name) for name, flows in haul.flows.items()})
    if base == "sock":
        made.socks = [replace(s, sample=of(s.sample)) for s in haul.socks]
    elif base == "nf_conn":
        made.tracked = [replace(t, sample=of(t.sample)) for t in haul.tracked]
    elif base == "sk_buff":
        made.packets = [replace(p, sent=of(p.sent), waiting=p.waiting and change(p.waiting)) for p in haul.packets]
    elif base == "msghdr" and haul.messages:
        made.messages = replace(haul.messages, plain=[replace(s, data=change(s.data)) for s in haul.messages.plain],
                                followed=[replace(s, data=change(s.data)) for s in haul.messages.followed])
    return made


def addresses(haul, base, truth):
    """Where objects of that kind lie, as far as the judge's own offsets lead there."""
    sockets = {word(s.sample.window, truth[SOCKET]) for s in haul.socks}
    found = {"net": {word(s.sample.window, truth[NET]) for s in haul.socks}, "socket": sockets}
    if haul.files:
        tapes = [haul.files.tape, *(t.tape for w in haul.files.walks for t in w.tables)]
        read = [(at, size, data) for tape in tapes for (at, size), data in tape.held.items() if data]
        whole = [(at, data) for at, size, data in read if size > 8]
        found["task_struct"] = {haul.files.task}
        found["file"] = {word(data, 0) for _, size, data in read if size == 8}  # out of an array of descriptors
        sockets |= {word(data, truth[PRIVATE]) for at, data in whole if at in found["file"]}
        found["files_struct"] = {word(w.after, truth[FILES]) for w in haul.files.walks}
        found["files_struct"] |= {word(data, truth[FILES]) for at, data in whole if at == haul.files.task}
        found["fdtable"] = {word(data, truth[FDT]) for at, data in whole if at in found["files_struct"]}
    return found.get(base, set())


def word(window, at):
    return int.from_bytes(window[at:at + 8], "little")
