"""The package's scripts, run by dpkg in a root of its own: what the administrator says of the unit outlives them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "ci" / "packaging"
UNIT, WANTED = "lib/systemd/system/kcompat.service", "etc/systemd/system/multi-user.target.wants/kcompat.service"
# No systemd runs here: this one keeps in files whether the unit is active, and what it was told. Whether it is enabled
# the real one knows, which needs nobody running for that.
SYSTEMCTL = """#!/bin/sh
state="$DPKG_ROOT/active"
for verb in "$@"; do
    case "$verb" in
    -*) continue ;;
    is-active) test -e "$state"; exit ;;
    start) touch "$state" ;;
    stop) rm -f "$state" ;;
    try-restart) test -e "$state" || exit 0 ;;
    daemon-reload) exit 0 ;;
    *) exec REAL --root="$DPKG_ROOT" "$@" ;;
    esac
    echo "$verb" >>"$DPKG_ROOT/told"
    exit
done
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, ("dpkg", "deb-systemd-helper",
                                                                                  "systemctl"))),
                                reason="not root, or not Debian with systemd")


class Machine:
    """A root with dpkg's database and a systemd, and packages to install there."""

    def __init__(self, root, packages):
        self.root, self._packages = root, packages
        for name in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "run/systemd/system",
                     "bin", "etc"):
            (root / name).mkdir(parents=True)
        (root / "var/lib/dpkg/status").touch()
        systemctl = root / "bin/systemctl"
        systemctl.write_text(SYSTEMCTL.replace("REAL", shutil.which("systemctl")))
        systemctl.chmod(0o755)

    def dpkg(self, *arguments):
        """What systemd was told meanwhile."""
        told = self.root / "told"
        told.unlink(missing_ok=True)
        subprocess.run(["dpkg", f"--root={self.root}", "--force-script-chrootless", "--force-depends", *arguments],
                       check=True, capture_output=True, timeout=120,
                       env=os.environ | {"PATH": f"{self.root}/bin:{os.environ['PATH']}"})
        return told.read_text().split() if told.exists() else []

    def install(self, version):
        return self.dpkg("--install", str(self._package(version)))

    def systemctl(self, verb):
        subprocess.run(["systemctl", f"--root={self.root}", verb, "kcompat.service"], check=True, capture_output=True,
                       timeout=60)

    @property
    def is_enabled(self):
        return (self.root / WANTED).is_symlink()

    @property
    def is_active(self):
        return (self.root / "active").exists()

    def stop(self):
        (self.root / "active").unlink()

    def _package(self, version):
        """With the scripts and the unit of ours and as good as nothing else."""
        tree, package = self._packages / version, self._packages / f"{version}.deb"
        if not package.exists():
            for name in ("DEBIAN", "lib/systemd/system", "usr/lib/kcompat", "etc/kcompat"):
                (tree / name).mkdir(parents=True)
            control = (PACKAGING / "deb" / "control").read_text()
            (tree / "DEBIAN/control").write_text(control.format(version=version, architecture="all", size=1))
            (tree / "DEBIAN/conffiles").write_text("/etc/kcompat/kcompat.toml\n")
            for script in ("postinst", "prerm", "postrm"):
                shutil.copy(PACKAGING / "deb" / script, tree / "DEBIAN" / script)
                (tree / "DEBIAN" / script).chmod(0o755)
            shutil.copy(PACKAGING / "kcompat.service", tree / UNIT)
            (tree / "usr/lib/kcompat/module.py").touch()
            (tree / "etc/kcompat/kcompat.toml").touch()
            subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, package], check=True,
                           capture_output=True, timeout=60)
        return package


@pytest.fixture
def machine(tmp_path):
    """On which version 1 was just installed."""
    (tmp_path / "packages").mkdir()
    made = Machine(tmp_path / "root", tmp_path / "packages")
    assert made.install("1") == ["start"] and made.is_enabled and made.is_active
    assert list((made.root / "usr/lib/kcompat").rglob("*.pyc"))
    return made


def test_an_upgrade_restarts_what_runs(machine):
    assert machine.install("2") == ["try-restart"] and machine.is_active


def test_an_upgrade_does_not_start_what_was_stopped(machine):
    machine.stop()

    assert machine.install("2") == [] and not machine.is_active and machine.is_enabled


def test_an_upgrade_enables_nothing_that_was_disabled(machine):
    machine.systemctl("disable")
    machine.stop()

    assert machine.install("2") == [] and not machine.is_enabled


def test_removed_and_installed_again_it_runs_as_it_did_at_first(machine):
    assert machine.dpkg("--remove", "kcompat") == ["stop"] and not machine.is_active
    assert not (machine.root / "usr/lib/kcompat").exists()

    assert machine.install("1") == ["start"] and machine.is_active and machine.is_enabled
    assert machine.install("2") == ["try-restart"]  # and that was an upgrade again


def test_what_was_disabled_stays_so_when_it_is_removed_and_installed_again(machine):
    machine.systemctl("disable")
    machine.dpkg("--remove", "kcompat")

    assert machine.install("1") == [] and not machine.is_enabled and not machine.is_active


def test_a_purge_leaves_the_administrators_drop_ins_and_nothing_else(machine):
    own = machine.root / "etc/systemd/system/kcompat.service.d/own.conf"
    own.parent.mkdir()
    own.write_text("[Service]\nMemoryMax=1G\n")
    for name in ("var/lib/kcompat/offsets.db", "var/cache/kcompat/object", "var/log/kcompat/flows.jsonl"):
        (machine.root / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.root / name).touch()

    machine.dpkg("--purge", "kcompat")

    left = [str(path.relative_to(machine.root)) for path in machine.root.rglob("*") if "kcompat" in path.name]
    assert sorted(left) == ["etc/systemd/system/kcompat.service.d"] and own.exists()
    assert machine.install("1") == ["start"] and machine.is_enabled
