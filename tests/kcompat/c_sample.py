"""One C file with the shapes kernel structs have, and what the compiled program itself says of its layout."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("KCOMPAT_SHARED", Path(__file__).parents[3] / "shared"))

PLAIN = ("common.dport", "common.daddr", "word", "low", "high", "deep", "either", "pair[1].lo", "pair", "pointer",
         "colour", "packed.tail", "last")
BITS = ("one", "three", "protocol", "kind", "wide", "inner_bit", "after")

SOURCE = """
#include <stddef.h>
#include <stdio.h>
#include <string.h>
struct declared;
struct common { unsigned short dport; unsigned int daddr; };
typedef const volatile struct common common_t;
struct half { unsigned char c; unsigned short lo; };
struct __attribute__((packed)) tight { char c; long tail; };
struct sample {
	struct common common;
	unsigned one : 1, three : 3, : 4, protocol : 8, kind : 16;
	unsigned long wide : 37;
	union { int word; struct { short low, high; }; };
	struct { char pad; union { struct { long deep; unsigned inner_bit : 5; }; char either; }; };
	struct half pair[2];
	struct declared *pointer;
	enum { RED } colour;
	struct tight packed;
	unsigned char after : 2;
	common_t last;
	int flexible[];
};
struct sample sample;
"""

_PRINTER = """
static void bits(const char *name)
{
	int first = -1, count = 0;
	for (size_t i = 0; i < sizeof(sample) * 8; i++)
		if (((unsigned char *)&sample)[i / 8] >> i % 8 & 1) { if (first < 0) first = i; count++; }
	printf("%s %d %d\\n", name, first, count);
}
#define PLAIN(path) printf("%s %zu %zu\\n", #path, offsetof(struct sample, path) * 8, sizeof(sample.path) * 8);
#define BITS(path) memset(&sample, 0, sizeof(sample)); sample.path = -1; bits(#path);
int main(void) { %s return 0; }
"""


def need(*tools):
    for tool in tools:
        if not (shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")):
            pytest.skip(f"{tool} is not installed")


def run(*command):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=120).stdout


def compiled(directory, *flags, compiler="gcc", source=SOURCE, name="sample.o"):
    need(compiler)
    (directory / "sample.c").write_text(source)
    link = () if "-shared" in flags else ("-c",)
    run(compiler, "-w", *flags, *link, directory / "sample.c", "-o", directory / name)
    return directory / name


def said_by_program(directory):
    """{path: (first bit, bits)} as the compiler that built the program laid it."""
    need("gcc")
    calls = "".join(f"PLAIN({p})" for p in PLAIN) + "".join(f"BITS({p})" for p in BITS)
    (directory / "print.c").write_text(SOURCE + _PRINTER.replace("%s return", calls + "return"))
    run("gcc", "-w", directory / "print.c", "-o", directory / "print")
    lines = run(directory / "print").splitlines()
    return {path: (int(first), int(count)) for path, first, count in map(str.split, lines)}


def in_bits(place):
    return place.offset * 8 + (place.bit_offset or 0), place.bit_size or place.width * 8
