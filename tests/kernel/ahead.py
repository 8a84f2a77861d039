"""``python -m tests.kernel.ahead MACHINE``: compiles what these tests load, prints the files, one a line."""

import platform
import sys

from kcompat.bpf import cached_path, compile_cached
from tests.kernel import test_load
from tests.kernel.built import minimal_btf


def main(machine):
    compile_cached(test_load.SOURCE, machine=machine)
    made = [cached_path(test_load.SOURCE, machine)]
    # Its loader is a program of this machine.
    if machine == platform.machine():
        made += minimal_btf()
    sys.stdout.writelines(f"{path}\n" for path in made)


if __name__ == "__main__":
    main(*sys.argv[1:])
