"""Kernel configurations: what is asked for, what wins, and what kconfig quietly did not grant."""

import pytest

from ci.kconfig import merge, parse, render, unmet


def test_a_configuration_is_read_as_the_kernel_writes_it():
    text = '# Networking\n#\nCONFIG_NET=y\n# CONFIG_IPV6 is not set\nCONFIG_LOCALVERSION="-a b"\nCONFIG_NR_CPUS=4\n\n'
    assert parse(text) == {
        "CONFIG_NET": "y", "CONFIG_IPV6": "n", "CONFIG_LOCALVERSION": '"-a b"', "CONFIG_NR_CPUS": "4"}


def test_what_is_rendered_reads_the_same():
    options = {"CONFIG_NET": "y", "CONFIG_IPV6": "n", "CONFIG_NR_CPUS": "4"}
    assert parse(render(options)) == options


@pytest.mark.parametrize("line", ["CONFIG_NET", "NET=y", "CONFIG_NET=", "CONFIG_NET = y"])
def test_a_line_that_is_no_option_is_named(line):
    with pytest.raises(ValueError, match="line 2 is no option"):
        parse(f"CONFIG_A=y\n{line}\n")


def test_the_later_fragment_wins():
    assert merge([{"CONFIG_IPV6": "y", "CONFIG_NET": "y"}, {"CONFIG_IPV6": "n"}]) == {
        "CONFIG_IPV6": "n", "CONFIG_NET": "y"}


def test_what_was_not_granted_is_told_with_the_reason():
    requested = {"CONFIG_NET": "y", "CONFIG_SMP": "n", "CONFIG_IPV6": "n", "CONFIG_KPROBES": "y", "CONFIG_BTF": "y"}
    actual = {"CONFIG_NET": "y", "CONFIG_SMP": "y", "CONFIG_KPROBES": "n"}
    assert unmet(requested, actual) == [
        "CONFIG_SMP=n requested but the kernel's .config says CONFIG_SMP=y",
        "CONFIG_KPROBES=y requested but the kernel's .config says not set",
        "CONFIG_BTF=y requested but the kernel's .config says nothing: "
        "its dependencies are off, or this version does not know it",
    ]
