"""`make deb`: a Debian package of kcompat with what it imports, its unit, man pages and completions."""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGING = ROOT / "ci" / "packaging"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_LIBRARY = "usr/lib/kcompat"
# As in the image. Nobody can add them later: the launcher looks for modules nowhere else.
_EXTRAS = "k8s,kafka,nats,otlp,percentiles,top"
_DATE_S = 1767225600  # 2026: of no build, so that the same input makes the same package
_SHELLS = {"bash": "usr/share/bash-completion/completions/kcompat", "zsh": "usr/share/zsh/vendor-completions/_kcompat",
           "fish": "usr/share/fish/vendor_completions.d/kcompat.fish"}
_LAUNCHER = f"""\
#!/usr/bin/python3 -sP
import sys

sys.path.insert(0, "/{_LIBRARY}")
from kcompat.cli import main

main(prog_name="kcompat")
"""


def main() -> None:
    """Prints the path of what it made."""
    print(build(ROOT / "build"))


def build(out: Path) -> Path:
    """The package, in `out`."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    architecture = _ARCHITECTURES[platform.machine()]
    tree = out / "deb"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    _install_python(tree / _LIBRARY)
    _write(tree / "usr/bin/kcompat", _LAUNCHER, 0o755)
    _write(tree / "lib/systemd/system/kcompat.service", (PACKAGING / "kcompat.service").read_text())
    _write(tree / "usr/share/doc/kcompat/examples/full.conf", (PACKAGING / "full.conf").read_text())
    _write(tree / "etc/kcompat/kcompat.toml", _output(tree, "config", "sample"), 0o640)
    _man_pages(tree, version)
    for shell, path in _SHELLS.items():
        _write(tree / path, _output(tree, environment={"_KCOMPAT_COMPLETE": f"{shell}_source"}))
    _documents(tree, version)
    _write(tree / "usr/share/lintian/overrides/kcompat", (PACKAGING / "deb" / "overrides").read_text())
    _control(tree, version, architecture)
    for directory in filter(Path.is_dir, tree.rglob("*")):
        directory.chmod(0o755)
    package = out / f"kcompat_{version}_{architecture}.deb"
    _run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(package))
    return package


def _install_python(library: Path) -> None:
    """kcompat and all it needs but bcc, which is Debian's. Compiled where it is installed, by its postinst."""
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(library),
         f"{ROOT}[{_EXTRAS}]")
    # pip is there because sqlite-utils can install plugins with it; PyYAML does without its C, which has a libyaml. The
    # second client of Kubernetes, for asyncio, is 41 MB, and all that wants aiohttp.
    for useless in (*library.glob("bin"), *library.glob("pip"), *library.glob("pip-*"), *library.glob("yaml/_yaml*.so"),
                    *library.glob("kubernetes/aio"), *library.glob("aiohttp*"), *library.rglob("tests"),
                    *library.rglob("*.dist-info/RECORD"), *library.rglob("*.dist-info/direct_url.json")):
        shutil.rmtree(useless) if useless.is_dir() else useless.unlink(missing_ok=True)
    for path in library.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
        if path.name.endswith(".so") or ".so." in path.name:
            _run("strip", "--strip-unneeded", str(path))


def _man_pages(tree: Path, version: str) -> None:
    """Of every command, from its help."""
    directory = tree / "usr/share/man/man1"
    directory.mkdir(parents=True)
    code = ("import sys; from pathlib import Path; from kcompat.cli import main; from kcompat.cli_manual import *; "
            "write_man_pages(main, Path(sys.argv[1]), *sys.argv[2:])")
    _run(sys.executable, "-c", code, str(directory), version, time.strftime("%Y-%m-%d", time.gmtime(_DATE_S)))
    for page in directory.glob("*.1"):
        _compressed(page, page.read_bytes())
        page.unlink()


def _documents(tree: Path, version: str) -> None:
    documents = tree / "usr/share/doc/kcompat"
    _write(documents / "copyright", (PACKAGING / "deb" / "copyright").read_text())
    changes = f"kcompat ({version}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n" \
              f" -- kcompat developers <kcompat@lists.example.org>  {formatdate(_DATE_S, localtime=False)}\n"
    _compressed(documents / "changelog", changes.encode())
    _compressed(documents / "CHANGELOG.md", (ROOT / "CHANGELOG.md").read_bytes())


def _control(tree: Path, version: str, architecture: str) -> None:
    control = tree / "DEBIAN"
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) // 1024
    text = (PACKAGING / "deb" / "control").read_text()
    _write(control / "control", text.format(version=version, architecture=architecture, size=size))
    _write(control / "conffiles", "/etc/kcompat/kcompat.toml\n")
    _write(control / "md5sums", "".join(sorted(_sums(tree))))
    for script in ("postinst", "prerm", "postrm"):
        _write(control / script, (PACKAGING / "deb" / script).read_text(), 0o755)


def _sums(tree: Path) -> Iterator[str]:
    for path in tree.rglob("*"):
        name = path.relative_to(tree)
        if path.is_file() and name.parts[0] not in ("DEBIAN", "etc"):
            yield f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {name}\n"


def _output(tree: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """What the packaged command prints: it is the one that is shipped."""
    code = "from kcompat.cli import main; main(prog_name='kcompat')"
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True,
                          timeout=120, cwd="/", env=os.environ | (environment or {})
                          | {"PYTHONPATH": str(tree / _LIBRARY), "PYTHONDONTWRITEBYTECODE": "1"}).stdout


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _compressed(path: Path, raw: bytes) -> None:
    """Without a time in it: the same input makes the same package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(raw, 9, mtime=0))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=1200, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
