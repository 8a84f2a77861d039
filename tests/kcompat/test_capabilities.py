"""Capabilities: what was tried decides, a probe that could not be made never looks like a "no"."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kcompat import capabilities, probe
from kcompat.capabilities import Can, probe_all
from kcompat.errors import Missing
from kcompat.probe import Denied

RELEASE = os.uname().release
NAMES = ["bpf", "kprobe", "raw_tracepoint", "tracepoint", "uprobe", "perf_buffer", "ring_buffer", "lru_hash",
         "batch_ops", "probe_read", "probe_read_kernel", "packet_socket", "net_namespaces", "no_lockdown", "btf",
         "btf_conntrack", "kernel_headers", "kallsyms", "bcc", "compiled_cache"]


def open_files():
    return sorted(link.name for link in Path("/proc/self/fd").iterdir())


def raising(error):
    def trial():
        raise error
    return trial


def test_every_capability_has_a_state_a_reason_and_advice_where_it_is_missing():
    found = probe_all(RELEASE)

    assert list(found) == NAMES
    for one in found.values():
        assert one.state in Can and one.reason and "\n" not in one.reason
        assert one.state is Can.YES or one.advice, one.name
        assert set(one.as_json()) == {"name", "state", "reason", "advice"}
        json.dumps(one.as_json())


@pytest.mark.parametrize("error, state", [
    (OSError(errno.ENOENT, "nothing there"), Can.NO),
    (OSError(errno.EINVAL, "refused"), Can.NO),
    (Denied(errno.EPERM, "for root"), Can.UNKNOWN),
    (Missing("tracefs is not mounted: mount it"), Can.NO)])
def test_how_a_trial_ends_decides(error, state):
    found = capabilities._tried("x", raising(error), "do this")

    assert found.state is state and found.advice


def test_what_a_missing_thing_says_to_do_is_the_advice():
    found = capabilities._tried("x", raising(Missing("tracefs is not mounted: mount it")), "something else")

    assert (found.reason, found.advice) == ("tracefs is not mounted", "mount it")


def test_denied_to_somebody_who_is_not_root_is_not_a_no(monkeypatch):
    monkeypatch.setattr(probe.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(probe, "map_create", raising_call(OSError(errno.EPERM, "Operation not permitted")))

    assert capabilities._tried("bpf", probe.bpf_syscall, "x").state is Can.UNKNOWN


def test_denied_to_root_is_a_no(monkeypatch):
    monkeypatch.setattr(probe.os, "geteuid", lambda: 0)
    monkeypatch.setattr(probe, "map_create", raising_call(OSError(errno.EPERM, "Operation not permitted")))

    assert capabilities._tried("bpf", probe.bpf_syscall, "x").state is Can.NO


def raising_call(error):
    def call(*arguments, **keywords):
        raise error
    return call


@pytest.mark.parametrize("text, state", [
    ("[none] integrity confidentiality\n", Can.YES), ("none [integrity] confidentiality\n", Can.YES),
    ("none integrity [confidentiality]\n", Can.NO)])
def test_lockdown_forbids_only_when_it_is_about_reading(tmp_path, monkeypatch, text, state):
    (tmp_path / "lockdown").write_text(text)
    monkeypatch.setattr(capabilities, "LOCKDOWN", tmp_path / "lockdown")

    assert capabilities._lockdown().state is state


def test_no_lockdown_file_can_mean_two_things(tmp_path, monkeypatch):
    monkeypatch.setattr(capabilities, "LOCKDOWN", tmp_path / "lockdown")

    assert capabilities._lockdown().state is Can.UNKNOWN

    (tmp_path / "evm").touch()  # securityfs is mounted, then
    assert capabilities._lockdown().state is Can.YES


@pytest.mark.parametrize("text, state", [
    ("ffffffff81000000 T _text\n", Can.YES), ("0000000000000000 T _text\n" * 100, Can.NO), ("", Can.NO),
    ("nonsense\n", Can.UNKNOWN)])
def test_kallsyms_with_hidden_addresses_is_a_no(tmp_path, monkeypatch, text, state):
    (tmp_path / "kallsyms").write_text(text)
    monkeypatch.setattr(capabilities, "KALLSYMS", tmp_path / "kallsyms")

    assert capabilities._kallsyms().state is state


def test_another_package_called_bcc_is_not_taken_for_ours(tmp_path):
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").touch()
    code = "from kcompat.capabilities import _bcc; print(_bcc().state, _bcc().reason)"

    said = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": f"{tmp_path}:."}, check=True,
                          capture_output=True, text=True, timeout=30).stdout

    assert said.startswith("no ") and "another package called bcc" in said


def test_looking_for_bcc_does_not_load_it():
    code = ("import os, sys; from kcompat.capabilities import probe_all; probe_all(os.uname().release); "
            "print('bcc' in sys.modules)")

    said = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": "."}, check=True,
                          capture_output=True, text=True, timeout=30).stdout

    assert said == "False\n"


@pytest.mark.parametrize("files, state", [([], Can.NO), (["a.json", "b.json"], Can.YES), (["tmpabc"], Can.NO)])
def test_the_compiled_cache_counts_whole_objects(tmp_path, monkeypatch, files, state):
    monkeypatch.setenv("KCOMPAT_CACHE", str(tmp_path))
    (tmp_path / "bpf").mkdir()
    for name in files:
        (tmp_path / "bpf" / name).touch()

    assert capabilities._compiled().state is state


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_probing_leaves_nothing_behind():
    probe_all(RELEASE)
    before = open_files()

    probe_all(RELEASE)

    assert open_files() == before


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_the_helper_probe_tells_a_helper_that_is_not_there():
    assert probe._helper(4, "bpf_probe_read") == "bpf_probe_read"
    with pytest.raises(OSError, match="no program may call bpf_nothing"):
        probe._helper(4095, "bpf_nothing")
