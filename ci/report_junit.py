"""A run as JUnit XML: a suite per kernel, a case per check, and one per field or test that is not right."""

from __future__ import annotations

import io

from junitparser import Error, Failure
from junitparser.xunit2 import JUnitXml, TestCase, TestSuite

from ci.report_facts import asked, failed_tests
from ci.results import Check, FieldResult, KernelResult, MatrixResult
from ci.verdict import Outcome, printable


def junit(result: MatrixResult) -> str:
    report = JUnitXml("kernel matrix")
    for kernel in result.kernels:
        report.add_testsuite(_suite(kernel, result))
    report.update_statistics()  # type: ignore[no-untyped-call]
    # Of the suites' sum and the clock, the clock is what people wait for: kernels run side by side.
    report.time = round(result.seconds, 3)
    out = io.BytesIO()
    report.write(out, pretty=True)
    return out.getvalue().decode()


def _suite(kernel: KernelResult, result: MatrixResult) -> TestSuite:
    suite = TestSuite(_safe(kernel.name))  # type: ignore[no-untyped-call]
    suite.timestamp = _safe(result.started).removesuffix("Z").partition("+")[0]
    suite.hostname = _safe(result.host.get("name", next(iter(result.host.values()), "localhost")))
    known = {"release": kernel.release, "machine": kernel.machine, "flavour": kernel.flavour, "origin": kernel.origin,
             "package": kernel.package, "version": kernel.version, "build_id": kernel.build_id,
             "worker": kernel.worker, "log": kernel.log}
    for name, value in known.items():
        if value:
            suite.add_property(name, _safe(value))
    for check in asked(kernel):
        suite.add_testcase(_check(kernel, check))
        for name, message in failed_tests(check):
            case = TestCase(_safe(name), classname=f"{_safe(kernel.name)}.tests", time=0.0)
            suite.add_testcase(_judged(case, Outcome.FAIL, next(iter(message.splitlines()), ""), message))
    for field in kernel.fields:
        if field.outcome is not Outcome.PASS:
            suite.add_testcase(_field(kernel, field))
    if kernel.console:
        suite.system_out = "\n".join(map(_safe, kernel.console))
    return suite


def _check(kernel: KernelResult, check: Check) -> TestCase:
    case = TestCase(_safe(check.name), classname=_safe(kernel.name), time=round(check.seconds or 0.0, 3))
    return _judged(case, check.outcome, check.reason)


def _field(kernel: KernelResult, field: FieldResult) -> TestCase:
    case = TestCase(_safe(field.name), classname=f"{_safe(kernel.name)}.fields", time=0.0)
    places = [f"guess: {field.verdict}, {field.offset}"]
    places += [f"{name}: {judge.get('state')}, {judge.get('offset')}" for name, judge in field.judges.items()]
    if field.candidates:
        places.append(f"candidates: {', '.join(map(str, field.candidates))}")
    return _judged(case, field.outcome, field.reason or "; ".join(places), "\n".join(places))


def _judged(case: TestCase, outcome: Outcome, reason: str, text: str = "") -> TestCase:
    """What could not be told is an error: CI systems show what is skipped in green."""
    if outcome is Outcome.PASS:
        return case
    kind = Failure if outcome is Outcome.FAIL else Error
    entry = kind(_safe(reason), outcome.value)
    entry.text = "\n".join(map(_safe, text.splitlines())) or _safe(reason)
    case.result = [entry]
    return case


def _safe(text: object) -> str:
    """What is printable is also allowed in XML 1.0; control characters and lone surrogates are not."""
    return printable(str(text))
