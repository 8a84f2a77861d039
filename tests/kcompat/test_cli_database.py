"""`kcompat db` as a user types it: what it prints, its exit status, one line when something is wrong."""

import functools
import hashlib
import http.server
import json
import os
import re
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from contextlib import closing

import httpx
import pytest

from kcompat.cli_database_exchange import FORMATS
from kcompat.errors import KcompatError
from kcompat.fields import find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from offset_db import exchange, exchange_pull
from offset_db.db import Database
from tests.kcompat.cli_tools import COMMAND, environment, kcompat, one_line

OLD, NEW = Kernel("a" * 40, "4.15.0-42-generic", "", "x86_64"), Kernel("b" * 40, "5.10.0-1-amd64", "", "x86_64")


@pytest.fixture
def filled(tmp_path):
    """A database of two kernels, the second with everything 16 bytes further."""
    with Database.open(tmp_path / "offsets.db") as db:
        for kernel, more in ((OLD, 0), (NEW, 16)):
            places = {"skc_daddr": more, "srtt_us": 1600}
            db.record(kernel, [Offset.known(find(name), at, "btf") for name, at in places.items()])
    return tmp_path / "offsets.db"


@pytest.fixture
def run(filled, tmp_path):
    def command(*arguments, status=0):
        done = kcompat("--db", filled, "db", *arguments, home=tmp_path)
        assert done.returncode == status, done.stderr
        return done

    return command


def test_the_formats_are_those_there_are():
    assert FORMATS == exchange.FORMATS


@pytest.mark.parametrize("arguments, told", [
    (("kernels", "--release", "4.*"), "4.15.0-42-generic  x86_64   ubuntu        aaaaaaaaaaaa      2"),
    (("where", "skc_daddr=16"), "5.10.0-1-amd64  x86_64   bbbbbbbbbbbb"),
    (("diff", "aaaaaa", "5.10.0-1-amd64"), "sock_common.skc_daddr  0"),
    (("history", "skc_daddr"), "5.10         16  moved  ████████████"),
    (("verify",), "sound: the file, and every layout in it"),
    (("vacuum",), "bytes before"),
    (("export", "--format", "header", "4.15.0-42-generic"), "#define OFFSET_tcp_sock__srtt_us 1600\n"),
])
def test_it_prints(run, arguments, told):
    out = run(*arguments).stdout

    assert told in out
    assert "export" in arguments or max(map(len, out.splitlines())) < 80


@pytest.mark.parametrize("arguments, key", [
    (("kernels",), "kernels"), (("where", "skc_daddr=0"), "kernels"), (("diff", "aaaaaa", "bbbbbb"), "fields"),
    (("history", "srtt_us"), "history"), (("verify",), "faults"), (("vacuum",), "after"), (("show",), "kernels")])
def test_json(run, arguments, key):
    assert key in json.loads(run(*arguments, "--json").stdout)


@pytest.mark.parametrize("arguments, status, told", [
    (("where", "skc_daddr"), 2, "is not FIELD=VALUE"), (("kernels", "--state", "known"), 2, "give --field too"),
    (("export", "--format", "btf", "aaaaaa"), 2, "name a file to write"), (("serve", "--port", "0"), 2, "0 is not"),
    (("where", "skc_daddr=foo"), 2, "'foo' is no place"), (("where", "skc_daddr=12abc"), 2, "'12abc' is no place"),
    (("where", "skc_daddr=-5"), 2, "'-5' is no place"), (("where", "sk_type=536 bit 9"), 2, "is no place"),
])
def test_wrong_usage(run, arguments, status, told):
    assert told in " ".join(run(*arguments, status=status).stderr.split())


@pytest.mark.parametrize("arguments, status, told", [
    (("diff", "aaaaaa", "none"), 1, "holds nothing of kernel 'none'"), (("history", "none"), 1, "not in the catalogue"),
    (("export", "--format", "btf", "-o", "x"), 2, "BTF is of one kernel"),
    (("export", "-o", "/none/x"), 1, "/none/x: No such file"), (("import", "/none"), 1, "No such file"),
    (("merge", "/none"), 1, "there is no such file"), (("pull", "https://x/y"), 2, "a checksum is required"),
    (("pull", "https://x/y", "--sha256", "0"), 2, "is not a SHA-256"),
    (("pull", "https://x/y", "--sums", "/none"), 1, "/none: No such file"),
    (("pull", "http://x/y", "--sha256", "0" * 64), 2, "only https and file"),
    (("pull", "file:///none/x.db", "--sha256", "0" * 64), 1, "/none/x.db: No such file"),
    (("serve", "--host", "999.1.1.1"), 2, "cannot listen at 999.1.1.1 port 8001"),
    (("serve", "--host", "192.0.2.1"), 2, "Cannot assign requested address"),
])
def test_one_line_on_errors(run, arguments, status, told):
    assert told in one_line(run(*arguments, status=status).stderr)


