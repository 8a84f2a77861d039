"""The guess against BTF, on whatever kernel this runs: every field of the catalogue, again and again, undisturbed."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guessers import facts
from guessers.conclusions import FOLLOWED
from guessers.guess import guess, replay
from guessers.hooks import BACKENDS
from guessers.recording import dumps, loads
from guessers.search import search, stands
from guessers.verify import verify
from kcompat.capabilities import BTF
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State, Verdict
from kcompat.version import release_version
from tests.kernel import signs
from tests.kernel.conftest import backend_obstacle

log = logging.getLogger(__name__)

NO_NULL = {find("msghdr.msg_iter")}  # its samples hold one address each, in no relation to another's
RUNS = int(os.environ.get("KCOMPAT_GUESS_RUNS", "50"))
REPOSITORY = Path(__file__).resolve().parents[2]
KPROBE_EVENTS = Path("/sys/kernel/tracing/kprobe_events")


def must_have(backend):
    """Whether this kernel has what the backend needs, whatever the backend itself says."""
    if backend == "kprobe":
        return signs.KPROBES
    return release_version(Kernel.running().release) >= release_version("4.17")


def out_of_reach(backends=BACKENDS):
    """Fields that nothing of these backends can lead to on this kernel: they alone may stay open, with that reason."""
    if "kprobe" in backends and must_have("kprobe"):
        return set()
    if release_version(Kernel.running().release) >= release_version("6.16"):
        return {find("msg_iter")}  # tcp_sendmsg_locked became a tracepoint
    return {f for f in CATALOGUE if f.base == "msghdr"}


def disagreements(offsets, oracle, backends=BACKENDS):
    """Fields where guess and BTF differ, the guess being sure or not."""
    return {f.name: (offsets[f].offset, offsets[f].candidates, offsets[f].reason, oracle[f].offset)
            for f in CATALOGUE if not (same(offsets[f], oracle[f]) or (untold(f, oracle) and honest(offsets[f])))
            and not (f in out_of_reach(backends) and offsets[f].reason.startswith("no hook for it here"))}


def untold(field, oracle):
    """What nobody can tell here, the judge included: a number that is a struct on this kernel, as nf_conn.timeout."""
    return field in signs.UNTOLD or oracle[field].state is State.UNKNOWN


def honest(guessed):
    """What no experiment here can tell is not known, with the reason: neither an offset nor a claim of absence."""
    return guessed.verdict is Verdict.UNVERIFIED and guessed.offset is None and bool(guessed.reason)


def same(guessed, true):
    if not guessed.same_place(true) or guessed.verdict not in (Verdict.OK, Verdict.ABSENT):
        return False
    # A field may be read wider than it is only where what it reads beside itself is always zero.
    return guessed.width == true.width


def wrong(offsets, oracle):
    """Fields the guess is sure of and BTF denies."""
    return {f.name: (o.offset, oracle[f].offset) for f, o in offsets.items()
            if o.state is State.KNOWN and o.offset != oracle[f].offset}


def test_every_field_equals_btf(guessed, oracle):
    offsets = guessed[0].offsets
    assert not wrong(offsets, oracle)
    assert not disagreements(offsets, oracle)


def show_liars(found, oracle):
    """Of routing keys and socks those that hold something else than they should where an open field is: for the log."""
    haul = found.recording.haul
    for sample in [*haul.flows["flowi4"], *haul.flows["flowi6"], *(s.sample for s in haul.socks)]:
        for field, codes in sample.values.items():
            at = oracle[field].offset
            if found.offsets[field].offset is None and at is not None and not stands(sample, codes, at):
                log.warning("%s of %s is none of %s in %s", field.name, sample.label, [c.hex() for c in codes],
                            sample.window.hex())


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_field_equals_btf_by_hooks_of_one_kind(backend, oracle):
    if reason := backend_obstacle(backend):
        assert not must_have(backend), reason
        pytest.skip(f"this kernel has no {backend} backend: {reason}")
    found = guess(backends=(backend,))
    show_liars(found, oracle)
    assert not wrong(found.offsets, oracle)
    if backend == "rawtp" and "rawtp__send_length" not in found.hooks:
        # Before 6.3 no raw tracepoint hands over UDP and raw sockets; what only they tell apart stays open.
        unsure = {f: (o.candidates, o.reason) for f, o in found.offsets.items() if o.state is State.UNKNOWN}
        expected = out_of_reach((backend,)) | signs.UNTOLD | set(map(find, (
            "sk_type", "sk_protocol", "skc_state", "skc_family", "inet_saddr", "skc_rcv_saddr", "skc_daddr")))
        assert not {f.name: why for f, why in unsure.items() if f not in expected}
        assert all(reason for _, reason in unsure.values())
        return
    assert not disagreements(found.offsets, oracle, (backend,))


@pytest.mark.thorough  # of guests those that need it do it in every guess
def test_what_came_is_told_from_what_was_acknowledged_where_they_are_equal(monkeypatch, oracle):
    """As in every connection of a slow machine before 4.8: rcv_wup is rcv_nxt, and cannot be set apart from it."""
    monkeypatch.setattr(facts, "_BEHIND", 0)
    field = find("rcv_nxt")
    if not sampled_directly():
        pytest.skip("nothing here names a TCP socket that is closed")

    found = guess().offsets[field]

    assert found.same_place(oracle[field]), found.evidence


@pytest.mark.thorough
def test_evidence_explains_every_field():
    offsets = guess().offsets
    assert all(o.reason for o in offsets.values() if o.state is not State.KNOWN)
    for field, offset in offsets.known().items():
        assert offset.evidence["samples"] >= 2, field
        assert offset.evidence["hooks"], field
        assert offset.evidence["expected_false_positives"] < 0.01, field
        # Where no values could be exchanged, the number of them says so.
        assert offset.evidence["null_survivors"] == (-1 if field in NO_NULL else 0), field
        # The number of places that chance would leave is measured or derived, and says from what.
        assert field not in FOLLOWED - {find("msghdr.msg_iter.ubuf")} or offset.evidence["chance"], field
        assert {"held_out", "distinct_values", "candidates_by_sample", "candidates", "after_constraints",
                "runner_up"} <= set(offset.evidence), field


@pytest.mark.thorough
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_a_recorded_guess_is_made_again_from_the_file(masked):
    """Verdicts and evidence are equal; masked the verdicts are, but for a number that looked like an address."""
    found = guess()
    places = {f: o.offset for f, o in found.offsets.known().items()}
    data = dumps(found.recording, places if masked else None)
    again = replay(loads(data))
    if masked:
        differ = {f.name: again.offsets[f].reason for f, o in found.offsets.items()
                  if not again.offsets[f].same_place(o)}
        assert len(differ) <= 1 and all(differ.values()), differ
    else:
        assert again.offsets == found.offsets
        assert {f: o.evidence for f, o in again.offsets.items()} == {f: o.evidence for f, o in found.offsets.items()}
    assert again.recording.kernel == Kernel.running() and again.hooks == found.hooks
    assert again.stats.samples == found.stats.samples > 0
    assert len(data) < 500_000


@pytest.mark.thorough
def test_many_runs_beside_a_busy_neighbour(oracle):
    with busy_neighbour(200):
        for run in range(RUNS):
            offsets = guess().offsets
            assert not disagreements(offsets, oracle), f"run {run}"


@pytest.mark.thorough
def test_two_guesses_at_once(oracle):
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(guess) for _ in range(2)]
        for one in both:
            assert not disagreements(one.result().offsets, oracle)


@pytest.mark.thorough
def test_with_ipv6_switched_off_by_sysctl(oracle):
    """As on a host with net.ipv6.conf.all.disable_ipv6=1; in a namespace of our own, the real host is left alone."""
    if not (signs.IPV6 and signs.NET_NS):
        pytest.skip("this kernel has no IPv6 to switch off, or no namespace to do it in")
    code = "from pathlib import Path\n" + "\n".join(
        f"Path('/proc/sys/net/ipv6/conf/{name}/disable_ipv6').write_text('1')" for name in ("all", "default", "lo"))
    assert not disagreements_of(guess_elsewhere(["unshare", "--net"], code), oracle)


@pytest.mark.thorough
def test_without_ipv6_sockets_of_another_family_tell_the_family(oracle):
    told = guess_elsewhere([], "import guessers.experiments\nguessers.experiments.has_ipv6 = lambda: False")
    family = find("skc_family")
    assert told[family.name][:3] == ["ok", oracle[family].offset, oracle[family].width]
    assert all(offset == oracle[find(name)].offset for name, (verdict, offset, *_) in told.items() if verdict == "ok")


@pytest.mark.thorough
def test_as_first_process_of_a_pid_namespace(oracle):
    assert not disagreements_of(guess_elsewhere(["unshare", "--pid", "--fork", "--mount-proc"]), oracle)


@pytest.mark.thorough
def test_where_no_namespace_can_be_made(oracle):
    """Then the experiments run on the host's loopback, with mapped addresses and IPv6 addresses that are nobody's."""
    code = ("import guessers.namespace\n"
            "def refused(cls):\n    raise PermissionError(1, 'unshare')\n"
            "guessers.namespace.Netns.fresh = classmethod(refused)")
    told = guess_elsewhere([], code)
    # Nobody's connections are tracked for a guess's sake.
    untracked = {f.name for f in CATALOGUE if f.module} | {"sk_buff._nfct"}
    assert {told[name][0] for name in untracked} == {"unverified"}
    assert all("network namespace of our own" in told[name][3] for name in untracked)
    assert not disagreements_of({n: answer for n, answer in told.items() if n not in untracked}, oracle)


@pytest.mark.thorough
def test_never_opens_btf():
    code = ("import sys\nopened = []\n"
            "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)")
    told = guess_elsewhere([], code, after="assert any('kcompat' in p for p in opened), opened\n"
                           f"assert not [p for p in opened if p.startswith({str(BTF)!r})], opened")
    assert told


@pytest.mark.thorough
def test_interrupted_leaves_nothing_attached():
    guess()
    before = resources()
    for delay in (0.01, 0.03, 0.05):
        timer = threading.Timer(delay, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            while True:
                guess()
        timer.join()
        deadline = time.monotonic() + 10
        while resources() != before and time.monotonic() < deadline:  # the thread's very end comes a moment later
            time.sleep(0.01)
    assert resources() == before


def test_no_word_in_the_kernel_log(guessed):
    """Following a pointer that is none can make a kernel warn: it did on 5.10, for addresses no CPU has."""
    _, said = guessed
    assert not [line for line in said if b"WARNING" in line or b"cut here" in line or b"fault" in line], said


def test_verify_accepts_what_is_true(oracle):
    held = verify(Kernel.running(), list(oracle.known().values()))
    assert all(held.values())
    # What the event is too small to show is not in its answer.
    assert {f.struct for f in held} >= {"sock_common", "sock", "inet_sock", "tcp_sock", "net", "sk_buff", "socket",
                                         "file", "task_struct", "files_struct", "fdtable"} - {
                                             f.struct for f in signs.UNTOLD}
    assert not {f for f in held if f.struct in ("nf_conn", "nf_conntrack_tuple")}


@pytest.mark.thorough
@pytest.mark.parametrize("distance", [-8, -4, 4, 8, 64])
def test_verify_refutes_what_is_shifted(oracle, distance):
    head = find("sk_buff.head")  # what leads to the others of sk_buff stays where it is
    missed = {f.name for f in verify(Kernel.running(), list(oracle.known().values())) if f is not head}
    known = [o for o in oracle.known().values() if o.field is head or o.offset + distance >= 0]
    missed &= {o.field.name for o in known if o.field not in signs.UNTOLD}
    shifted = [o if o.field is head else Offset.known(o.field, o.offset + distance, "test", width=o.width)
               for o in known]
    for _ in range(3):  # a neighbour may hold the same value in all of a dozen sockets, one time in twenty
        missed -= {f.name for f in refuted(shifted)}
        if not missed:
            return
    assert not missed


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "offset"), [("skc_dport", 14), ("sk_buff.head", 24), ("sk_buff.mark", 0)])
def test_verify_refutes_one_of_many(oracle, name, offset):
    field = find(name)
    offsets = [Offset.known(field, offset, "test") if f is field else o for f, o in oracle.known().items()]
    assert refuted(offsets) == {field}


@pytest.mark.thorough
def test_verify_refutes_what_connections_have_twice(oracle):
    """A copy of daddr in a routing key, the source address beside the bound one: other sockets tell them apart."""
    known = oracle.known()
    connections = [s.sample for s in guess().recording.haul.socks if "TCP" in s.sample.label]
    copies = {f: Offset.known(f, at, "test", width=o.width) for f, o in known.items() if f.base == "sock"
              and f.width > 1 and f not in FOLLOWED for at in search(f, connections).candidates if at != o.offset}
    assert {f.member for f in copies} >= {"skc_daddr", "skc_rcv_saddr", "inet_saddr"}
    if not sampled_directly():
        pytest.skip("nothing here names a UDP socket")
    assert refuted([copies.get(f, o) for f, o in known.items()]) >= copies.keys()


def sampled_directly():
    return must_have("kprobe") or release_version(Kernel.running().release) >= release_version("6.3")


@pytest.mark.thorough
def test_verify_believes_neither_of_two_at_one_place(oracle):
    """Nothing in a handful of packets shows the one or the other; that both are there cannot be."""
    mark, other = find("nf_conn.mark"), find("nf_conn.status")
    at = oracle[other].offset
    assert refuted([oracle[other], Offset.known(mark, at, "test", width=4)]) == {mark, other}


def refuted(offsets):
    return {field for field, held in verify(Kernel.running(), offsets).items() if not held}


class busy_neighbour:
    """Another process that opens and closes connections on the host's loopback, so many a second."""

    def __init__(self, rate):
        self.code = f"""
import socket, time
server = socket.create_server(("127.0.0.1", 0), backlog=500)
print(server.getsockname()[1], flush=True)
begun, count = time.monotonic(), 0
while True:
    with socket.create_connection(server.getsockname()) as client, server.accept()[0] as accepted:
        client.send(b"x" * 100)
        accepted.recv(100)
    count += 1
    time.sleep(max(0, begun + count / {rate} - time.monotonic()))
"""

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, "-c", self.code], stdout=subprocess.PIPE)
        assert self.process.stdout.readline().strip().isdigit()
        return self

    def __exit__(self, *_):
        assert self.process.poll() is None, "the neighbour ended before its time"
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def guess_elsewhere(prefix, before="", after=""):
    """{field: [verdict, offset, width, reason]} of a guess in another process, between two pieces of Python."""
    code = "\n".join([before, "import json", "from guessers.guess import guess", "found = guess().offsets",
                      "told = {f.name: [str(o.verdict), o.offset, o.width, o.reason] for f, o in found.items()}", after,
                      "print(json.dumps(told))"])
    done = subprocess.run([*prefix, sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True,
                          timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def disagreements_of(told, oracle):
    return {name: answer for name, answer in told.items()
            if answer[1:3] != [oracle[find(name)].offset, oracle[find(name)].width]
            and not (untold(find(name), oracle) and answer[:2] == ["unverified", None] and answer[3])
            and not (find(name) in out_of_reach() and answer[3].startswith("no hook for it here"))}


def resources():
    """Descriptors, threads and namespaces of this process: programs, maps and hooks are descriptors, but for tracefs.

    With a namespace its tracked connections go.
    """
    events = KPROBE_EVENTS.read_text().splitlines() if KPROBE_EVENTS.exists() else []
    events = [line for line in events if f"kcompat_{os.getpid()}" in line]
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), namespaces(), events


def namespaces():
    """The network namespaces that this process's threads are in."""
    found = set()
    for path in Path("/proc/self/task").glob("*/ns/net"):
        with contextlib.suppress(OSError):
            found.add(path.readlink())
    return found
