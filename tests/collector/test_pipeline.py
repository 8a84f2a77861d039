"""The loop over the datasets: what users add up never falls, whichever of them another configuration takes out."""

import threading
from dataclasses import replace

from collector import pipeline
from collector.config import Options
from collector.dataset import Dataset
from kcompat.offsets import Offsets
from tests.collector.test_supervised import Scripted


class Kept:
    """What a sink is given."""

    def __init__(self):
        self.records = []

    def write(self, records):
        self.records += records


def test_counters_of_a_dataset_that_was_taken_out_and_put_in_again_go_on(monkeypatch):
    monkeypatch.setattr(pipeline, "DATASETS", {name: Dataset(name, Scripted) for name in ("one", "two")})
    both, alone = (Options("box", datasets=names, interval_s=1) for names in (("one", "two"), ("one",)))
    ready, stop = threading.Event(), threading.Event()
    sink = Kept()
    runs = pipeline.Pipeline(both, Offsets(), sink, ready=ready)
    done = []
    thread = threading.Thread(target=lambda: done.append(runs.run(stop)))
    thread.start()
    try:
        assert ready.wait(20)
        for reloads, options in enumerate((alone, replace(alone, interval_s=2), both), 1):
            runs.adopt(options)
            while runs.status.reloads < reloads:
                assert thread.is_alive()
            assert [told.dataset for told in runs.status.datasets] == list(options.datasets)
    finally:
        stop.set()
        thread.join(20)
    (summary,) = done
    told = {one.dataset: one for one in runs.status.datasets}
    # "two" was flushed before the first change and at the end, and lost three packets in each of its two lives.
    assert (told["two"].records, told["two"].lost, told["two"].restarts) == (10, {"packets": 6}, 1)
    assert told["two"].left_out == {"unasked": 4}
    assert summary.records == len(sink.records)


def test_everything_is_prepared_before_anything_is_started(monkeypatch):
    done = []

    def row(name):
        def start(setup):
            done.append(f"start {name}")
            return Scripted(setup)

        return Dataset(name, start, prepare=lambda options: done.append(f"prepare {name} of {options.host}"))

    monkeypatch.setattr(pipeline, "DATASETS", {name: row(name) for name in ("one", "two", "three")})
    pipeline.Pipeline(Options("box", datasets=("two", "one")), Offsets(), Kept()).run(threading.Event(), 0.01)
    assert done == ["prepare two of box", "prepare one of box", "start two", "start one"]


def test_a_configuration_that_comes_while_another_is_taken_over_is_not_lost(monkeypatch):
    monkeypatch.setattr(pipeline, "DATASETS", {"one": Dataset("one", Scripted)})
    first, stop = Options("box", datasets=("one",), interval_s=1), threading.Event()
    runs = pipeline.Pipeline(first, Offsets(), Kept())
    change = runs._change

    def disturbed(options):
        if options.interval_s == 2:
            runs.adopt(replace(first, interval_s=3))
        change(options)
        if options.interval_s == 3:
            stop.set()

    monkeypatch.setattr(runs, "_change", disturbed)
    runs.adopt(replace(first, interval_s=2))
    runs.run(stop, 20)

    assert (runs.options.interval_s, runs.status.reloads) == (3, 2)
