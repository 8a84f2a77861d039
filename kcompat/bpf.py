"""Compiles BPF C with bcc, its only importer, into objects that load later without bcc."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import platform
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO

from kcompat.errors import KcompatError, Missing
from kcompat.maps import MapSpec

log = logging.getLogger(__name__)

HEADERS = Path(__file__).parent / "headers"
_BCC_ARCH = {"x86_64": "x86", "aarch64": "arm64"}
_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1
_TOO_LONG_FOR_LOG = 4000


@dataclass(frozen=True, slots=True)
class ObjectProgram:
    """One function: eBPF instructions of 8 bytes, and which of them load the address of which map."""

    name: str
    instructions: bytes
    relocations: tuple[tuple[int, str], ...]

    @property
    def size(self) -> int:
        return len(self.instructions) // 8


@dataclass(frozen=True, slots=True)
class Object:
    """A compiled source: programs and the maps they share. Pure data, made once, loaded as often as one likes."""

    programs: tuple[ObjectProgram, ...]
    maps: tuple[MapSpec, ...]
    license: str

    def dump(self) -> str:
        raw = asdict(self)
        for program in raw["programs"]:
            program["instructions"] = program["instructions"].hex()
        return json.dumps(raw)

    @classmethod
    def parse(cls, text: str) -> Object:
        """The object `dump` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        raw = json.loads(text)
        return cls(
            tuple(ObjectProgram(p["name"], bytes.fromhex(p["instructions"]),
                                tuple((int(i), str(n)) for i, n in p["relocations"])) for p in raw["programs"]),
            tuple(MapSpec(**m) for m in raw["maps"]),
            str(raw["license"]),
        )


def cache_dir() -> Path:
    """Where compiled objects are kept: they are only ever a shortcut, deleting them costs a compilation."""
    if chosen := os.environ.get("KCOMPAT_CACHE"):
        return Path(chosen) / "bpf"
    if os.geteuid() == 0:
        return Path("/var/cache/kcompat/bpf")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kcompat" / "bpf"


Compiler = Callable[[str, str | None], Object]
_compilers: list[Compiler] = []


@contextmanager
def compiling_by(compiler: Compiler) -> Iterator[None]:
    """Meanwhile it is what compiles, for every caller of `compile_cached`: only who lives long cares what does."""
    _compilers.append(compiler)
    try:
        yield
    finally:
        _compilers.remove(compiler)


def compile_cached(source: str, *, machine: str | None = None, use_cache: bool = True) -> tuple[Object, bool]:
    """The compiled source and whether it came from the cache.

    The key holds everything the code depends on: source, stub headers, machine. The kernel is not among them.
    """
    path = cached_path(source, machine)
    if use_cache and (found := _read_cached(path)):
        return found, True
    compiled = _compilers[-1](source, machine) if _compilers else compile_source(source, machine)
    if use_cache:
        with suppress(OSError):
            _write_whole(path, compiled.dump())
    return compiled, False


def cached_path(source: str, machine: str | None = None) -> Path:
    """Where the compiled source is kept, if it is."""
    return cache_dir() / f"{_cache_key(source, machine or platform.machine())}.json"


def compile_source(source: str, machine: str | None = None, words_to: IO[bytes] | None = None) -> Object:
    """C to object through bcc and its LLVM, for this machine type or another: ``x86_64``, ``aarch64``.

    The same source makes the same object whatever kernel runs here or there: what an object must say of its kernel,
    the number that loading asks for before 5.0, it is told when it is loaded.
    Raises Missing without bcc, KcompatError with the compiler's words when the source is refused. Over some faults LLVM
    ends the process: what it said is then in the file `words_to`, an empty one.
    """
    machine = machine or platform.machine()
    if machine not in _BCC_ARCH:
        raise KcompatError(f"no programs can be compiled for {machine}: only for {' and '.join(_BCC_ARCH)}")
    try:
        from bcc import lib
    except (ImportError, OSError) as error:
        raise Missing(f"bcc is needed to compile BPF: apt-get install python3-bpfcc ({error})") from error
    os.environ["BCC_KERNEL_SOURCE"] = str(HEADERS)
    flags = [b"-Wno-macro-redefined"]
    array = (ctypes.c_char_p * len(flags))(*flags)
    with _captured_stderr(words_to) as said, _target(machine):
        module = lib.bpf_module_create_c_from_string(source.encode(), 0, array, len(flags), True, None)
    words = "".join(said).strip()
    if not module:
        raise KcompatError(f"bcc could not compile the program: {first_error(words)}")
    if words:
        log.debug("bcc said: %s", words[:_TOO_LONG_FOR_LOG])
    try:
        return _extract(lib, module)
    finally:
        lib.bpf_module_destroy(module)


