"""What operators install: a narrow unit, a DaemonSet that is one, and a collector content with what they give."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.kcompat.cli_tools import COMMAND, environment, one_line

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "ci" / "packaging"
UNIT = PACKAGING / "kcompat.service"
MINIMUM = re.search(r"\*\*Kubernetes:\*\* (\S+) or later", (ROOT / "docs/operations.md").read_text())[1]
# capability.h's numbers of those the unit leaves.
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_PTRACE": 19, "CAP_SYS_RESOURCE": 24,
                "CAP_PERFMON": 38, "CAP_BPF": 39}
# Drops all others from the bounding set, from which root's new programs get theirs.
BOUNDED = """
import ctypes, os, sys
libc, keep = ctypes.CDLL(None, use_errno=True), set(map(int, sys.argv[1].split(",")))
for number in range(int(open("/proc/sys/kernel/cap_last_cap").read()) + 1):
    if number not in keep and libc.prctl(24, number, 0, 0, 0):
        sys.exit(f"capability {number}: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[2], sys.argv[2:])
"""


def analyze(tmp_path, *arguments):
    """systemd-analyze of the unit with commands that are here; it looks for them."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    unit = tmp_path / "kcompat.service"
    unit.write_text(UNIT.read_text().replace("/usr/bin/kcompat", "/bin/true"))
    return subprocess.run(["systemd-analyze", *arguments, str(unit)], capture_output=True, text=True, timeout=120)


def test_the_unit_is_sound(tmp_path):
    done = analyze(tmp_path, "verify", "--man=no")

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_is_not_exposed(tmp_path):
    done = analyze(tmp_path, "security", "--offline=true", "--threshold=40", "--no-pager")

    assert done.returncode == 0, done.stdout
    assert float(re.search(r"exposure level for kcompat\.service: (\S+)", done.stdout)[1]) < 4.0


def test_the_unit_leaves_the_capabilities_that_are_tested():
    assert set(re.search(r"(?m)^CapabilityBoundingSet=(.*)$", UNIT.read_text())[1].split()) == set(CAPABILITIES)


def test_the_unit_may_hold_files_of_as_many_namespaces_as_are_watched():
    from collector.datasets.dnsflow import _MAX_NAMESPACES

    # A ring, routes and a tracker of each, and whatever else.
    assert int(re.search(r"(?m)^LimitNOFILE=(\d+)$", UNIT.read_text())[1]) > 8 * _MAX_NAMESPACES


def test_files_in_examples_lie_where_the_unit_may_write():
    from click.testing import CliRunner

    from kcompat.cli import main

    unit, pages = UNIT.read_text(), [ROOT / "docs/operations.md", PACKAGING / "kubernetes/kcompat.toml"]
    text = CliRunner().invoke(main, ["collect", "--help"]).stdout + "".join(page.read_text() for page in pages)
    files = re.findall(r"(?:jsonl|lineproto):(/[^\s?\"'`]+)", text)

    assert "ProtectSystem=strict" in unit and files
    assert {str(Path(file).parent) for file in files} == {
        f"/var/log/{name}" for name in re.findall(r"(?m)^LogsDirectory=(.*)$", unit)}


def test_the_unit_takes_nothing_from_a_collector_that_runs_elsewhere_and_remembers_where_its_own_looks():
    unit = UNIT.read_text()

    # systemd removes a runtime directory when the service stops: the lock of a collector in a container is in it.
    assert "\nRuntimeDirectoryPreserve=yes\n" in unit
    assert {re.search(r"--config (\S+)", line)[1] for line in re.findall(r"(?m)^ExecStart(?:Pre)?=.*$", unit)} == {
        "/etc/kcompat/kcompat.toml"}


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_the_collector_runs_with_just_those_capabilities(tmp_path):
    """As the unit does: offsets with all rights, then the collector without."""
    before = re.search(r"(?m)^ExecStartPre=\+-/usr/bin/kcompat (.*)$", UNIT.read_text())[1].split()
    configuration = tmp_path / "kcompat.toml"
    configuration.touch(0o600)
    before = [str(configuration) if word == "/etc/kcompat/kcompat.toml" else word for word in before]
    told = subprocess.run([*COMMAND, *before], env=environment(tmp_path), cwd="/", capture_output=True, text=True,
                          timeout=120)
    assert told.returncode in (0, 1), told.stderr
    assert told.stdout + told.stderr == ""  # each start of the unit would have it in the journal
    have = set(map(int, [n for n in CAPABILITIES.values()
                         if n <= int(Path("/proc/sys/kernel/cap_last_cap").read_text())]))
    if len(have) < len(CAPABILITIES):
        pytest.skip("this kernel has no CAP_BPF: it needs CAP_SYS_ADMIN, see ci/packaging/full.conf")

    done = subprocess.run([sys.executable, "-c", BOUNDED, ",".join(map(str, have)), *COMMAND, "collect", "--datasets",
                           "netflow,dnsflow", "--loopback", "--duration", "0.5", "--output", "jsonl:-"],
                          env=environment(tmp_path), cwd="/", capture_output=True, text=True, timeout=240)

    if done.returncode == 1 and "netflow" not in done.stderr:
        pytest.skip(one_line(done.stderr))
    assert done.returncode == 0, done.stderr
    assert "netflow is off" not in done.stderr and "dnsflow is off" not in done.stderr, done.stderr


def documents():
    return [one for path in sorted((PACKAGING / "kubernetes").glob("*.yaml"))
            for one in yaml.safe_load_all(path.read_text())]


@pytest.mark.parametrize("document", documents(), ids=lambda one: one["kind"])
def test_kubernetes_takes_it(document):
    if document["kind"] != "Kustomization":
        kubernetes_validate.validate(document, MINIMUM, strict=True)
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_the_oldest_kubernetes_that_takes_it_is_the_one_that_is_told():
    (daemonset,) = [one for one in documents() if one["kind"] == "DaemonSet"]
    major, minor = map(int, MINIMUM.split("."))

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(daemonset, f"{major}.{minor - 1}", strict=True)


def test_kustomize_has_every_file():
    (kustomization,) = [one for one in documents() if one["kind"] == "Kustomization"]
    named = set(kustomization["resources"]) | {file for made in kustomization["configMapGenerator"]
                                               for file in made["files"]}

    assert named | {"kustomization.yaml"} == {path.name for path in (PACKAGING / "kubernetes").iterdir()}


def test_the_cluster_is_only_read():
    verbs = {verb for one in documents() if one["kind"] == "ClusterRole" for rule in one["rules"]
             for verb in rule["verbs"]}

    assert verbs == {"get", "list", "watch"}


def test_the_configuration_of_the_pods_is_right_and_listens_on_loopback():
    from collector.config import endpoint
    from collector.config_check import judge
    from collector.config_reading import read

    options = read(PACKAGING / "kubernetes" / "kcompat.toml", judge=judge)
    (daemonset,) = [one for one in documents() if one["kind"] == "DaemonSet"]
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]

    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness")}
    assert {(probe["host"], probe["port"]) for probe in probes.values()} == {endpoint(options.metrics.listen)}
    assert probes["liveness"]["host"] == "127.0.0.1"
    # What a restart does not change must not restart it; and a first guess takes as long as it does under systemd.
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/livez", "liveness": "/livez"}
    # A node that cannot run anything would use up what may be unavailable, and updates would stop at it.
    assert "readinessProbe" not in container
    patience_s = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
    assert f"TimeoutStartSec={patience_s}" in UNIT.read_text() and "--keep-trying" in container["args"]
    assert container["securityContext"]["privileged"] is False
    assert {f"CAP_{name}" for name in container["securityContext"]["capabilities"]["add"]} == {
        *CAPABILITIES, "CAP_SYS_ADMIN"}


