"""The kernel's lists of processors."""

import os

import pytest

from kcompat.perf_buffer import cpus_of, online


@pytest.mark.parametrize(("ranges", "cpus"), [("0", [0]), ("0-3", [0, 1, 2, 3]), ("0-1,4,6-7", [0, 1, 4, 6, 7])])
def test_lists_are_spelled_out(ranges, cpus):
    assert cpus_of(ranges) == cpus


def test_ours_are_among_them():
    assert os.sched_getaffinity(0) <= set(cpus_of(online()))
