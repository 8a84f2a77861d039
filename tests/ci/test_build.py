"""Kernels of our own: what they are asked to be, one key per content, and the kernel's own make where it is at hand."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ci import build as building
from ci.build import FRAGMENTS, TOOLS, BuildError, Make, build, configuration, configure, content_key, plant_seed
from ci.debian import Package
from ci.fetch import cache_dir
from ci.kernels import BUILT, MATRIX
from ci.source import Source
from ci.tools import missing

ENTRY = next(entry for entry in BUILT if entry.name == "5.10-noipv6")
SOURCE = Source(Package("linux-source-5.10", "5.10.262-1"), "bullseye-security", Path("/nonexistent"))
REQUESTED = {"CONFIG_NET": "y", "CONFIG_IPV6": "n"}


@pytest.mark.parametrize("entry", BUILT, ids=lambda entry: entry.name)
def test_each_kernel_is_what_its_name_says_and_has_dwarf_only(entry):
    requested = configuration(entry.fragments, FRAGMENTS)
    off = {"noipv6": "IPV6", "nonetns": "NET_NS", "up": "SMP", "noconntrack": "NF_CONNTRACK", "nokprobes": "KPROBES",
           "nojit": "BPF_JIT"}
    parts = entry.name.split("-")[1:]
    for word, option in off.items():
        assert requested[f"CONFIG_{option}"] == ("n" if word in parts else "y")
    assert bool(entry.seed) == ("randstruct" in parts) == ("CONFIG_GCC_PLUGINS" in requested)
    assert requested["CONFIG_DEBUG_INFO_BTF"] == requested["CONFIG_DEBUG_INFO_REDUCED"] == "n"
    assert requested["CONFIG_DEBUG_INFO_DWARF4"] == "y"


def test_every_property_is_there_over_two_source_versions_under_names_of_their_own():
    words = {word for entry in BUILT for word in entry.name.split("-")}
    assert {"randstruct", "noipv6", "nonetns", "up", "noconntrack", "nokprobes", "nojit"} <= words
    assert len({entry.source for entry in BUILT}) >= 2
    assert len({entry.seed for entry in BUILT if entry.seed}) >= 2
    names = [entry.name for entry in (*MATRIX, *BUILT)]
    assert len(set(names)) == len(names)


def test_every_fragment_is_used():
    assert {path.stem for path in FRAGMENTS.glob("*.config")} == {f for entry in BUILT for f in entry.fragments}


def test_a_change_of_any_input_is_another_kernel(monkeypatch):
    key = content_key(ENTRY, SOURCE, REQUESTED, "gcc 12")
    assert key == content_key(ENTRY, SOURCE, dict(reversed(REQUESTED.items())), "gcc 12")
    assert key == content_key(replace(ENTRY, name="other"), replace(SOURCE, tree=Path("/other")), REQUESTED, "gcc 12")
    others = [
        content_key(replace(ENTRY, seed="1"), SOURCE, REQUESTED, "gcc 12"),
        content_key(ENTRY, replace(SOURCE, package=Package("linux-source-5.10", "5.10.263-1")), REQUESTED, "gcc 12"),
        content_key(ENTRY, SOURCE, {**REQUESTED, "CONFIG_IPV6": "y"}, "gcc 12"),
        content_key(ENTRY, SOURCE, REQUESTED, "gcc 13"),
    ]
    monkeypatch.setattr(building, "RECIPE", building.RECIPE + 1)
    others.append(content_key(ENTRY, SOURCE, REQUESTED, "gcc 12"))
    assert len({key, *others}) == 6


def test_a_fragment_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(BuildError, match=r"cannot read fragment .*nosuch\.config: No such file"):
        configuration(("nosuch",), tmp_path)
    (tmp_path / "broken.config").write_text("CONFIG_A=y\nyes please\n")
    with pytest.raises(BuildError, match=r"broken\.config: line 2 is no option: 'yes please'"):
        configuration(("broken",), tmp_path)


def test_the_seed_goes_where_each_version_looks_for_it(tmp_path):
    old, new = tmp_path / "5.10", tmp_path / "6.12"
    (old / "scripts/gcc-plugins").mkdir(parents=True)
    (old / "scripts/gcc-plugins/gen-random-seed.sh").touch()
    assert plant_seed(old, tmp_path / "o1", "1") == []
    planted = (tmp_path / "o1/scripts/gcc-plugins/randomize_layout_seed.h").read_text()
    (tmp_path / "o2").mkdir()
    (setting,) = plant_seed(new, tmp_path / "o2", "1")
    subprocess.run(["sh", setting.removeprefix("gen-randstruct-seed="), "seed", "hash"], cwd=tmp_path, check=True)
    seed = (tmp_path / "seed").read_text().strip()
    assert planted == f'const char *randstruct_seed = "{seed}";\n'
    assert len(bytes.fromhex(seed)) == 32
    assert (tmp_path / "o1/include/generated/randomize_layout_hash.h").read_text() == (tmp_path / "hash").read_text()


def test_two_seeds_shuffle_differently(tmp_path):
    (tmp_path / "scripts/gcc-plugins").mkdir(parents=True)
    (tmp_path / "scripts/gcc-plugins/gen-random-seed.sh").touch()
    for seed in ("1", "2"):
        plant_seed(tmp_path, tmp_path / seed, seed)
    header = "scripts/gcc-plugins/randomize_layout_seed.h"
    assert (tmp_path / "1" / header).read_text() != (tmp_path / "2" / header).read_text()


@pytest.fixture(scope="module")
def source():
    """A real source tree that a matrix run has left in the cache."""
    trees = sorted((cache_dir() / "sources").glob("linux-source-*_*"))
    if not trees:
        pytest.skip(f"no kernel source in {cache_dir()}; `make matrix` fetches them")
    if reason := missing(TOOLS):
        pytest.skip(reason)
    name, _, version = trees[0].name.partition("_")
    return Source(Package(name, version), "a suite", trees[0])


def test_the_kernels_own_kconfig_grants_what_the_fragments_ask_for(source, tmp_path):
    entry = next(entry for entry in BUILT if source.package.name.endswith(entry.source))
    make = Make(source.tree, tmp_path / "output", tmp_path, tmp_path / "log")
    configure(make, configuration(entry.fragments, FRAGMENTS))
    make("LOCALVERSION=-mine", "kernelrelease")
    release = (tmp_path / "log").read_text().split("kernelrelease")[-1]
    assert f"{source.package.version.partition('-')[0]}-mine" in release


def test_what_kconfig_does_not_grant_ends_the_build_and_nothing_is_left(source, tmp_path, monkeypatch):
    (tmp_path / "fragments").mkdir()
    (tmp_path / "fragments/base.config").write_text("CONFIG_64BIT=y\nCONFIG_IPV6=y\n# CONFIG_NET is not set\n")
    monkeypatch.setattr(building, "FRAGMENTS", tmp_path / "fragments")
    monkeypatch.setattr(building, "candidates", lambda entry, cache: [source])
    cache = tmp_path / "cache"
    with pytest.raises(BuildError, match=r"CONFIG_IPV6=y requested but the kernel's \.config says nothing"):
        build(replace(ENTRY, fragments=("base",)), cache)
    assert list((cache / "kernels").iterdir()) == []


def test_a_build_that_fails_says_what_it_broke_on_and_where_the_rest_is(tmp_path):
    (tmp_path / "Makefile").write_text("bzImage:\n\t@echo 'x.c:3:1: error: no such thing'; exit 1\n")
    make = Make(tmp_path, tmp_path / "output", tmp_path, tmp_path / "log")
    with pytest.raises(BuildError, match=r"make bzImage: x\.c:3:1: error: no such thing; all of it: .*log"):
        make("bzImage")


def test_an_interrupted_build_takes_its_children_along(tmp_path):
    (tmp_path / "Makefile").write_text("bzImage:\n\t@echo $$$$ >child; exec sleep 300\n")
    code = ("import sys; from pathlib import Path; from ci.build import Make; here = Path(sys.argv[1]);"
            "Make(here, here / 'output', here, here / 'log')('bzImage')")
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stderr=subprocess.DEVNULL)
    child = int(waited_for(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip()))
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert waited_for(lambda: not running(child))


def waited_for(condition):
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def running(pid):
    """A zombie nobody reaps, as in a container without an init, runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
