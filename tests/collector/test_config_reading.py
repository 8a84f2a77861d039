"""File, environment and command line become one set of options; whatever is wrong is told with its place."""

import re
import tomllib

import pytest

from collector.config import Options
from collector.config_check import exposure, judge
from collector.config_keys import keys, sample
from collector.config_reading import BadConfig, Given, assignment, read
from collector.exclusions import Exclusions
from collector.pipeline import DATASETS
from kcompat.errors import KcompatError


@pytest.fixture
def file(tmp_path):
    """file(text) -> its path."""
    def write(text):
        path = tmp_path / "kcompat.toml"
        path.write_text(text)
        return path

    return write


def faults(path, *flags, environment=None):
    with pytest.raises(BadConfig) as error:
        read(path, environment, flags, judge)
    return [(fault.where.removeprefix(f"{path}:"), fault.what) for fault in error.value.faults]


def test_the_sample_is_the_default(file):
    assert read(file(sample()), judge=judge) == Options()


def test_the_sample_has_every_key_and_its_examples_are_valid(file):
    examples = re.sub(r"(?m)^# (\w+ = )", r"\1", sample())
    given = tomllib.loads(examples)

    assert {*given, *(f"{table}.{key}" for table, held in given.items() if isinstance(held, dict) for key in held)
            } >= set(keys())
    assert read(file(examples), judge=judge).host == "web-1"
    assert max(map(len, sample().splitlines())) <= 120


def test_every_key_says_what_it_does_and_every_dataset_is_named():
    assert all(key.doc.endswith(".") for key in keys().values())
    assert all(name in keys()["datasets"].doc for name in DATASETS)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(file):
    path = file("interval_s = 10\nhost = 'file'\nmax_flows = 7\n[offsets]\nsource = 'db'\n")

    options = read(path, {"KCOMPAT_COLLECT_HOST": "environment", "KCOMPAT_COLLECT_INTERVAL_S": "20s", "PATH": "/bin",
                          "KCOMPAT_COLLECT_OFFSETS__SOURCE": "btf", "KCOMPAT_CACHE": "/tmp"},
                   [Given("--interval", "interval_s", "30")])

    assert (options.interval_s, options.host, options.max_flows) == (30, "environment", 7)
    assert options.offsets.source == "btf"


def test_text_becomes_what_its_key_is_written_as():
    options = read(environment={"KCOMPAT_COLLECT_DATASETS": "netflow, bash", "KCOMPAT_COLLECT_TAGS": "a=b,c=d=e",
                                "KCOMPAT_COLLECT_EXCLUDE": "port=22,process=sshd", "KCOMPAT_COLLECT_LOOPBACK": "true",
                                "KCOMPAT_COLLECT_MAX_FLOWS": "9"})

    assert options.datasets == ("netflow", "bash") and options.tags == {"a": "b", "c": "d=e"}
    assert options.exclude == Exclusions.parse(["port=22", "process=sshd"])
    assert options.loopback is True and options.max_flows == 9


def test_everything_wrong_is_told_with_its_line(file):
    path = file("""\
# a comment
interval_s = "90q"
datasets = [
    "netflow",
    3,
]
ephemeral_prot = 3
tags = {a = 3, "b" = "x"}

[offsets]
sourc = 4
[offset]
source = "btf"
""")

    assert faults(path) == [
        ("2", "interval_s = '90q': expected seconds, or a time like 90s, 1m30s"),
        ("5", "datasets[1] = 3: must be text"),
        ("7", "there is no key ephemeral_prot; did you mean ephemeral_port?"),
        ("8", "tags.a = 3: must be text"),
        ("11", "there is no key offsets.sourc; did you mean offsets.source?"),
        ("12", "there is no key offset; did you mean offsets?"),
    ]


def test_a_wrong_type_hides_nothing_else(file):
    path = file("""\
loopback = "yes"
datasets = ["netflwo", 3,
            "bash"]
outputs = [
    "table",
    7,
    "carrier-pigeon:home",
    {kind = "owl"},
]
exclude = [
    "port=22",
    "port=ssh",     # no number
    4,
    "user=root",
]
redact = ["path=(", "command=x"]
offsets = 3

[metrics]
bpf_run_time = 1

[limits]
cpu_percent = "10"
memory_mb = 100.0
[kubernetes]
resync_s = "1h"
labels = "app"
""")

    told = faults(path, assignment("max_flows=0"), environment={"KCOMPAT_COLLECT_HTTP_TLS": "maybe"})

    expected = [("--set max_flows", "max_flows = 0: must be greater"),
                ("KCOMPAT_COLLECT_HTTP_TLS", "http_tls = 'maybe': must be a valid boolean"),
                ("1", "loopback = 'yes': must be true or false"),
                ("2", "datasets[1] = 3: must be text"),
                ("2", "there is no dataset 'netflwo'"),
                ("6", "outputs[1]: must be text, or a table"),
                ("7", "sink 'carrier-pigeon:home': expected table | jsonl"),
                ("8", "expected table | jsonl"),
                ("12", "exclude[1] = 'port=ssh': a port is a number"),
                ("13", "exclude[2] = 4: must be text"),
                ("14", "exclude[3] = 'user=root': expected one of cidr="),
                ("16", "redact[0] = 'path=(': missing )"),
                ("17", "offsets = 3: must be a table"),
                ("20", "metrics.bpf_run_time = 1: must be true or false"),
                ("23", "limits.cpu_percent = '10': must be a number"),
                ("24", "limits.memory_mb = 100.0: must be a whole number"),
                ("27", "kubernetes.labels = 'app': must be a list")]
    assert [where for where, _ in told] == [where for where, _ in expected]
    assert [words for (_, words), (_, what) in zip(expected, told, strict=True) if words not in what] == []


