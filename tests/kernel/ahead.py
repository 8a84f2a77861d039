"""``python -m tests.kernel.ahead MACHINE``: compiles what these tests load, prints the files, one a line."""

import platform
import sys

from kcompat.bpf import cached_path, compile_cached
from tests.kernel.built import minimal_btf
from tests.kernel.test_load import SOURCE


def main(machine):
    compile_cached(SOURCE, machine=machine)
    made = [cached_path(SOURCE, machine)]
    # Its loader is a program of this machine.
    if machine == platform.machine():
        made += minimal_btf()
    sys.stdout.writelines(f"{path}\n" for path in made)


if __name__ == "__main__":
    main(*sys.argv[1:])
