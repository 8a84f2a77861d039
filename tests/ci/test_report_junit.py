"""The JUnit file: what CI systems accept, and nothing in it green that is not."""

from pathlib import Path

import pytest
import xmlschema
from junitparser import Error, Failure, JUnitXml

from ci.report import write_junit
from ci.report_junit import junit
from ci.results import KernelResult
from tests.ci import matrix_data as data

SCHEMA = xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))
RUNS = {
    "whole": data.whole(),
    "hostile": data.matrix(data.hostile()),
    "nothing asked": data.matrix(KernelResult("k", "x86_64", "generic")),
    "no kernel": data.matrix(),
}


def results(suite, classname):
    """Name to the kind of fault, None for a pass."""
    return {case.name: type(case.result[0]) if case.result else None for case in suite if case.classname == classname}


@pytest.mark.parametrize("run", RUNS)
def test_every_run_is_valid(run):
    SCHEMA.validate(junit(RUNS[run]))


def test_a_kernel_is_a_suite_and_a_check_a_case():
    suites = {suite.name: suite for suite in JUnitXml.fromstring(junit(data.whole()).encode())}

    assert list(suites) == [kernel.name for kernel in data.whole().kernels]
    assert set(results(suites["6.12"], "6.12").values()) == {None}
    assert results(suites["6.1"], "6.1") == dict.fromkeys(("fetch", "boot", "info", "guess", "collect", "shutdown")) | {
        "btf": Failure, "tests": Failure}


def test_fields_and_kernel_tests_that_are_not_right_are_cases():
    (suite,) = JUnitXml.fromstring(junit(data.matrix(data.failing())).encode())

    assert results(suite, "6.1.fields") == {"sock.sk_mark": Failure, "tcp_sock.segs_in": Error, "net.ns.inum": Error}
    assert results(suite, "6.1.tests") == {"tests/kernel/test_guess.py::test_mark": Failure}
    (mark,) = (case for case in suite if case.name == "sock.sk_mark")
    assert "btf: known, 508" in mark.result[0].text


@pytest.mark.parametrize("kernel", [data.lost(), KernelResult("k", "x86_64", "generic")])
def test_what_could_not_be_told_is_an_error_and_never_skipped(kernel):
    report = JUnitXml.fromstring(junit(data.matrix(kernel)).encode())

    assert report.errors > 0 and report.failures == 0
    assert "<skipped" not in junit(data.matrix(kernel))


def test_a_hostile_console_is_text():
    (suite,) = JUnitXml.fromstring(junit(data.matrix(data.hostile())).encode())

    assert "<script>alert(1)</script>" in suite.name and "\x1b" not in suite.name


def test_the_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "junit.xml"
    write_junit(data.whole(), path)
    before = path.read_text()

    with pytest.raises(AttributeError):
        write_junit(None, path)

    assert path.read_text() == before and list(path.parent.iterdir()) == [path]
