"""`python -m ci.audit`: known vulnerabilities of what kcompat's users install, as pip-audit finds them, if it can ask.

Exit status 1 for a vulnerability. Where nobody answers (no network, a mirror without advisories) it says so, and that
is no failure: a build without network is a build.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PRODUCT = "kcompat"
# What developers alone install is no user's risk.
DEVELOPERS = frozenset(("docs", "fuzz", "lint", "matrix", "test"))
_PATIENCE_S = 120.0


class Verdict(NamedTuple):
    """`faults` are lines about vulnerable packages; `words` sum it up."""

    faults: tuple[str, ...]
    words: str


def main() -> int:
    installed = dict(shipped())
    verdict = asked(installed)
    for line in (*verdict.faults, verdict.words):
        print(f"audit: {line}")
    return bool(verdict.faults)


def shipped(product: str = PRODUCT) -> Iterator[tuple[str, str]]:
    """Name and version of everything installed that the product, with its users' extras, needs."""
    extras = set(metadata.metadata(product).get_all("Provides-Extra") or ()) - DEVELOPERS
    seen: set[str] = set()
    ahead: list[tuple[str, frozenset[str]]] = [(product, frozenset(extras))]
    while ahead:
        name, wanted = ahead.pop()
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform, or an extra that is not installed here
        if name not in seen and name != product:
            yield name, found.version
        seen.add(name)
        for requirement in map(Requirement, found.requires or ()):
            needed = canonicalize_name(requirement.name)
            if needed not in seen and _applies(requirement, wanted):
                ahead.append((needed, frozenset(requirement.extras)))


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def asked(installed: Mapping[str, str]) -> Verdict:
    """What pip-audit says of these versions."""
    with tempfile.NamedTemporaryFile("w", prefix="kcompat-audit-", suffix=".txt") as file:
        file.writelines(f"{name}=={version}\n" for name, version in sorted(installed.items()))
        file.flush()
        command = (str(Path(sys.executable).with_name("pip-audit")), "--requirement", file.name, "--no-deps",
                   "--disable-pip", "--progress-spinner", "off", "--format", "json")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Verdict((), f"nothing was audited: {error}")
    try:
        told = json.loads(done.stdout)
    except ValueError:
        words = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return Verdict((), f"nothing was audited: {words[-1][:200]}")
    return judged(told)


def judged(told: Mapping[str, Any]) -> Verdict:
    """From the JSON of pip-audit."""
    packages = told["dependencies"]
    faults = tuple(f"{one['name']} {one['version']}: {flaw['id']}, "
                   f"mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
                   for one in packages for flaw in one.get("vulns", ()))
    skipped = sum("skip_reason" in one for one in packages)
    words = f"{len(packages) - skipped} of {len(packages)} packages audited, {len(faults)} known vulnerabilities"
    return Verdict(faults, words + (f"; nobody here knows of {skipped}" if skipped else ""))


if __name__ == "__main__":
    sys.exit(main())
