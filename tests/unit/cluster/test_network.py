"""The page about ports says what ray_cluster.yaml sets, and the policies close them."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "operations" / "network.md").read_text()


def test_every_port_that_the_cluster_fixes_is_in_the_table() -> None:
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        [start] = [command for command in config[name] if "ray start" in command]
        ports = re.findall(r"--[a-z-]*port=(\d+)", start)
        assert len(set(ports)) == len(ports) >= 7
        table = [line for line in PAGE.splitlines() if line.startswith("|")]
        for port in ports:
            assert any(re.search(rf"\b{port}\b", line) for line in table), port


def test_the_policy_admits_the_cluster_to_itself_and_the_dashboard_to_clients() -> None:
    file = ROOT / "cluster" / "kuberay" / "base" / "network-policy.yaml"
    policies = {found["metadata"]["name"]: found for found in yaml.safe_load_all(file.read_text())}
    policy = policies["nodes"]
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    itself, clients = policy["spec"]["ingress"]
    assert itself == {"from": [{"podSelector": policy["spec"]["podSelector"]}]}
    assert [port["port"] for port in clients["ports"]] == [8265]
    assert all(source for source in clients["from"])  # an empty selector admits everybody
    [store] = policies["gcs-store"]["spec"]["ingress"]
    assert store["from"] == itself["from"]
