"""What these tests need compiled, kept by its content: guests without KVM are given it, anybody else makes it once."""

import hashlib
import platform
import subprocess
import tempfile
from pathlib import Path

from kcompat.bpf import cache_dir

HERE = Path(__file__).parent
CORE, LOADER = HERE / "minimal_btf.bpf.c", HERE / "minimal_btf.c"
DEADLINE_S = 60


def minimal_btf():
    """(the loader, the CO-RE object) of test_minimal_btf. Raises OSError without a compiler."""
    content = hashlib.sha256(CORE.read_bytes() + LOADER.read_bytes() + platform.machine().encode()).hexdigest()
    kept = cache_dir().parent / "tests" / content[:16]
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as work:
            made = Path(work) / "made"
            made.mkdir()
            triple = run("gcc", "-print-multiarch").strip()
            run("clang", "-g", "-O2", "-Wall", "-Werror", "-target", "bpf", f"-I/usr/include/{triple}", "-c", CORE,
                "-o", made / "core.o")
            # Static: a guest's C library may be older than ours.
            run("gcc", "-O2", "-Wall", "-Werror", "-static", "-s", LOADER, "-o", made / "loader",
                "-lbpf", "-lelf", "-lz")
            made.rename(kept)
    return kept / "loader", kept / "core.o"


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr}")
    return done.stdout