def test_text_is_a_number_in_the_environment_and_in_flags_alone(file):
    flags = [Given("--interval", "interval_s", "20"), assignment("limits.cpu_percent=10"), assignment("loopback=yes")]

    options = read(file("interval_s = '1m'\n"), {"KCOMPAT_COLLECT_DNS_QUERIES": "1"}, flags, judge)

    assert (options.interval_s, options.limits.cpu_percent) == (20, 10)
    assert options.loopback is True and options.dns_queries is True
    assert read(file("interval_s = '1m'\nlimits.cpu_percent = 10\n")).limits.cpu_percent == 10


def test_datasets_and_sinks_that_there_are_not_are_told(file):
    path = file("datasets = ['netflow', 'netflwo']\noutputs = ['jsonl:x',\n 'carrier-pigeon:home']\n")

    (one, other) = faults(path)

    assert one == ("1", f"there is no dataset 'netflwo': there is {', '.join(DATASETS)}")
    assert other[0] == "3" and "sink 'carrier-pigeon:home': expected table | jsonl" in other[1]


def test_outputs_that_would_share_a_spool_are_told(file):
    path = file("outputs = ['jsonl:x', 5,\n 'http://h/?token=A',\n 'http://g/?token=A',\n 'http://h/?token=B']\n")

    told = faults(path)

    assert told[-1][0] == "4" and "sink 'http://h/': an output before it has the same spool" in told[-1][1]


@pytest.mark.parametrize("text", [
    "a = 1\nb = " + "[" * 5000 + "]" * 5000, "a = 1\nb = " + "[\n" * 40 + "]" * 40 + "\nc = 2\n",
    "a = 1\n" + ".".join("b" * 5000) + " = 1\n", "a = 1\n[" + ".".join("b" * 5000) + "]\n"])
def test_what_lies_too_deep_is_told_with_its_line(file, text):
    assert faults(file(text)) == [("2", "tables and lists lie in each other too deeply")]


@pytest.mark.parametrize(("text", "line", "words"), [
    ("a = 1\nb = = 2\n", "2", "not TOML: Invalid value"), ("a = 1\n\nb = [1,\n", "3", "not TOML: Invalid value"),
    ("host = 'a'\nhost = 'b'\n", "2", "not TOML: Cannot overwrite a value")])
def test_what_is_no_toml_is_told_with_its_line(file, text, line, words):
    ((where, what),) = faults(file(text))

    assert (where, what) == (line, words)


def test_a_variable_or_flag_that_sets_nothing_is_told():
    assert faults(None, assignment("max_flow=3"), environment={"KCOMPAT_COLLECT_OFFSETS__SOURC": "btf"}) == [
        ("KCOMPAT_COLLECT_OFFSETS__SOURC", "there is no key offsets.sourc; did you mean offsets.source?"),
        ("--set max_flow", "there is no key max_flow; did you mean max_flows?")]


def test_a_flag_into_a_table_that_the_file_has_as_something_else_is_told(file):
    ((where, what),) = faults(file("offsets = 3\n"), assignment("offsets.source=btf"))

    assert where == "1" and what.startswith("offsets = 3: ")


@pytest.mark.parametrize("text", [
    "[outputs]\nurl = 'kafka://b/t'\nsasl.password = 'hunter2'\nheaders = {Authorization = 'hunter2'}",
    "outputs = 'kafka+hunter2'", "outputs = [['hunter2']]", "tags = [{a = 'hunter2'}]", "tags.a.b = 'hunter2'",
    "interval_s = ['hunter2']", "loopback.a = 'hunter2'", "offsets = ['hunter2']"])
def test_what_stands_in_tables_lists_and_outputs_is_not_repeated(file, text):
    told = faults(file(text))

    assert "must be" in told[0][1] and "hunter2" not in str(told)


def test_tokens_in_urls_are_not_repeated(file):
    told = faults(file("tags = 'https://user:hunter2@host/write?token=tkn_secret'\n"))

    assert "hunter2" not in str(told) and "tkn_secret" not in str(told) and "host/write" in str(told)


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"\xff\xfe", "no UTF-8"),
                                                (b"#" * (1 << 21), "over 1 MB")])
def test_a_file_that_cannot_be_read_is_told(tmp_path, content, words):
    path = tmp_path / "kcompat.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(KcompatError, match=words) as error:
        read(path)

    assert str(error.value).startswith(f"{path}: ")


def test_a_file_that_others_may_write_is_not_safe(file):
    path = file("")
    path.chmod(0o640)
    assert exposure(path) is None
    path.chmod(0o662)
    assert "chmod go-w" in exposure(path)
