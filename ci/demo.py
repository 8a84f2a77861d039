"""The whole line on this machine, through the command as a user would: offsets, traffic between namespaces, flows."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ci import traffic

REPOSITORY = Path(__file__).resolve().parent.parent
KCOMPAT = Path(sys.executable).with_name("kcompat")
# Of the project, so that a second run finds what the first one learnt, and no other database is touched.
DATABASE = Path(os.environ.get("KCOMPAT_DEMO_DB") or REPOSITORY / ".cache" / "offsets.db")
DEADLINE_S = 60.0
_PATIENCE_S = 10.0
# Both ends of a wire of our own, in namespaces of our own: no other network is touched.
ADDRESSES = {"a": ("10.213.0.1", "fd00:213::1"), "b": ("10.213.0.2", "fd00:213::2")}


class Failed(Exception):
    """The demonstration did not show what it should; the message says what."""


def main() -> int:
    if os.geteuid() != 0:
        print("the demonstration loads BPF and makes network namespaces: run it as root", file=sys.stderr)
        return 2
    DATABASE.parent.mkdir(parents=True, exist_ok=True)
    # As Ctrl-C does, so that cleaning up is in one place.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with TemporaryDirectory(prefix="kcompat-demo-") as directory:
            offsets()
            flows(Path(directory))
    except Failed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def offsets() -> None:
    """The first run guesses, the next ones remember: the database decides."""
    state = {s["name"]: s["state"] for s in json.loads(_kcompat("info", "--json", capture=True))["sources"]}
    # 1: some field stays unknown, as those do that only a kprobe can show where there are none.
    _kcompat("resolve" if state["db"] == "yes" else "guess", allowed=(0, 1))


def flows(directory: Path) -> None:
    records, lines = directory / "flows.jsonl", directory / "flows.lp"
    with wire() as names, _collecting(directory, f"jsonl:{records.name}", f"lineproto:{lines.name}", "table"):
        expected = exchange(*names)
    print("\n$ cat flows.lp   # the same flows in InfluxDB line protocol")
    print(lines.read_text(), end="")
    compare([json.loads(line) for line in records.read_text().splitlines()], expected)


def compare(records: Sequence[dict[str, Any]], expected: dict[str, dict[str, int]]) -> None:
    """What the flows of our own wire say, against what the programs at its ends counted. Raises Failed."""
    ours = [address for pair in ADDRESSES.values() for address in pair]
    wrong = []
    print("\n" + f"{'sent over the wire':26}{'counted by the program':>24}{'seen by kcompat':>18}")
    for what, count, seen in traffic.compare(records, expected, ours):
        print(f"{what:26}{count:24}{seen:18}{'' if seen == count else '   WRONG'}")
        if seen != count:
            wrong.append(what)
    if wrong:
        raise Failed(f"not what was sent: {', '.join(wrong)}")


@contextmanager
def wire() -> Iterator[tuple[str, str]]:
    """Two network namespaces and a veth pair between them; gone afterwards, whatever happens."""
    names = {end: f"kcompat-demo-{end}-{os.getpid()}" for end in ADDRESSES}
    with ExitStack() as stack:
        for name in names.values():
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        # Made inside, so that it never shows in this machine's own namespace and goes with theirs.
        _ip("-n", names["a"], "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", names["b"])
        for end, name in names.items():
            v4, v6 = ADDRESSES[end]
            _ip("-n", name, "address", "add", f"{v4}/24", "dev", "wire")
            _ip("-n", name, "address", "add", f"{v6}/64", "dev", "wire", "nodad")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "wire", "up")
        yield names["a"], names["b"]


@contextmanager
def _collecting(directory: Path, *outputs: str) -> Iterator[None]:
    """A collector that writes into `directory`, and flushes once, when the traffic is over."""
    command = [str(KCOMPAT), "--db", str(DATABASE), "collect", "--interval", "60",
               *(part for output in outputs for part in ("--output", output))]
    print(f"\n$ kcompat collect {' '.join(command[6:])}", flush=True)
    environment = os.environ | {"KCOMPAT_RUN": str(directory / "run")}  # beside a collector that is here for good
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=directory, env=environment) as process:
        try:
            _wait_for(process, b"collecting")
            yield
            time.sleep(0.3)  # the closing handshakes' last segments
            process.terminate()
            _, rest = process.communicate(timeout=_PATIENCE_S)
        except BaseException:
            process.kill()
            raise
    print(rest.decode(errors="replace"), end="", flush=True)
    if process.returncode:
        raise Failed(f"kcompat collect ended with {process.returncode}")


def _wait_for(process: subprocess.Popen[bytes], word: bytes) -> None:
    """Passes standard error on until the word stands in it."""
    assert process.stderr is not None
    descriptor, said, end = process.stderr.fileno(), b"", time.monotonic() + DEADLINE_S
    while word not in said:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        part = os.read(descriptor, 4096) if ready else b""
        if not part:
            raise Failed("kcompat collect did not start" if ready else "kcompat collect is too slow to start")
        said += part
        print(part.decode(errors="replace"), end="", flush=True)


def exchange(client: str, server: str) -> dict[str, dict[str, int]]:
    """Runs both ends; returns what the client counted, by ``tcp4 PORT`` and the like."""
    with _python(server, "serve", stdin=subprocess.PIPE) as listening:
        try:
            assert listening.stdout is not None
            ports = json.loads(listening.stdout.readline())
            with _python(client, "drive", json.dumps(ports)) as driving:
                out, _ = driving.communicate(timeout=DEADLINE_S)
        finally:
            listening.terminate()
    if driving.returncode:
        raise Failed("the client of the demonstration failed")
    counted: dict[str, dict[str, int]] = json.loads(out)
    return counted


def _python(namespace: str, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "ci.demo", *arguments]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


def serve() -> None:
    """The far end, until standard input closes."""
    print(json.dumps(traffic.serve(ADDRESSES["b"])), flush=True)
    # Whoever started us holds the other end: it closes when they are gone.
    select.select([sys.stdin], [], [], 2 * DEADLINE_S)


def _kcompat(*arguments: str, capture: bool = False, allowed: tuple[int, ...] = (0,)) -> str:
    if not capture:
        print(f"$ kcompat {' '.join(arguments)}", flush=True)
    done = subprocess.run([KCOMPAT, "--db", DATABASE, *arguments], cwd=REPOSITORY, text=True, check=False,
                          stdout=subprocess.PIPE if capture else None, timeout=DEADLINE_S)
    if done.returncode not in allowed:
        raise Failed(f"kcompat {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout or ""


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    if done.returncode:
        raise Failed(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve()
    elif sys.argv[1:2] == ["drive"]:
        print(json.dumps(traffic.drive(ADDRESSES["b"], json.loads(sys.argv[2]))))
    else:
        sys.exit(main())
