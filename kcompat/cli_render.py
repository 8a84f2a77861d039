"""`kcompat render`: the C of a dataset, and how its programs would fare in an older kernel."""

from __future__ import annotations

import textwrap

from collector import pipeline
from collector.config import Options
from kcompat.bpf import compile_source
from kcompat.cli_collect import offsets_of
from kcompat.cli_sources import Request
from kcompat.dialect import check
from kcompat.probe import require_bpf


def rendered(dataset: str, request: Request, nodename: str) -> str:
    """The C of the dataset with this kernel's offsets; where they came from goes to standard error."""
    return pipeline.render(dataset, offsets_of(request, (dataset,))[1], Options(nodename))


def rendered_for(dialect: str, source: str) -> tuple[str, bool]:
    """The C of `rendered` under a comment on how each program fares in an old kernel; and whether the probes do.

    Probes are the hooks every dialect has: where one of their programs is refused, there is no dataset. What is told to
    raw tracepoints and to cgroups where there are any, probes tell elsewhere. Compiling makes maps, which root may.
    """
    require_bpf()
    fits = check(compile_source(source), dialect)
    loads = sum(fit.loads for fit in fits)
    lines = [f"/* BPF of Linux {dialect}: {loads} of {len(fits)} programs load.", " *"]
    for fit in fits:
        what = f"{fit.instructions} instructions, {fit.stack} bytes of stack" if fit.loads else "; ".join(fit.refusals)
        lines.append(f" * {fit.program}: {what}")
    helpers = sorted({helper for fit in fits if fit.loads for helper in fit.helpers})
    lines += [" *", *(f" * {line}" for line in textwrap.wrap(f"helpers: {', '.join(helpers)}", 100)), " */", ""]
    return "\n".join(lines) + source, all(fit.loads for fit in fits
                                              if not fit.program.startswith(("rawtp__", "cgroup__")))
