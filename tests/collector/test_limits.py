"""Over a limit for long enough the most expensive dataset is closed, and the last one never."""

import threading
import time

import pytest

from collector import limits as module
from collector.config import Limits, Options
from collector.dataset import Dataset
from collector.limits import Meter, resident_mb, thread_times_s
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


def fed(meter, spend, *shares, **flushes_s):
    for share in shares:
        spend(share)
        meter.took(flushes_s)
    return meter


def test_three_intervals_over_the_limit_are_too_much(spend):
    meter, limits = Meter(), Limits(cpu_percent=20)

    assert fed(meter, spend, 0.9, 0.9, a=0.1).excess(limits) is None
    assert fed(meter, spend, 0.9, a=0.1).excess(limits) == "90.0 % of a processor, over the limit of 20 %"
    assert meter.excess(Limits()) is None
    meter.forget()
    assert fed(meter, spend, 0.9, 0.9, a=0.1).excess(limits) is None


def test_a_burst_is_no_load(spend):
    assert fed(Meter(), spend, 0.0, 0.5, 0.0, a=0.1).excess(Limits(cpu_percent=20)) is None


def test_memory_is_a_limit_too(spend):
    meter = fed(Meter(), spend, 0, 0, 0, a=0.1)

    assert "MB of memory, over the limit of 1 MB" in meter.excess(Limits(memory_mb=1))
    assert meter.excess(Limits(memory_mb=1 << 20)) is None and 5 < resident_mb() < 1 << 20


def test_the_most_expensive_is_who_took_most_lately(spend):
    meter = fed(Meter(), spend, 0.9, a=5, b=1)
    fed(meter, spend, 0.9, 0.9, 0.9, a=0.1, b=0.4)

    assert meter.most_expensive() == "b"


def test_threads_of_a_dataset_count_by_their_name():
    stop = threading.Event()

    def work():
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=work, name="busy")
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while thread_times_s({"busy": 0})["busy"] < 0.05 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert thread_times_s({"busy": 0})["busy"] >= 0.05 and thread_times_s({"other": 0}) == {}
    finally:
        stop.set()
        thread.join()


def test_the_pipeline_closes_one_but_never_the_last(monkeypatch, caplog):
    pipeline = Pipeline(Options("box", limits=Limits(cpu_percent=1)), Offsets(), None)
    pipeline._datasets = {name: Supervised(Dataset(name, Scripted)) for name in ("cheap", "dear")}
    for one in pipeline._datasets.values():
        one.start(SETUP)
    pipeline._datasets["dear"].flush_cpu_s = 1.0
    monkeypatch.setattr(Meter, "excess", lambda self, limits: "too much")

    for _ in range(3):
        pipeline._keep_limits()

    told = {one.dataset: one for one in pipeline.status.datasets}
    assert told["cheap"].state == "attached" and "the most expensive dataset: too much" in told["dear"].reason
    assert told["dear"].retry_in_s > 0
    assert "cheap alone takes too much; it goes on" in caplog.text
