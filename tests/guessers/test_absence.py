import gzip
from pathlib import Path

import pytest

from guessers import absence
from guessers.absence import is_there, why_absent, why_untold
from kcompat.fields import find

V6 = find("skc_v6_daddr")
DENIES, ALLOWS = b"CONFIG_NET=y\n# CONFIG_IPV6 is not set\n", b"CONFIG_IPV6=m\n# CONFIG_IPV6_SIT is not set\n"


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    path = tmp_path / "config.gz"
    monkeypatch.setattr(absence, "CONFIG", path)
    monkeypatch.setattr(absence, "_TRACKER", tmp_path / "nf_conntrack_max")
    monkeypatch.setattr(absence, "NETNS", tmp_path / "net")
    monkeypatch.setattr(absence, "has_ipv6", lambda: False)

    def write(content):
        path.write_bytes(gzip.compress(content))
        return path

    return write


def denies(*options):
    return "".join(f"# {option} is not set\n" for option in options).encode()


def test_a_configuration_that_says_no_is_proof(config):
    path = config(DENIES)
    assert why_absent(V6) == f"the kernel is built without CONFIG_IPV6: {path}"


@pytest.mark.parametrize("content", [ALLOWS, b"", b"# CONFIG_IPV6_SIT is not set\n", b"CONFIG_IPV6=y\n"])
def test_silence_is_no_denial(config, content):
    config(content)
    assert why_absent(V6) is None


def test_what_lies_in_boot_is_not_asked(monkeypatch):
    """It may be of another build of that release."""
    read = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or real(path))
    assert why_absent(V6) is None
    assert set(read) <= {absence.CONFIG}


def test_a_truncated_configuration_proves_nothing(config):
    path = config(DENIES)
    path.write_bytes(path.read_bytes()[:-9])
    assert why_absent(V6) is None


def test_a_kernel_that_opens_ipv6_sockets_has_ipv6_whatever_its_configuration_says(monkeypatch, config):
    config(DENIES)
    monkeypatch.setattr(absence, "has_ipv6", lambda: True)
    assert why_absent(V6) is None and is_there(V6)


def test_without_proof_it_is_only_untold():
    assert why_absent(V6) is None and not is_there(V6)
    assert "no IPv6 socket" in why_untold(V6)
    assert "no IPv6 socket" in why_untold(find("flowi6.daddr"))


@pytest.mark.parametrize(("name", "option", "sign"), [
    ("skc_net", "CONFIG_NET_NS", "net"), ("ct_net", "CONFIG_NET_NS", "net"),
    ("_nfct", "CONFIG_NF_CONNTRACK", "nf_conntrack_max")])
def test_what_a_kernel_shows_is_there(config, tmp_path, name, option, sign):
    config(denies(option))
    assert not is_there(find(name)) and why_absent(find(name))
    (tmp_path / sign).touch()
    assert is_there(find(name)) and why_absent(find(name)) is None


def test_what_its_configuration_says_is_there(config):
    config(b"CONFIG_NF_CONNTRACK_MARK=y\nCONFIG_IPV6=m\n")
    assert is_there(find("nf_conn.mark")) and is_there(V6) and not is_there(find("skc_net"))
    assert not is_there(find("sk_mark"))


def test_flow_keys_are_never_absent(config):
    """struct flowi6 is declared whatever the configuration: net/flow.h."""
    config(DENIES)
    assert why_absent(find("flowi6.daddr")) is None
    assert why_absent(find("sk_mark")) is None


def test_a_proc_that_is_not_mounted_proves_nothing_about_namespaces(tmp_path):
    assert why_absent(find("skc_net")) is None
    assert str(tmp_path / "net") in why_untold(find("skc_net"))


@pytest.mark.parametrize(("name", "word"), [
    ("skc_cookie", "SO_COOKIE"), ("skc_cookie", "sock_diag"), ("segs_in", "TCP_INFO"), ("bytes_acked", "TCP_INFO")])
def test_what_an_old_kernel_does_not_tell_has_the_reason(name, word):
    assert word in why_untold(find(name))


@pytest.mark.parametrize(("name", "option"), [
    ("nf_conn.mark", "CONFIG_NF_CONNTRACK_MARK"), ("_nfct", "CONFIG_NF_CONNTRACK")])
def test_what_the_connection_tracker_was_built_without_is_absent(config, name, option):
    path = config(denies(option))
    assert why_absent(find(name)) == f"the kernel is built without {option}: {path}"
    assert why_absent(find("nf_conn.status")) is None


def test_without_a_tracker_nobody_knows_its_mark(config):
    config(denies("CONFIG_NF_CONNTRACK", "CONFIG_NF_CONNTRACK_MARK"))
    assert why_absent(find("nf_conn.mark")) is None
