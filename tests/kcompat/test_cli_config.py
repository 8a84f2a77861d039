"""`kcompat config`, and what `kcompat collect` makes of a file, of the environment and of DataKit's flags."""

import json

import pytest
from click.testing import CliRunner

from kcompat import cli_collect
from kcompat.cli import main
from kcompat.cli_collect_command import ENABLED, collect


@pytest.fixture
def run():
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words], prog_name="kcompat")


@pytest.fixture
def options(run, monkeypatch):
    """options(*words, **environment) -> what `kcompat collect` would run with."""
    seen = []
    monkeypatch.setattr(cli_collect, "run", lambda request, options, **_: seen.append((request, options)) or 0)

    def of(*words, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = run("collect", *words)
        assert done.exit_code == 0, done.output
        return seen[-1]

    return of


def test_the_sample_checks_as_fine(run, tmp_path):
    path = tmp_path / "kcompat.toml"
    path.write_text(run("config", "sample").stdout)
    path.chmod(0o644)

    done = run("config", "check", path)

    assert (done.exit_code, done.stdout) == (0, f"{path}: fine\n")


def test_every_fault_is_a_line(run, tmp_path):
    path = tmp_path / "kcompat.toml"
    path.write_text("interval_s = 0\ndataset = 'netflow'\n")

    done = run("config", "check", path)

    assert done.exit_code == 1
    assert done.stdout.splitlines() == [f"{path}:1: interval_s = 0: must be greater than or equal to 1",
                                        f"{path}:2: there is no key dataset; did you mean datasets?"]


def test_what_is_wrong_is_told_to_machines_too(run, tmp_path, monkeypatch):
    path = tmp_path / "kcompat.toml"
    path.write_text("\ninterval_s = 0\n")
    path.chmod(0o666)
    monkeypatch.setenv("KCOMPAT_COLLECT_HOSTS", "x")

    done = run("config", "check", path, "--json")

    told = json.loads(done.stdout)
    assert done.exit_code == 1 and list(told) == ["file", "faults"] and told["file"] == str(path)
    assert [(one["where"], one["line"]) for one in told["faults"]] == [
        ("KCOMPAT_COLLECT_HOSTS", None), (f"{path}:2", 2), (str(path), None)]
    monkeypatch.delenv("KCOMPAT_COLLECT_HOSTS")
    path.write_text("")
    path.chmod(0o644)
    done = run("config", "check", path, "--json")
    assert (done.exit_code, json.loads(done.stdout)["faults"]) == (0, [])


def test_a_file_others_may_write_is_told_and_not_used(run, tmp_path):
    path = tmp_path / "kcompat.toml"
    path.write_text("")
    path.chmod(0o666)

    for done in (run("config", "check", path), run("collect", "--config", path)):
        assert done.exit_code == 1 and "chmod go-w" in done.output


def test_a_flag_stands_over_the_file_and_what_is_not_given_does_not(options, tmp_path):
    path = tmp_path / "kcompat.toml"
    path.write_text("interval_s = 10\nloopback = true\noutputs = ['jsonl:-']\n[offsets]\nsource = 'db'\n")

    request, got = options("--config", path, "--interval", "2m", "--set", "max_flows=5", KCOMPAT_COLLECT_HOST="box")

    assert (got.interval_s, got.loopback, got.outputs, got.max_flows, got.host) == (120, True, ("jsonl:-",), 5, "box")
    assert request.source == "db"
    assert options("--config", path, "--no-loopback")[1].loopback is False


def test_the_flags_of_datakit_mean_what_they_mean_there(options):
    """As DataKit starts an external input: see its configuration of the eBPF collector."""
    _, got = options("--datakit-apiserver", "127.0.0.1:9529", "--hostname", "box", "--interval", "60s", "--tags",
                     "env=prod,az=a", "--enabled", "ebpf-net,ebpf-bash,ebpf-conntrack", "--ephemeral_port", "10001",
                     "--ipv6-disabled", "true")

    assert got.outputs == ("datakit://127.0.0.1:9529",)
    assert (got.host, got.interval_s, got.ephemeral_port, got.ipv6) == ("box", 60, 10001, False)
    assert got.tags == {"env": "prod", "az": "a"} and got.datasets == (
        "netflow", "httpflow", "dnsflow", "bash")


def test_datakit_is_an_output_besides_others(options):
    assert options("--output", "table", "--datakit-apiserver", "dk:9529")[1].outputs == (
        "table", "datakit://dk:9529")
    assert options("--ipv6-disabled")[1].ipv6 is False and options()[1].ipv6 is True


@pytest.mark.parametrize("enabled", ["ebpf-trace", "", "ebpf-conntrack"])
def test_what_kcompat_has_not_of_datakit_is_told(run, enabled):
    done = run("collect", "--enabled", enabled)

    assert done.exit_code == 2 and "--enabled" in done.stderr


def test_every_flag_sets_a_key_there_is_and_says_its_default():
    from collector.config_keys import keys
    from collector.pipeline import DATASETS

    own = {"file", "assignments", "duration", "keep_trying", "no_ipv6", "enabled", "datakit"}
    by_key = {parameter.name.replace("__", "."): parameter for parameter in collect.params if parameter.name not in own}

    assert set(by_key) <= set(keys())
    for key in ("datasets", "interval_s", "outputs", "ephemeral_port", "offsets.source"):
        default = keys()[key].default
        shown = default[0] if isinstance(default, tuple) else f"{default:g}" if isinstance(default, float) else default
        assert f"[default: {shown}]" in by_key[key].help
    assert {name for names in ENABLED.values() for name in names} <= set(DATASETS)
