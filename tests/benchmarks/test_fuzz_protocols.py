"""What `make fuzz-protocols` begins with is understood by the parsers, and its judge is content with it."""

import pytest

from benchmarks.fuzz_protocols import TARGETS, seeds
from collector.protocols import dns, tls


@pytest.mark.parametrize("target", TARGETS)
def test_no_part_of_a_seed_is_a_finding(target):
    feed = TARGETS[target]()
    for seed in seeds(target):
        for size in range(len(seed) + 1):
            feed(seed[:size])


def test_seeds_are_what_they_are_called():
    assert [dns.question_text(dns.parse(seed).question) for seed in seeds("dns")] == [("x.org", "A")] * 2
    assert tls.server_name(seeds("tls")[0]) == "a.b.test"
