"""Feeds the parsers of HTTP/1, HTTP/2, DNS and TLS what atheris makes up: no exception, no growth, no waiting.

``python -m benchmarks.fuzz_protocols [--seconds N] [TARGET]...``, of the extra ``fuzz``. Each target is a process of
its own, guided by what of the parser its inputs reach; what it found interesting stays in ``build/fuzz`` for next time.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from benchmarks.measure import REPOSITORY

# By the clock: on a busy machine an input may wait for its turn.
SLOWEST_S = 60
_MEMORY_MB = 2048
_LONGEST = 1 << 14
_GET = b"GET /a?b HTTP/1.1\r\nHost: x.org\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
# HEADERS: GET, http, / and /a to be kept, x-headers; 200 and DATA.
_ASKED = bytes.fromhex("000014010400000001" "828684" "44022f61" "400a" + b"x-headers".hex() + "00" "0130")
_TOLD = bytes.fromhex("000001010400000001" "88" "000005000100000001") + b"hello"
_SETTINGS = bytes.fromhex("000006040000000000" "000100001000")
_QUERY = bytes.fromhex("1234 0100 0001 0000 0000 0001 0178 036f7267 00 0001 0001 00 0029 04d0 01000000 0000")
_ANSWER = bytes.fromhex("1234 8183 0001 0001 0000 0000 0178 036f7267 00 0001 0001"
                        "c00c 0001 0001 0000003c 0004 7f000001")
_HELLO = (bytes.fromhex("1603010040 0100003c 0303" + "00" * 32 + "00 0002 1301 01 00 0011 0000 000d 000b 00 0008")
          + b"a.b.test")


def _talk(is_http2: bool) -> Callable[[bytes], None]:
    """Bytes of both sides: before each piece, whose it is and how much is missing behind it, and how long it is."""
    from collector.protocols import exchange as exchanges
    from collector.protocols import http1, http2

    def feed(data: bytes) -> None:
        connection = http2.Connection() if is_http2 else http1.Connection()
        at = now_ns = 0
        while at + 2 <= len(data):
            how, size = data[at], data[at + 1] * (8 if data[at] & 2 else 1)
            piece, missing, now_ns = data[at + 2:at + 2 + size], how >> 4 if how & 4 else 0, now_ns + 1
            at += 2 + size
            found = (connection.response if how & 1 else connection.request)(piece, now_ns, missing) or ()
            for exchange in found:
                assert exchange.path.isprintable() and 100 <= exchange.status_code <= 599, exchange
                assert 0 <= exchange.latency_ns <= now_ns and len(exchange.path) <= exchanges.LONGEST_LINE
        if isinstance(connection, http2.Connection):
            assert len(connection._streams) <= http2.MAX_STREAMS
        else:
            assert len(connection._asked) <= http1.MAX_PIPELINED

    return feed


def _dns() -> Callable[[bytes], None]:
    from collector.protocols import dns

    def feed(data: bytes) -> None:
        message = dns.parse(data)
        if message is None:
            return
        name, kind = dns.question_text(message.question)
        assert name.isprintable() and kind.isprintable(), (name, kind)
        assert -1 <= message.rcode < 1 << 12 and all(len(address) == 16 for address, _ in message.addresses), message

    return feed


def _tls() -> Callable[[bytes], None]:
    from collector.protocols import tls

    def feed(data: bytes) -> None:
        name = tls.server_name(data)
        assert name is None or (name.isprintable() and 0 < len(name) <= 253), name

    return feed


def _piece(side: int, data: bytes) -> bytes:
    return bytes((side, len(data))) + data


def seeds(target: str) -> Sequence[bytes]:
    """Inputs that a target's parser understands, to begin with."""
    from collector.protocols.http2 import PREFACE

    return {
        "http1": (_piece(0, _GET) + _piece(1, _OK), _piece(0, _GET * 2) + _piece(1, _OK) + _piece(1, _OK[:9]),
                  _piece(0, b"HEAD / HTTP/1.0\r\n\r\n") + _piece(1, b"HTTP/1.1 100 x\r\n\r\n" + _OK)),
        "http2": (_piece(0, PREFACE + _SETTINGS + _ASKED) + _piece(1, _SETTINGS + _TOLD),
                  _piece(0, _ASKED) + _piece(1, _TOLD) + _piece(0, _ASKED.replace(b"\x04\0\0\0\1", b"\x04\0\0\0\3"))),
        "dns": (_QUERY, _ANSWER),
        "tls": (_HELLO, _HELLO[:40]),
    }[target]


TARGETS: dict[str, Callable[[], Callable[[bytes], None]]] = {
    "http1": lambda: _talk(False), "http2": lambda: _talk(True), "dns": _dns, "tls": _tls}


def inside(target: str) -> None:
    """The process that atheris takes over and ends; libFuzzer's flags are its arguments."""
    import atheris

    with atheris.instrument_imports(include=["collector.protocols", "hpack"]):
        feed = TARGETS[target]()
    atheris.Setup(sys.argv, feed)
    atheris.Fuzz()


@click.command(help="Fuzz the protocol parsers; TARGET is any of: " + ", ".join(TARGETS) + ".")
@click.argument("targets", nargs=-1, type=click.Choice(tuple(TARGETS)))
@click.option("--seconds", default=600.0, show_default=True, help="For each target.")
@click.option("--corpus", type=click.Path(path_type=Path), default=REPOSITORY / "build/fuzz", show_default=True)
def main(targets: Sequence[str], seconds: float, corpus: Path) -> None:
    failed = False
    for target in targets or TARGETS:
        there = corpus / target
        there.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds(target)):
            (there / f"seed-{number}").write_bytes(seed)
        done = subprocess.run([
            sys.executable, "-c", f"from benchmarks import fuzz_protocols as f; f.inside({target!r})",
            f"-max_total_time={int(seconds)}", f"-timeout={SLOWEST_S}", f"-rss_limit_mb={_MEMORY_MB}",
            f"-max_len={_LONGEST}", f"-artifact_prefix={corpus}/{target}-", str(there),
        ], cwd=REPOSITORY, capture_output=True, text=True, errors="replace", timeout=seconds + 120, check=False)
        words = done.stderr.splitlines()
        click.echo(f"{target}: {words[-1] if words else 'said nothing'}")
        if done.returncode:
            failed = True
            click.echo("\n".join(words[-40:]), err=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
