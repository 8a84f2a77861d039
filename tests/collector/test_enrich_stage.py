"""Records get the tags of pods and services in one place, and no record is lost or changed otherwise."""

import pytest

from collector.config import KubernetesOptions, Options
from collector.enrich import stage
from collector.enrich.kubernetes_cluster import End, Workload
from collector.enrich.processes import Processes, cgroup_path, container_ids
from collector.record import Record

ID, OTHER = "0123456789abcdef" * 4, "f" * 64
WHAT = ("namespace", "pod_name", "service_name", "deployment_name")


class Known:
    """A cluster whose addresses are these; it notes what it is asked."""

    is_told = True

    def __init__(self, **by_address):
        self.by_address = {ip.replace("_", "."): workload for ip, workload in by_address.items()}
        self.asked = []

    def source(self, containers, end):
        self.asked.append(end)
        self.containers = containers
        return self.by_address.get(end.ip)

    def destination(self, translated, end):
        self.asked.append((translated, end))
        return self.by_address.get(translated.ip if translated else end.ip)


WEB = Workload("shop", "web-1", "front", "web", (("app", "web"), ("tier", "x")))


def record(measurement="netflow", **tags):
    tags = {"src_ip": "10.0.0.1", "src_port": "*", "dst_ip": "10.0.0.2", "dst_port": "80", "transport": "tcp",
            "pid": "0", "dst_nat_ip": "N/A", "dst_nat_port": "N/A"} | tags
    return Record(measurement, tags, {"bytes_read": 1}, 1)


def applied(known, *records, **options):
    return stage.Stage(Options(kubernetes=KubernetesOptions(**options)), known).apply(list(records))


@pytest.mark.parametrize("side, ip", [("src", "10_0_0_1"), ("dst", "10_0_0_2")])
def test_one_side_that_hits_gives_the_other_n_a(side, ip):
    (made,) = applied(Known(**{ip: WEB}), record())
    other = {"src": "dst", "dst": "src"}[side]

    assert [made.tags[f"{side}_k8s_{what}"] for what in WHAT] == ["shop", "web-1", "front", "web"]
    assert [made.tags[f"{other}_k8s_{what}"] for what in WHAT] == ["N/A"] * 4
    assert made.tags["sub_source"] == "K8s"
    assert record().tags.items() <= made.tags.items() and made[2:] == record()[2:]


def test_no_side_that_hits_and_what_is_no_flow_stay_as_they_were():
    records = [record(), Record("bash", {"host": "h"}, {"cmd": "ls"}, 2)]

    assert applied(Known(), *records) == records


def test_dns_and_http_flows_are_told_too_and_ends_are_asked_for_once():
    known = Known(**{"10_0_0_1": WEB})
    dns = record("dnsflow", dst_port="53")
    dns = dns._replace(tags={k: v for k, v in dns.tags.items() if k not in ("pid", "dst_nat_ip", "dst_nat_port")})
    made = applied(known, record(), record("httpflow"), dns)

    assert [one.tags["src_k8s_pod_name"] for one in made] == ["web-1"] * 3
    assert len(known.asked) == 3


def test_nat_and_ports_are_handed_over():
    known = Known(**{"10_5_0_1": WEB})
    (made,) = applied(known, record(dst_nat_ip="10.5.0.1", dst_nat_port="8080"))

    assert made.tags["dst_k8s_pod_name"] == "web-1"
    assert known.asked == [End("10.0.0.1", 0, "tcp"), (End("10.5.0.1", 8080, "tcp"), End("10.0.0.2", 80, "tcp"))]


def test_the_container_of_the_process_is_handed_over(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "comm").write_text("nginx\n")
    (tmp_path / "7" / "cgroup").write_text(f"0::/kubepods/pod1/{ID}/docker/{OTHER}\n")
    known = Known()
    made = stage.Stage(Options(), known)
    made._processes = Processes(tmp_path)

    made.apply([record(pid="7", process_name="nginx")])
    assert known.containers == (ID, OTHER)
    # What has another name is another process.
    made.apply([record(pid="7", process_name="curl")])
    assert known.containers == ()


def test_labels_become_tags_by_choice():
    (made,) = applied(Known(**{"10_0_0_2": WEB}), record(), labels=("app", "absent"))

    assert {k: v for k, v in made.tags.items() if "label" in k} == {"dst_k8s_label_app": "web"}


def test_without_kubernetes_nothing_is_done():
    records = [record()]

    assert stage.Stage(Options()).apply(records) is records


@pytest.mark.parametrize("line, expected", [
    (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope", (ID,)),
    (f"12:cpu,cpuacct:/kubepods/burstable/pod1/{ID}\n3:memory:/kubepods/burstable/pod1/{ID}", (ID,)),
    (f"0::/system.slice/docker-{ID}.scope/init", (ID,)),
    (f"0::/kubepods.slice/crio-{ID}.scope/container", (ID,)),
    (f"0::/kubepods.slice/crio-conmon-{ID}.scope", ()),
    (f"0::/machine.slice/libpod-{ID}.scope", (ID,)),
    (f"0::/machine.slice/libpod-conmon-{ID}.scope", ()),
    (f"0::/system.slice/containerd.service/kubepods-besteffort-pod1.slice:cri-containerd:{ID}", (ID,)),
    (f"0::/kubepods/pod1/{ID}/docker/{OTHER}", (ID, OTHER)),
    ("0::/user.slice/session-1.scope", ()),
    (f"0::/user.slice/x{ID}y", ()),
    ("", ()),
])
def test_containers_are_read_off_control_groups(line, expected):
    assert container_ids(cgroup_path(line)) == expected
