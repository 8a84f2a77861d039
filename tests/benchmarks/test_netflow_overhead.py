"""What the benchmark of netflow's cost makes of what it measured."""

import shutil

import pytest

from benchmarks.measure import children_s
from benchmarks.netflow_overhead import Measured, share, table
from benchmarks.netflow_overhead_loads import Load, loads

LOAD = Load("a stream", "MB", 1e6, lambda seconds: 0.0)
RESULTS = {("nothing", "it"): [Measured(100e6, 0, 0), Measured(200e6, 0, 0)],
           ("empty", "it"): [Measured(99e6, 50, 2e-4), Measured(198e6, 50, 2e-4)],
           ("netflow", "it"): [Measured(90e6, 150, 2e-4), Measured(190e6, 150, 2e-4)]}


def test_a_loss_is_of_each_round_and_a_share_is_without_the_clock():
    rows = [row.strip("| ").split(" | ") for row in table(RESULTS, ["nothing", "empty", "netflow"], "it", LOAD)]

    assert [(row[0], row[1], row[2], row[4], row[5]) for row in rows[2:]] == [
        ("nothing", "150", "+0.0 %", "0", "0.0 %"), ("empty", "148", "+1.0 %", "50", "0.0 %"),
        ("netflow", "140", "+7.5 %", "150", "0.3 %")]
    # 100 ns, 200 times a megabyte, of which 150 go in a second.
    assert share(RESULTS["netflow", "it"], RESULTS["empty", "it"], RESULTS["nothing", "it"]) == pytest.approx(0.003)


def test_every_load_moves_something_and_its_processor_time_is_known():
    # iperf3's server counts nothing of what still lies in the sockets' buffers, of some MB, when its client ends.
    with loads(bytes_a_second=1 << 30) as known:
        assert ("iperf3" in known) == bool(shutil.which("iperf3"))
        for load in known.values():
            before = children_s()
            assert load.run(0.1) > 0
            assert children_s() > before