def _extract(lib: ctypes.CDLL, module: int) -> Object:
    for name, result, arguments in (
        ("bpf_num_tables", ctypes.c_size_t, [ctypes.c_void_p]),
        ("bpf_table_name", ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_size_t]),
        ("bpf_table_fd_id", ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t]),
        ("bpf_table_key_size_id", ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_size_t]),
        ("bpf_table_leaf_size_id", ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_size_t]),
    ):
        getattr(lib, name).restype, getattr(lib, name).argtypes = result, arguments
    maps, names = [], {}
    for i in range(lib.bpf_num_tables(module)):
        name = lib.bpf_table_name(module, i).decode()
        names[lib.bpf_table_fd_id(module, i)] = name
        maps.append(MapSpec(name, lib.bpf_table_type_id(module, i), lib.bpf_table_key_size_id(module, i),
                            lib.bpf_table_leaf_size_id(module, i), lib.bpf_table_max_entries_id(module, i),
                            lib.bpf_table_flags_id(module, i)))
    programs = []
    for i in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, i)
        code = ctypes.string_at(lib.bpf_function_start(module, name), lib.bpf_function_size(module, name))
        programs.append(ObjectProgram(name.decode(), code, tuple(_relocations(code, names))))
    license_ = (lib.bpf_module_license(module) or b"GPL").decode()
    return Object(tuple(programs), tuple(maps), license_)


def _relocations(code: bytes, names: dict[int, str]) -> Iterator[tuple[int, str]]:
    """bcc writes the descriptors of the maps it made into the code: these are the places, by map name."""
    for at in range(0, len(code), 8):
        opcode, registers, _, immediate = struct.unpack_from("<BBhi", code, at)
        if opcode == _LD_IMM64 and registers >> 4 == _PSEUDO_MAP_FD:
            yield at // 8, names[immediate]


@contextmanager
def _target(machine: str) -> Iterator[None]:
    """bcc asks the environment for its target: whoever builds kernels may have an ARCH there that means another."""
    before = os.environ.get("ARCH")
    os.environ["ARCH"] = _BCC_ARCH[machine]
    try:
        yield
    finally:
        if before is None:
            del os.environ["ARCH"]
        else:
            os.environ["ARCH"] = before


@contextmanager
def _captured_stderr(into: IO[bytes] | None) -> Iterator[list[str]]:
    """clang writes to descriptor 2 from C; what it says is for the log or the error, not for the terminal."""
    said: list[str] = []
    with nullcontext(into) if into else tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


def first_error(words: str) -> str:
    """Of what the compiler said, the line that says why not."""
    lines = [line for line in words.splitlines() if "error" in line.lower()]
    return (lines or words.splitlines() or ["it said nothing"])[0].strip()


@cache
def _headers_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(HEADERS.rglob("*.h")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _cache_key(source: str, machine: str) -> str:
    parts = (source, _headers_hash(), machine, "2")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read_cached(path: Path) -> Object | None:
    try:
        if path.stat().st_uid != os.geteuid():
            return None  # code we load with our privileges comes from ourselves only
        return Object.parse(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: unreadable cached program, compiling again (%s)", path, error)
        return None


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        try:
            file.write(text)
            file.close()
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise
