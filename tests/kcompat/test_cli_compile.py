"""Objects made ahead are those that guess and collect look for, and nothing is compiled twice."""

import json
import os

import pytest
from click.testing import CliRunner

from collector import nf_conn
from collector.config import Options
from collector.datasets import bash, httpflow, netflow
from guessers import memory
from kcompat.bpf import cached_path, compile_cached
from kcompat.cli import MACHINES, main
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, Offsets
from offset_db.db import Database

ANSWERS = [Offset.known(f, 8 * (i + 1), "btf", width=f.width) for i, f in enumerate(CATALOGUE)]


def kernel(number, machine="x86_64"):
    return Kernel(build_id=f"{number:040x}", release=f"6.{number}.0", version="", machine=machine)


@pytest.fixture
def db(tmp_path, monkeypatch):
    """Two kernels that are alike, one of the other machine type, and one of which a needed field is not known."""
    if os.geteuid() != 0:
        pytest.skip("bcc compiles for root only")
    pytest.importorskip("bcc")
    monkeypatch.setenv("KCOMPAT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "offsets.db"
    with Database.open(path) as made:
        for each in (kernel(1), kernel(2), kernel(3, "aarch64")):
            made.record(each, ANSWERS)
        made.record(kernel(4), [a for a in ANSWERS if a.field is not find("skc_dport")])
    return path


def compiled(db, *arguments):
    done = CliRunner().invoke(main, ["--db", str(db), "compile", "--json", *arguments])
    return done.exit_code, {(p["program"], *p["kernels"]): p for p in json.loads(done.stdout)["programs"]}


def test_kernels_that_are_alike_share_and_what_is_not_known_is_said(db):
    status, programs = compiled(db)
    assert status == 1
    assert set(programs) == {("guess",), ("bash",)} | {
        (dataset, *kernels) for dataset in ("netflow", "httpflow") for kernels in (("6.1.0", "6.2.0"), ("6.4.0",))} | {
        ("nf_conn", "6.1.0", "6.2.0", "6.4.0")}
    assert "skc_dport" in programs["netflow", "6.4.0"]["reason"]
    assert programs["netflow", "6.4.0"]["path"] is None


@pytest.mark.parametrize("machine", MACHINES)
def test_guess_and_collect_find_what_they_look_for(db, machine):
    _, programs = compiled(db, "--machine", machine)
    sources = (memory.source(machine), netflow.render(Offsets(ANSWERS), Options("host")),
               httpflow.render(Offsets(ANSWERS), Options("host")),
               bash.render(Offsets(ANSWERS), Options("host")), nf_conn.render(Offsets(ANSWERS)))
    assert all(compile_cached(source, machine=machine)[1] for source in sources)
    assert not any(p["cached"] for p in programs.values())
    assert all(p["cached"] for p in compiled(db, "--machine", machine)[1].values() if p["path"])


def test_what_collect_is_told_elsewhere_can_be_told_here(db, tmp_path, monkeypatch):
    file = tmp_path / "kcompat.toml"
    file.write_text(f"max_sockets = 2048\nephemeral_port = 1\noffsets.db = '{db}'\n")
    file.chmod(0o644)
    monkeypatch.setenv("KCOMPAT_COLLECT_MAX_FLOWS", "512")

    done = CliRunner().invoke(main, ["compile", "--json", "--config", str(file), "--ephemeral-port", "40000"])

    assert done.exit_code == 1, done.output  # of the kernel of which a field is not known
    sources = [netflow.render(Offsets(ANSWERS), Options("host", max_sockets=2048, max_flows=512, ephemeral_port=40000)),
               httpflow.render(Offsets(ANSWERS), Options("host", ephemeral_port=40000))]
    paths = {p["path"] for p in json.loads(done.stdout)["programs"]}
    assert paths >= {str(cached_path(source)) for source in sources}


@pytest.mark.parametrize("words, told", [(["--set", "max_sockets=1"], "max_sockets = 1: must be greater"),
                                         (["--config", "/none.toml"], "/none.toml: No such file")])
def test_a_wrong_bound_is_told_before_anything_is_compiled(words, told):
    done = CliRunner().invoke(main, ["compile", *words])

    assert done.exit_code in (1, 2) and told in done.stderr


def test_what_it_says_fits_a_terminal(db):
    done = CliRunner().invoke(main, ["--db", str(db), "compile"])
    assert "netflow for 6.1.0, 6.2.0: compiled in" in done.stdout
    assert "guess for every kernel: compiled in" in done.stdout


def test_a_cache_that_cannot_be_written_is_an_error(db, monkeypatch):
    monkeypatch.setenv("KCOMPAT_CACHE", "/proc/nowhere")
    done = CliRunner().invoke(main, ["--db", str(db), "compile"])
    assert done.exit_code == 2
    assert "/proc/nowhere/bpf/" in done.stderr
    assert done.stdout == ""
