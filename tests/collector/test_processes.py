"""Who a pid is: names and cgroups out of /proc, as each container runtime writes them."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from collector.enrich import processes as module
from collector.enrich.processes import Process, Processes, cgroup_path, container_id
from guessers.namespace import rename

ID = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4


def made_up(tmp_path, comm="python", cgroup="0::/\n", threads=()):
    process = tmp_path / "77"
    (process / "task").mkdir(parents=True)
    (process / "comm").write_text(comm + "\n")
    (process / "cgroup").write_text(cgroup)
    for number, name in enumerate(threads):
        (process / "task" / str(number)).mkdir()
        (process / "task" / str(number) / "comm").write_text(name + "\n")
    return tmp_path


@pytest.mark.parametrize(("cgroup", "container"), [
    (f"/docker/{ID}", ID),
    (f"/system.slice/docker-{ID}.scope", ID),
    (f"/kubepods/besteffort/pod8d6b1a3e-0000-0000-0000-000000000000/{ID}", ID),
    (f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-{ID}.scope", ID),
    (f"/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope", ID),
    (f"/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope/container", ID),
    (f"/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{ID}", ID),
    (f"/machine.slice/libpod-{ID}.scope/container", ID),
    (f"/libpod_parent/libpod-{ID}", ID),
    (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", ID),
    (f"/docker/{OTHER}/docker/{ID}", ID),
    ("/ecs/1a2b/" + ID[:32] + "-1234567890", ID[:32] + "-1234567890"),
    ("/system.slice/ssh.service", ""),
    ("/user.slice/user-1000.slice/session-3.scope", ""),
    (f"/machine.slice/libpod-conmon-{ID[:40]}.scope", ""),
    ("/", ""),
])
def test_the_container_is_read_off_the_path(cgroup, container):
    assert container_id(cgroup) == container


@pytest.mark.parametrize(("text", "path"), [
    ("0::/system.slice/ssh.service\n", "/system.slice/ssh.service"),
    (f"12:pids:/docker/{ID}\n11:cpu,cpuacct:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/\n", f"/docker/{ID}"),
    (f"4:memory:/docker/{ID}\n1:name=systemd:/system.slice/docker.service\n", f"/docker/{ID}"),
    ("5:cpu,cpuacct:/\n4:memory:/\n1:name=systemd:/init.scope\n", "/init.scope"),
    ("0::/a:b\n", "/a:b"),
    ("0::/\n", "/"),
    ("", ""),
])
def test_the_path_that_tells_most(text, path):
    assert cgroup_path(text) == path


def test_a_threads_name_becomes_the_processs(tmp_path):
    proc = made_up(tmp_path, "java", f"0::/docker/{ID}\n", ["java", "http-worker-1"])
    assert Processes(proc).find(77, "http-worker-1") == Process("java", f"/docker/{ID}", ID)


def test_a_process_of_another_name_is_not_believed(tmp_path):
    assert Processes(made_up(tmp_path, "sshd", threads=["sshd"])).find(77, "curl") == Process("curl")


def test_what_was_learnt_outlives_the_process_and_its_successor(tmp_path):
    processes = Processes(made_up(tmp_path, "curl", f"0::/docker/{ID}\n"))
    before = processes.find(77, "curl")
    (tmp_path / "77" / "cgroup").write_text("0::/elsewhere\n")
    assert processes.find(77, "curl") == before
    assert processes.find(78, "gone") == Process("gone")


def test_after_some_minutes_a_successor_of_the_same_name_is_told_by_its_own_container(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    processes = Processes(made_up(tmp_path, "nginx", f"0::/docker/{ID}\n"))
    assert processes.find(77, "nginx").container == ID

    (tmp_path / "77" / "cgroup").write_text(f"0::/docker/{OTHER}\n")
    assert processes.find(77, "nginx").container == ID
    now[0] += 301
    assert processes.find(77, "nginx").container == OTHER

    shutil.rmtree(tmp_path / "77")
    now[0] += 301
    assert processes.find(77, "nginx").container == OTHER


def test_it_is_bounded(tmp_path):
    processes = Processes(tmp_path, bound=3)
    for pid in range(1, 100):
        processes.find(pid, "x")
    assert len(processes._known) == 3


def test_in_another_pid_namespace_the_kernels_word_is_kept(tmp_path):
    proc = made_up(tmp_path, "other")
    (proc / "self" / "ns").mkdir(parents=True)
    (proc / "self" / "ns" / "pid").touch()
    assert Processes(proc).find(77, "other") == Process("other")


def test_this_very_thread_is_its_process():
    found = []

    def body():
        rename(b"some-thread")
        found.append(Processes().find(os.getpid(), "some-thread"))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found[0].name in (Path("/proc/self/comm").read_text().strip(), "some-thread")