def test_maps_and_a_busy_collector_fit_into_the_memory_of_a_pod_and_the_unit_has_no_limit():
    table = (ROOT / "docs/operations.md").read_text()
    maps_mb = [int(size) for size in re.findall(r"(?m)^\| \w+ \| (\d+) MB \|", table)]
    (daemonset,) = [one for one in documents() if one["kind"] == "DaemonSet"]
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    limit = container["resources"]["limits"]["memory"]

    busy_mb, kubernetes_client_mb = 90, 45
    assert len(maps_mb) == 3 and limit.endswith("Mi")
    assert sum(maps_mb) + busy_mb + kubernetes_client_mb < int(limit[:-2]) * 1.048576
    assert "Memory" not in re.sub(r"(?m)^#.*$", "", UNIT.read_text())


def test_every_place_where_tracefs_may_be_is_mounted():
    from kcompat.attach import _TRACEFS

    (daemonset,) = [one for one in documents() if one["kind"] == "DaemonSet"]
    pod = daemonset["spec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in pod["volumes"]}

    for path in _TRACEFS:
        (mount,) = [mount for where, mount in mounts.items() if path.is_relative_to(where)]
        assert mount["mountPropagation"] == "HostToContainer" and volumes[mount["name"]] == mount["mountPath"]


def test_the_image_has_all_that_collectors_may_be_asked_for_and_gets_no_more_than_it_needs():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = set(re.search(r"/source\[(.*)\]", (PACKAGING / "Containerfile").read_text())[1].split(","))
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}

    of_developers = {"deb", "docs", "fuzz", "lint", "matrix", "serve", "test"}
    assert extras == set(project["project"]["optional-dependencies"]) - of_developers
    rooms = {package.split(".")[0] for package in project["tool"]["setuptools"]["packages"]}
    assert kept == rooms | {"pyproject.toml", project["project"]["readme"], "LICENSE", "LICENSES"}
    assert all((ROOT / name).exists() for name in kept)
    from ci.deb import _EXTRAS
    assert set(_EXTRAS.split(",")) == extras


