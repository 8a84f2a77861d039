"""Run by tests: records answers for kernel after kernel, and tells on stdout once each is committed."""

import sys

from kcompat.fields import CATALOGUE
from kcompat.kernel import Kernel
from kcompat.offsets import Offset
from offset_db.db import Database
from offset_db.rows import Window


def main(path, source, numbers):
    first, last = map(int, numbers.split("-"))
    with Database.open(path) as db:
        for n in range(first, last):
            kernel = Kernel(f"{n:040x}", f"6.{n}", "Linux", "x86_64")
            offsets = [Offset.known(field, n + i, source) for i, field in enumerate(CATALOGUE)]
            db.record(kernel, offsets, [Window(f"{source}-{n}", "sock", "hook", bytes([n & 255]) * 512)])
            sys.stdout.write(f"{n}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
