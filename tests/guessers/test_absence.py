import gzip

import pytest

from guessers import absence
from guessers.absence import denied, why_absent, why_untold
from kcompat.fields import find

DENIES, ALLOWS = b"CONFIG_NET=y\n# CONFIG_IPV6 is not set\n", b"CONFIG_IPV6=m\n# CONFIG_IPV6_SIT is not set\n"


@pytest.fixture
def config(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


@pytest.fixture
def without_ipv6(monkeypatch):
    monkeypatch.setattr(absence, "has_ipv6", lambda: False)


@pytest.mark.parametrize("name", ["config.gz", "config-5.10.0"])
def test_a_configuration_that_says_no_is_named(config, name):
    path = config(name, DENIES)
    assert denied("CONFIG_IPV6", [path]) == str(path)


@pytest.mark.parametrize("content", [ALLOWS, b"", b"# CONFIG_IPV6_SIT is not set\n", b"CONFIG_IPV6=y\n"])
def test_silence_is_no_denial(config, content):
    assert denied("CONFIG_IPV6", [config("config", content)]) is None


def test_the_kernels_own_word_comes_before_what_lies_on_disk(config, tmp_path):
    assert denied("CONFIG_IPV6", [config("config.gz", ALLOWS), config("config-5.10.0", DENIES)]) is None
    assert denied("CONFIG_IPV6", [tmp_path / "missing", config("config-5.10.0", DENIES)])


def test_a_truncated_configuration_proves_nothing(config):
    path = config("config.gz", DENIES)
    path.write_bytes(path.read_bytes()[:-9])
    assert denied("CONFIG_IPV6", [path]) is None


def test_a_kernel_that_opens_ipv6_sockets_has_ipv6_whatever_a_file_says(monkeypatch):
    monkeypatch.setattr(absence, "has_ipv6", lambda: True)
    monkeypatch.setattr(absence, "denied", lambda option, paths: "/boot/config")
    assert why_absent(find("skc_v6_daddr")) is None


def test_with_proof_a_field_is_absent(monkeypatch, without_ipv6):
    monkeypatch.setattr(absence, "denied", lambda option, paths: f"/boot/config says {option}")
    assert why_absent(find("skc_v6_daddr")) == "the kernel is built without CONFIG_IPV6: /boot/config says CONFIG_IPV6"


def test_without_proof_it_is_only_untold(monkeypatch, without_ipv6):
    monkeypatch.setattr(absence, "denied", lambda option, paths: None)
    assert why_absent(find("skc_v6_daddr")) is None
    assert "no IPv6 socket" in why_untold(find("skc_v6_daddr"))
    assert "no IPv6 socket" in why_untold(find("flowi6.daddr"))


def test_flow_keys_are_never_absent(monkeypatch, without_ipv6):
    """struct flowi6 is declared whatever the configuration: net/flow.h."""
    monkeypatch.setattr(absence, "denied", lambda option, paths: "/boot/config")
    assert why_absent(find("flowi6.daddr")) is None
    assert why_absent(find("sk_mark")) is None


def test_a_proc_that_is_not_mounted_proves_nothing_about_namespaces(monkeypatch, tmp_path):
    monkeypatch.setattr(absence, "NETNS", tmp_path / "net")
    monkeypatch.setattr(absence, "denied", lambda option, paths: None)
    assert why_absent(find("skc_net")) is None
    assert str(tmp_path / "net") in why_untold(find("skc_net"))


@pytest.mark.parametrize(("name", "word"), [
    ("skc_cookie", "SO_COOKIE"), ("skc_cookie", "sock_diag"), ("segs_in", "TCP_INFO"), ("bytes_acked", "TCP_INFO")])
def test_what_an_old_kernel_does_not_tell_has_the_reason(name, word):
    assert word in why_untold(find(name))


@pytest.mark.parametrize(("name", "option"), [
    ("nf_conn.mark", "CONFIG_NF_CONNTRACK_MARK"), ("_nfct", "CONFIG_NF_CONNTRACK")])
def test_what_the_connection_tracker_was_built_without_is_absent(monkeypatch, name, option):
    monkeypatch.setattr(absence, "denied", lambda asked, paths: "/boot/config" if asked == option else None)
    assert why_absent(find(name)) == f"the kernel is built without {option}: /boot/config"
    assert why_absent(find("nf_conn.status")) is None
