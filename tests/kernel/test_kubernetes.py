"""A real collector, a real connection, and an API server: the flow's ends are the pods and services they are."""

import json
import os

import pytest

from tests.collector import kube_server as kube
from tests.kcompat.cli_tools import collecting, end, send_over_loopback
from tests.kernel.test_collector_life import until

pytest.importorskip("kubernetes")
pytestmark = [pytest.mark.thorough, pytest.mark.skipif(os.geteuid() != 0, reason="not root")]


def test_flows_have_the_names_of_pods_and_services(tmp_path):
    server = kube.KubeServer(tmp_path)
    try:
        server.put("pods", kube.pod("web-1", "127.0.0.1", labels={"app": "web"},
                                    owner=("ReplicaSet", "rs", "web-rs", "apps/v1")))
        server.put("replicasets", kube.replica_set("web-rs", "web", uid="rs"))
        server.put("deployments", kube.deployment("web"))
        server.put("services", kube.service("front", "10.2.0.1", selector={"app": "web"}))
        with collecting("--set", f"kubernetes.kubeconfig={server.kubeconfig()}", "--set", "kubernetes.labels=app",
                        "--loopback", "--interval", "600", "--output", "jsonl:-", home=tmp_path) as process:
            until(lambda: {kind for kind, _ in set(server.watching)}, lambda kinds: len(kinds) == len(kube.PATHS))
            port = send_over_loopback(4321)
            code, out, err = end(process)
    finally:
        server.close()

    assert code == 0, err
    tags = [tags for line in out.splitlines() if (tags := json.loads(line)["tags"])["dst_port"] == str(port)]
    assert tags, out
    for side in ("src", "dst"):
        said = [tags[0][f"{side}_k8s_{what}"] for what in ("namespace", "pod_name", "service_name", "deployment_name")]
        assert [*said, tags[0][f"{side}_k8s_label_app"]] == ["shop", "web-1", "front", "web", "web"]
    assert tags[0]["sub_source"] == "K8s" and {method for method, *_ in server.asked} == {"GET"}