def test_users_install_what_runs_and_none_of_what_tests_it():
    def commands(target):
        return subprocess.run(["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True,
                              check=True, timeout=60).stdout

    extras = re.search(r"/source(\[.*\])", (PACKAGING / "Containerfile").read_text())[1]
    assert f"-e '.{extras}'" in commands("install") and "-e '.[deb]'" in commands("deb")
    for target in ("install", "run", "deb"):
        assert "python3-bpfcc" in commands(target)
        assert not re.search("chromium|qemu|nginx|influxdb|gcc", commands(target)), target
    steps = set(re.findall(r"(?m)^make (\w+)", (ROOT / "docs/quick-start.md").read_text()))
    assert steps == {"run", "install", "deb"}


def test_a_container_on_an_old_host_sees_what_a_pod_sees():
    (daemonset,) = [one for one in documents() if one["kind"] == "DaemonSet"]
    pod = daemonset["spec"]["template"]["spec"]
    text = (ROOT / "docs/old-hosts.md").read_text()
    (line,) = re.findall(r"(docker run --detach(?:[^\n]*\\\n)*[^\n]*)", text)
    mounts = {where for _, where in re.findall(r"-v (\S+?):(/[^:\s]+)", line)}

    assert mounts | {"/tmp"} == {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert pod["hostNetwork"] and "--net=host" in line and pod["hostPID"] and "--pid=host" in line
    assert line.split("kcompat:")[-1].split()[1:] == pod["containers"][0]["args"]


def test_the_images_and_the_package_are_of_this_version():
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]

    assert f"newTag: {version}" in (PACKAGING / "kubernetes" / "kustomization.yaml").read_text()
    assert f"kcompat:{version}" in (PACKAGING / "kubernetes" / "daemonset.yaml").read_text()
