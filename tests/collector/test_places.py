"""Which outputs share a spool, which never do, and what becomes of those an earlier version left."""

import hashlib
import subprocess

import pytest

from collector.sinks import SINKS, open_sinks, settle_spools
from collector.sinks.chunk import Chunk
from collector.sinks.http import influxdb2
from collector.sinks.options import Influx2
from collector.sinks.outputs import Outputs
from collector.sinks.places import place
from collector.sinks.segments import Segments
from collector.sinks.spec import kind_of
from kcompat.errors import KcompatError
from tests.collector.line_server import DEADLINE_S, points, wait_until


def placed(spec):
    return place(kind_of(spec), SINKS[kind_of(spec)].options(spec))


@pytest.mark.parametrize(("one", "other"), [
    ("influxdb2://h?org=a", "influxdb2://h?org=b"), ("influxdb2://h?org=a", "influxdb2://h?org=a&bucket=b"),
    ("influxdb://h?database=a", "influxdb://h?database=b"), ("influxdb://h", "influxdb://h?retention_policy=week"),
    ("influxdb://h", "victoriametrics://h"), ("http://h/write?db=a", "http://h/write?db=b"),
    ("otlp://h?headers.X-Scope-OrgID=a", "otlp://h?headers.X-Scope-OrgID=b"),
    ("otlp://h?headers.A=a", "otlp://h?headers.B=a"), ("datakit://h?token_file=a", "datakit://h?token_file=b"),
    ("influxdb://h?username=a", "influxdb://h?username=b"), ("http://a:x@h/", "http://b:x@h/"),
    ("kafka://h?topic=a", "kafka://h?topic=b"), ("nats://h?stream=a", "nats://h?stream=b"),
    ("datakit://h", "datakit+https://h"),
])
def test_what_goes_elsewhere_has_another_spool(one, other):
    assert placed(one) != placed(other)


@pytest.mark.parametrize(("one", "other"), [
    ("http://h/write?db=a&token=x", "http://h/write?db=a&token=y"), ("http://a:x@h/", "http://a:y@h/"),
    ("http://h/write?db=a&u=me&p=x", "http://h/write?db=a&u=me&p=y"),
    ("influxdb2://h?org=a", "influxdb2://h?org=a&timeout_s=3&ca_file=/ca&spool_bytes=10000&backoff_s=2"),
    ("influxdb://h", "influxdb://h?database=kcompat"),
    ("influxdb://h?username=a&password_file=x", "influxdb://h?username=a&password_env=X"),
    ("kafka://h", "kafka://h?properties.linger.ms=5"),
    ("influxdb2://h?org=a", {"kind": "influxdb2", "url": "http://h", "org": "a"}),
])
def test_what_goes_to_the_same_has_the_same(one, other):
    assert placed(one) == placed(other)


def tenants(server, tmp_path, *names):
    """Outputs to one server that differ in the organisation and its token."""
    for name in names:
        (tmp_path / name).write_text(f"of-{name}")
    return [f"influxdb2://{server.address}?org={name}&token_file={tmp_path}/{name}&backoff_s=0.01" for name in names]


def test_after_a_restart_in_another_order_nobodys_points_go_out_with_anothers_token(server, tmp_path):
    server.always = 503
    first = open_sinks(tenants(server, tmp_path, "a", "b"))
    first.write(points(700))
    wait_until(lambda: all(sink.waiting == 700 for sink in first.sinks))
    first.close(DEADLINE_S)
    assert [sink.dropped for sink in first.sinks] == [0, 0]

    server.requests.clear()
    server.always = 200
    second = open_sinks(tenants(server, tmp_path, "b", "a"))
    second.flush(DEADLINE_S)
    second.close(DEADLINE_S)
    shown = {(path.partition("org=")[2][0], headers["Authorization"]) for path, headers, _ in server.requests}
    assert shown == {("a", "Token of-a"), ("b", "Token of-b")}
    assert sorted(server.accepted) == sorted([*range(700), *range(700)])


@pytest.mark.parametrize("second", [
    lambda url: f"{url}B", lambda url: f"{url}A", lambda url: {"kind": "http", "url": f"{url}B", "timeout_s": 3}])
def test_two_that_differ_in_a_tokens_value_alone_are_refused_before_anything_is_opened(server, tmp_path, second):
    url = f"http://{server.address}/write?db=a&token="
    first, second = f"{url}A", second(url)
    with pytest.raises(KcompatError, match=f"sink 'http://{server.address}/write': .*token_file.*spool_dir"):
        open_sinks([f"jsonl:{tmp_path}/flows", first, second])
    assert not (tmp_path / "flows").exists()
    outputs = Outputs([first])
    with pytest.raises(KcompatError, match="same spool"):
        outputs.reopen([first, second])
    outputs.write(points(3))
    outputs.close(DEADLINE_S)
    assert server.accepted == [0, 1, 2]


def test_with_a_spool_of_its_own_or_none_it_is_another(server, tmp_path):
    url = f"http://{server.address}/write?token="
    apart = [{"kind": "http", "url": f"{url}A"}, {"kind": "http", "url": f"{url}B", "spool_dir": f"{tmp_path}/other"},
             {"kind": "http", "url": f"{url}C", "spool": "memory"}]
    open_sinks(apart).close(0)


