"""Over a limit for long enough the most expensive dataset counts less, then is closed, and the last one never."""

import threading
import time

import pytest

from collector import limits as module
from collector.config import Limits, Options
from collector.dataset import Dataset
from collector.limits import Cost, Excess, Meter, resident_mb, thread_times_s
from collector.pipeline import Pipeline
from collector.supervised import Supervised
from kcompat.offsets import Offsets
from tests.collector.test_supervised import SETUP, Scripted


@pytest.fixture
def spend(monkeypatch):
    """spend(share): one interval of a second in which the process took so much of a processor."""
    now, cpu = [100.0], [5.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "process_time", lambda: cpu[0])

    def spent(share):
        now[0] += 1
        cpu[0] += share

    return spent


def fed(meter, spend, *shares, sent=(), **flushes_s):
    for number, share in enumerate(shares):
        spend(share)
        meter.took({name: Cost(cpu_s) for name, cpu_s in flushes_s.items()}, sum(sent[:number + 1]))
    return meter


def test_three_intervals_over_the_limit_are_too_much(spend):
    meter, limits = Meter(), Limits(cpu_percent=20)

    assert fed(meter, spend, 0.9, 0.9, a=0.1).excess(limits) is None
    assert fed(meter, spend, 0.9, a=0.1).excess(limits) == (
        "90.0 % of a processor, over the limit of 20 %", "time")
    assert meter.excess(Limits()) is None
    meter.forget()
    assert fed(meter, spend, 0.9, 0.9, a=0.1).excess(limits) is None


def test_a_burst_is_no_load(spend):
    assert fed(Meter(), spend, 0.0, 0.5, 0.0, a=0.1).excess(Limits(cpu_percent=20)) is None


def test_memory_is_a_limit_too(spend):
    meter = fed(Meter(), spend, 0, 0, 0, a=0.1)

    assert "MB of memory, over the limit of 1 MB" in meter.excess(Limits(memory_mb=1)).text
    assert meter.excess(Limits(memory_mb=1 << 20)) is None and 5 < resident_mb() < 1 << 20


def test_what_goes_to_the_outputs_is_a_limit_too(spend):
    meter = fed(Meter(), spend, 0, 0, 0, a=0.1, sent=(90_000, 30_000, 60_000))

    assert meter.excess(Limits(output_kb_s=60)) is None
    assert meter.excess(Limits(output_kb_s=59)) == ("60 kB/s to the outputs, over the limit of 59 kB/s", "records")
    meter.took({"a": Cost(1.0, 5), "b": Cost(0.5, 50)}, 180_000)
    assert (meter.most_expensive(), meter.most_expensive("records")) == ("a", "b")


def test_the_most_expensive_is_who_took_most_lately(spend):
    meter = fed(Meter(), spend, 0.9, a=5, b=1)
    fed(meter, spend, 0.9, 0.9, 0.9, a=0.1, b=0.4)

    assert meter.most_expensive() == "b"


@pytest.mark.parametrize("name", ["busy", "busy with this"])
def test_threads_of_a_dataset_count_by_their_name(name):
    stop = threading.Event()

    def work():
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=work, name=name)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while thread_times_s(["busy"])["busy"] < 0.05 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert thread_times_s(["busy"])["busy"] >= 0.05 and thread_times_s(["other"]) == {}
    finally:
        stop.set()
        thread.join()


def test_the_pipeline_closes_one_but_never_the_last(monkeypatch, caplog):
    pipeline = Pipeline(Options("box", limits=Limits(cpu_percent=1)), Offsets(), None)
    pipeline._datasets = {name: Supervised(Dataset(name, Scripted)) for name in ("cheap", "dear")}
    for one in pipeline._datasets.values():
        one.start(SETUP)
    pipeline._datasets["dear"].flush_cpu_s = 1.0
    monkeypatch.setattr(Meter, "excess", lambda self, limits: Excess("too much", "time"))

    for _ in range(3):
        pipeline._keep_limits()

    told = {one.dataset: one for one in pipeline.status.datasets}
    assert told["cheap"].state == "attached" and "the most expensive dataset: too much" in told["dear"].reason
    assert told["dear"].retry_in_s > 0
    assert "cheap alone takes too much; it goes on" in caplog.text


class Flush:
    """A sink that keeps what it is given."""

    name, written, dropped = "kept", 0, 0

    def __init__(self):
        self.records = []

    def write(self, records):
        self.records += records


class Countable(Scripted):
    """One that can count less."""

    def __init__(self, setup):
        super().__init__(setup)
        self.one_of = 1

    def sample(self, one_of):
        self.one_of = one_of
        return True


def test_the_pipeline_has_one_count_less_before_it_closes_it_and_all_again_later(monkeypatch, caplog):
    pipeline = Pipeline(Options("box", limits=Limits(cpu_percent=1)), Offsets(), Flush())
    one = Supervised(Dataset("only", Countable))
    pipeline._datasets = {"only": one}
    one.start(SETUP)
    excess = [Excess("too much", "time")]
    monkeypatch.setattr(Meter, "excess", lambda self, limits: excess[0])
    shares = []

    for _ in range(3):
        pipeline._keep_limits()
        pipeline._flush()
        shares.append((one.running.one_of, {r.tags.get("sampling") for r in pipeline._sink.records}))
        pipeline._sink.records.clear()
    assert shares == [(8, {"1/8"}), (64, {"1/64"}), (64, {"1/64"})]
    told, = pipeline.status.datasets
    assert told.state == "degraded" and told.reason == "counts one of 64 flows: too much"
    assert "only counts one of 8 flows: too much; all again in 30 s" in caplog.text
    assert "only alone takes too much; it goes on" in caplog.text

    excess[0] = None
    pipeline._keep_limits()
    assert one.running.one_of == 64  # not yet
    one._full_at = time.monotonic()
    pipeline._keep_limits()
    pipeline._flush()
    assert one.running.one_of == 1 and {r.tags.get("sampling") for r in pipeline._sink.records} == {None}
    assert pipeline.status.datasets[0].state == "attached"
