"""``python -m tests.kernel.ahead MACHINE DATABASE``: compiles what these tests load, prints the files, one a line."""

import platform
import sys
from pathlib import Path

from collector.datasets import netflow
from kcompat.bpf import cached_path, compile_cached
from kcompat.errors import UnknownField
from kcompat.fields import CATALOGUE
from kcompat.offsets import Offsets
from offset_db.db import Database
from offset_db.resolver import DatabaseResolver
from tests.kernel import test_canary, test_load
from tests.kernel.built import minimal_btf


def sources(machine, database):
    """C of the tests' own, some of it for each kernel in the database."""
    yield test_load.SOURCE
    with Database.open(database) as db:
        for kernel in db.kernels():
            offsets = Offsets(DatabaseResolver(db, None).resolve(kernel, CATALOGUE))
            for name in test_canary.IN_GUESTS if kernel.machine == machine else ():
                try:
                    yield netflow.render(test_canary.shifted(offsets, name), test_canary.OPTIONS)
                except (UnknownField, KeyError):
                    continue  # the guest compiles what it knows better


def main(machine, database):
    made = []
    for source in sources(machine, Path(database)):
        compile_cached(source, machine=machine)
        made.append(cached_path(source, machine))
    # Its loader is a program of this machine.
    if machine == platform.machine():
        made += minimal_btf()
    sys.stdout.writelines(f"{path}\n" for path in made)


if __name__ == "__main__":
    main(*sys.argv[1:])