def test_a_home_that_cannot_be_found_is_a_fault_of_the_sink(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KCOMPAT_SPOOL")
    monkeypatch.setattr("collector.sinks.places.default_path", homeless)
    with pytest.raises(KcompatError, match="sink 'datakit://h': RuntimeError: Could not determine home"):
        open_sinks(["datakit://h"])


def test_names_in_the_status_are_unique_and_the_same_in_any_order(server, tmp_path):
    specs = [*tenants(server, tmp_path, "a", "b"), f"influxdb://{server.address}", "datakit://elsewhere"]
    names = []
    for some in (specs, specs[::-1]):
        outputs = Outputs(some)
        names.append([one.name for one in outputs.statuses()])
        outputs.close(0)

    assert names[0] == names[1][::-1]
    assert len(set(names[0])) == 4 and names[0][-1] == "http://elsewhere"
    outputs = Outputs(["jsonl", "jsonl", "jsonl"])
    assert [one.name for one in outputs.statuses()] == ["jsonl", "jsonl #2", "jsonl #3"]
    outputs.close(0)


def left_by_the_first_version(server, spool_home, kind, count):
    """As it named it: by the server alone."""
    old = spool_home / f"{kind}-{hashlib.sha256(f'http://{server.address}'.encode()).hexdigest()[:16]}"
    queue = Segments(old, 1 << 20)
    sink = influxdb2(Influx2(url=f"http://{server.address}", org="a"))
    for chunk in map(sink.pack, sink.encode(points(count))):
        queue.put(chunk)
    queue.close()
    return old


def test_what_the_first_version_left_is_delivered_where_it_is_certain_whose_it_is(server, spool_home, tmp_path):
    old = left_by_the_first_version(server, spool_home, "influxdb2", 700)
    sinks = open_sinks([*tenants(server, tmp_path, "a"), f"influxdb://{server.address}"])
    sinks.flush(DEADLINE_S)
    sinks.close(DEADLINE_S)

    assert server.accepted == list(range(700))
    assert not old.exists()


def test_when_one_of_two_outputs_is_taken_out_the_other_has_what_the_first_version_left(server, spool_home, tmp_path):
    old = left_by_the_first_version(server, spool_home, "influxdb2", 700)
    specs = tenants(server, tmp_path, "a", "b")
    open_sinks(specs).close(DEADLINE_S)
    assert placed(specs[0]).is_dir() and old.exists()
    sinks = open_sinks(specs[:1])
    sinks.flush(DEADLINE_S)
    sinks.close(DEADLINE_S)

    assert server.accepted == list(range(700))
    assert not old.exists()


@pytest.mark.parametrize("how", ["points wait", "in use"])
def test_nothing_is_put_over_a_place_in_which_points_wait_or_that_is_in_use(server, spool_home, tmp_path, how):
    old = left_by_the_first_version(server, spool_home, "influxdb2", 700)
    (spec,) = tenants(server, tmp_path, "a")
    queue = Segments(placed(spec), 1 << 20)
    if how == "points wait":
        queue.put(Chunk("/write", 3, b"x"))
        queue.close()
    settle_spools([spec])

    assert old.is_dir() and (placed(spec) / "lock").exists()
    queue.close()
    queue = Segments(placed(spec), 1 << 20)
    assert queue.points == (3 if how == "points wait" else 0)
    queue.close()


def test_the_command_that_is_said_gives_it_to_one_of_them(server, spool_home, tmp_path, caplog):
    old = left_by_the_first_version(server, spool_home, "influxdb2", 700)
    specs = tenants(server, tmp_path, "a", "b")
    open_sinks(specs).close(DEADLINE_S)
    (told,) = [record.message for record in caplog.records]
    ways = dict(zip(sorted(specs, key=placed), told.partition("one of them: ")[2].split(" or: "), strict=True))
    subprocess.run(["sh", "-ec", ways[specs[1]]], check=True, timeout=DEADLINE_S)
    caplog.clear()
    sinks = open_sinks(specs)
    sinks.flush(DEADLINE_S)
    sinks.close(DEADLINE_S)

    assert [sink.written for sink in sinks.sinks] == [0, 700]
    assert not old.exists() and "no output" not in caplog.text


def test_what_may_be_of_two_is_left_alone_and_said(server, spool_home, tmp_path, caplog):
    old = left_by_the_first_version(server, spool_home, "influxdb2", 700)
    specs = tenants(server, tmp_path, "a", "b")
    sinks = open_sinks(specs)
    sinks.close(DEADLINE_S)

    assert server.accepted == [] and old.exists()
    (told,) = [record.message for record in caplog.records]
    assert str(old) in told and all(placed(spec).name in told for spec in specs)

    old.rename(placed(specs[0]).with_name("aside"))
    caplog.clear()
    open_sinks(["datakit://elsewhere"]).close(0)
    assert "aside: what waits there is for no output that there is now" in caplog.text


def test_a_spool_that_another_collector_works_on_is_not_talked_about(server, spool_home, tmp_path, caplog):
    server.always = 503
    other = open_sinks(tenants(server, tmp_path, "a"))
    other.write(points(700))
    wait_until(lambda: [*spool_home.rglob("*.chunks")])
    open_sinks(tenants(server, tmp_path, "b")).close(0)
    assert "no output" not in caplog.text
    other.close(0)