def test_a_taken_port_is_told_before_anything_is_shown(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", "--port", taken.getsockname()[1], status=2)
    assert "Address already in use" in one_line(done.stderr)


@pytest.mark.parametrize("words, place", [("skc_daddr=0016", "5.10"), ("skc_daddr= 16 ", "5.10")])
def test_a_place_is_the_number_however_it_is_written(run, words, place):
    assert place in run("where", words).stdout


@pytest.mark.parametrize("command", [
    ("show",), ("show", OLD.release), ("kernels",), ("disagreements",), ("where", "skc_daddr=0"),
    ("history", "skc_daddr"), ("diff", OLD.release, NEW.release), ("verify",), ("export",), ("vacuum",),
    ("serve", "--port", "1")])
@pytest.mark.parametrize("kept", [16, 4096])
def test_what_only_reads_leaves_a_damaged_file_where_it_is(filled, run, command, kept):
    raw = filled.read_bytes()[:kept] + b"\xff" * 20000
    filled.write_bytes(raw)

    done = run(*command, status=1)

    assert str(filled) in one_line(done.stderr)
    assert filled.read_bytes() == raw and not list(filled.parent.glob("*.corrupt-*"))


def test_a_release_of_endless_digits_is_sorted_too(filled, run):
    with Database.open(filled) as db:
        db.record(Kernel("c" * 40, "5." + "9" * 5000, "", "x86_64"), [])
    assert len(json.loads(run("kernels", "--json").stdout)["kernels"]) == 3


def test_export_and_import_again(run, tmp_path):
    run("export", "-o", tmp_path / "all.jsonl")
    first = run("export").stdout

    done = kcompat("--db", tmp_path / "new.db", "db", "import", tmp_path / "all.jsonl", "/none", home=tmp_path)

    assert done.returncode == 1 and done.stdout == f"{tmp_path / 'all.jsonl'}: 2 kernels, 4 answers\n"
    assert kcompat("--db", tmp_path / "new.db", "db", "export", home=tmp_path).stdout == first == (
        tmp_path / "all.jsonl").read_text()


@pytest.mark.parametrize("before", ["", "begun\n"])
def test_export_to_standard_output_by_its_name_gives_the_data_and_no_more(run, filled, tmp_path, before):
    (tmp_path / "out").write_text(before)
    with (tmp_path / "out").open("a") as out:
        done = kcompat("--db", filled, "db", "export", "-o", "/dev/stdout", home=tmp_path, stdout=out)

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out").read_text() == before + run("export").stdout


STRANGE = Kernel("[/c]\x1b[31mccccc", "5.4[/y]\x1b]0;owned\a", "[bold]\x1b[2J", "x86_64[/z]\x1b[31m")


@pytest.mark.parametrize("command", [
    ("db", "show"), ("db", "show", STRANGE.release), ("db", "kernels"), ("db", "disagreements"), ("db", "verify"),
    ("db", "where", "skc_daddr=1"), ("db", "history", "skc_daddr"), ("db", "diff", OLD.release, STRANGE.release),
    ("db", "export", STRANGE.release, "--format", "header"),
    ("resolve", "--kernel-release", STRANGE.release, "--arch", STRANGE.machine)])
def test_what_stands_in_an_imported_row_is_text(filled, tmp_path, command):
    said = "x[/y]\x1b[31m"
    with Database.open(filled) as db:
        db.record(STRANGE, [Offset.known(find("skc_daddr"), 1, said), Offset.known(find("skc_daddr"), 2, "btf"),
                            Offset.known(find("skc_num"), 3, said), Offset.absent(find("skc_cookie"), said, said)])

    done = kcompat("--db", filled, *command, home=tmp_path)

    assert "Traceback" not in done.stderr and "\x1b" not in done.stdout + done.stderr
    assert "[/" in done.stdout and "?" in done.stdout


def test_merge(run, tmp_path):
    with Database.open(tmp_path / "other.db") as db:
        db.record(OLD, [Offset.known(find("skc_daddr"), 4, "btf")])

    assert "1 kernels, 1 answers" in run("merge", tmp_path / "other.db").stdout
    assert [[a["source"] for a in d["answers"]]
            for d in json.loads(run("disagreements", "--json").stdout)["disagreements"]] == [["btf", "btf elsewhere"]]


def test_verify_exits_with_1(filled, run):
    with Database.open(filled) as db:
        db.record(OLD, [Offset.known(find("skc_rcv_saddr"), 2, "btf")])

    assert "overlaps" in run("verify", status=1).stdout


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Answers Range as a server of files does, and remembers what was asked. `cut` bytes are all it sends at once."""

    asked: list
    resumes = True
    cut = None

    def do_GET(self):
        content = (self.directory / self.path.lstrip("/")).read_bytes()
        begin = re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.resumes else None
        start = int(begin[1]) if begin else 0
        self.asked.append(start)
        self.send_response(416 if start >= len(content) else 206 if begin else 200)
        self.send_header("Content-Length", str(len(content[start:])))
        self.end_headers()
        self.wfile.write(content[start:][:self.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def https(tmp_path, monkeypatch):
    """(URL, directory, handler) of a server whose certificate is trusted."""
    key, certificate, served = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "served"
    served.mkdir()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
                    "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
                   check=True, capture_output=True, timeout=60)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    handler = type("Handler", (Ranges,), {"asked": [], "directory": served})
    handler.__init__ = functools.partialmethod(http.server.BaseHTTPRequestHandler.__init__)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}/offsets.db", served, handler
        server.shutdown()


def sums_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pull_replaces_the_database_and_resumes(filled, https, tmp_path):
    url, served, server = https
    digest = published(served)
    part = filled.with_name(f".{filled.name}.{digest[:16]}.part")
    part.write_bytes((served / "offsets.db").read_bytes()[:5000])

    exchange_pull.replace(filled, exchange_pull.fetch(url, digest, filled))

    assert server.asked == [5000] and not part.exists()
    with Database.open(filled) as db:
        assert db.kernels() == (NEW,)


def test_pull_from_a_server_that_cannot_resume_begins_anew(filled, https):
    url, served, server = https
    digest = published(served)
    server.resumes = False
    filled.with_name(f".{filled.name}.{digest[:16]}.part").write_bytes(b"x" * 5000)

    assert sums_of(exchange_pull.fetch(url, digest, filled)) == digest


def test_pull_over_a_line_that_breaks_goes_on_where_it_broke(filled, https):
    url, served, server = https
    digest = published(served)
    server.cut = size = (served / "offsets.db").stat().st_size // 2

    with pytest.raises(KcompatError, match="run it again to go on from here"):
        exchange_pull.fetch(url, digest, filled)
    assert sums_of(exchange_pull.fetch(url, digest, filled)) == digest and server.asked == [0, size]
    with Database.open(filled) as db:
        assert len(db.kernels()) == 2


def test_pull_onto_a_full_disk_says_so_and_leaves_the_database(https, mounted):
    url, served, _ = https
    digest = published(served)
    db = mounted("-t", "tmpfs", "-o", "size=40k", "none") / "offsets.db"
    db.write_bytes(b"as it was")

    with pytest.raises(KcompatError, match="No space left on device"):
        exchange_pull.fetch(url, digest, db)
    assert db.read_bytes() == b"as it was"


def published(directory):
    """The checksum of a database that is there to be pulled."""
    with Database.open(directory / "offsets.db") as db:
        db.record(NEW, [Offset.known(find("skc_daddr"), 16, "btf")])
    return sums_of(directory / "offsets.db")


def test_pull_of_another_file_changes_nothing(filled, https):
    url, served, _ = https
    (served / "offsets.db").write_bytes(b"something else")

    with pytest.raises(KcompatError, match="nothing was changed"):
        exchange_pull.fetch(url, "0" * 64, filled)
    with Database.open(filled) as db:
        assert len(db.kernels()) == 2
    assert not list(filled.parent.glob(".*.part"))


def test_pull_from_a_file_with_sha256sums(run, filled, tmp_path):
    (tmp_path / "out.jsonl").write_bytes(run("export").stdout.encode())
    (tmp_path / "SHA256SUMS").write_text(f"{sums_of(tmp_path / 'out.jsonl')}  out.jsonl\n")
    url = f"file://{tmp_path}/out.jsonl"

    assert "2 kernels" in run("pull", url, "--sums", tmp_path / "SHA256SUMS", "--merge").stdout
    assert "not a" in one_line(run("pull", url, "--sums", tmp_path / "SHA256SUMS", status=1).stderr)
    assert not list(filled.parent.glob(".*.part"))


@pytest.fixture
def pull_built(run, tmp_path):
    """pull_built(**options of run) pulls a database of one kernel, in the place of `filled`."""
    with Database.open(tmp_path / "built.db") as db:
        db.record(NEW, [Offset.known(find("sk_mark"), 612, "btf")])
    url, digest = f"file://{tmp_path}/built.db", sums_of(tmp_path / "built.db")
    return lambda **options: run("pull", url, "--sha256", digest, **options)


def newer(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def foreign(path):
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")


@pytest.mark.parametrize("there, words", [
    (newer, "written by a newer kcompat"), (foreign, "not one of kcompat's"),
    (lambda path: path.write_text("my letter"), "not an SQLite database; left alone"),
    (lambda path: (path.unlink(), path.mkdir()), "not a regular file")])
def test_pull_replaces_nothing_that_is_somebody_elses(filled, pull_built, there, words):
    there(filled)
    before = filled.is_file() and filled.read_bytes()

    assert words in one_line(pull_built(status=1).stderr)
    assert before == (filled.is_file() and filled.read_bytes())
    assert not list(filled.parent.glob(".*.part*")) and not list(filled.parent.glob("*.corrupt-*"))


def test_pull_through_a_link_replaces_the_file_behind_it(filled, pull_built):
    filled.rename(filled.with_name("behind.db"))
    filled.symlink_to("behind.db")

    pull_built()
    with Database.open(filled) as db:
        assert db.kernels() == (NEW,) and filled.is_symlink()


def test_pull_in_the_place_of_a_damaged_one_moves_that_aside(filled, pull_built):
    filled.write_bytes(filled.read_bytes()[:16] + b"\xff" * 5000)

    pull_built()
    with Database.open(filled) as db:
        assert db.kernels() == (NEW,)
    assert len(list(filled.parent.glob("*.corrupt-*"))) == 1


def test_pull_of_what_is_too_large_leaves_nothing_to_stumble_over(filled, tmp_path, monkeypatch):
    monkeypatch.setattr(exchange_pull, "_MAX_SIZE", 1000)
    with pytest.raises(KcompatError, match="nothing was changed"):
        exchange_pull.fetch(f"file://{filled}", sums_of(filled), tmp_path / "other.db")
    assert not list(tmp_path.glob(".*.part"))


def test_pull_leaves_nothing_beside_the_database(run, filled, tmp_path):
    with Database.open(tmp_path / "built.db") as db:
        db.record(NEW, [Offset.known(find("sk_mark"), 612, "btf")])
    url, digest = f"file://{tmp_path}/built.db", sums_of(tmp_path / "built.db")

    run("pull", url, "--sha256", digest, "--merge")
    run("pull", url, "--sha256", digest)
    assert not list(filled.parent.glob(".*.part*"))


def test_serve_shows_kernels_and_no_raw_memory(filled, tmp_path):
    pytest.importorskip("datasette")
    port = 20000 + os.getpid() % 20000
    command = [*COMMAND, "--db", str(filled), "db", "serve", "--port", str(port)]
    with subprocess.Popen(command, env=environment(tmp_path), cwd="/", stderr=subprocess.PIPE, text=True) as process:
        try:
            got = answered(f"http://127.0.0.1:{port}/offsets/where_a_field_lies.json?field=tcp_sock.srtt_us&_shape=array")
            assert [(row["release"], row["place"]) for row in got.json()] == [(OLD.release, 1600), (NEW.release, 1600)]
            for page, status in (("", 200), ("/offsets/kernel", 200), ("/offsets/places_of_a_field", 200),
                                 ("/offsets/disagreements", 200), ("/offsets/window", 403), ("/offsets.db", 403),
                                 ("/offsets?sql=select+*+from+window", 403)):
                assert httpx.get(f"http://127.0.0.1:{port}{page}").status_code == status, page
        finally:
            process.terminate()
            process.communicate(timeout=20)


def answered(url):
    give_up = time.monotonic() + 30
    while True:
        try:
            return httpx.get(url)
        except httpx.TransportError:
            assert time.monotonic() < give_up
            time.sleep(0.1)
