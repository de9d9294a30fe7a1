"""The manifests are valid by the schemas of KubeRay, Kueue and Kubernetes, and safe to apply."""

import copy
import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cprec.config.recipe_file import parse_yaml, validate_recipe
from tests.unit.cluster.kuberay.render import ROOT, Manifest, render

SCHEMAS = Path(__file__).parent / "schemas"
REPOSITORY = ROOT.parents[1]
FOLDERS = ["base", "overlays/ray-job", "overlays/kueue"]


@cache
def schemas() -> dict[str, Any]:
    """Schema by kind; those of Kubernetes itself with the definitions that they refer to."""
    custom, core = (
        json.loads(gzip.decompress((SCHEMAS / name).read_bytes()))
        for name in ("custom.json.gz", "core.json.gz")
    )
    definitions = core.pop("$defs")
    found: dict[str, Any] = dict(custom)
    return found | {kind: {**schema, "$defs": definitions} for kind, schema in core.items()}


def problems(manifest: Manifest) -> list[str]:
    validator = jsonschema.Draft202012Validator(schemas()[manifest["kind"]])
    return [f"{'.'.join(map(str, e.path))}: {e.message}" for e in validator.iter_errors(manifest)]


def by_name(folder: str) -> dict[tuple[str, str], Manifest]:
    return {(found["kind"], found["metadata"]["name"]): found for found in render(folder)}


def cluster_of(folder: str) -> Manifest:
    """Returns the spec of the Ray cluster of a folder."""
    for manifest in render(folder):
        if manifest["kind"] == "RayCluster":
            return dict(manifest["spec"])
        if manifest["kind"] == "RayJob":
            return dict(manifest["spec"]["rayClusterSpec"])
    raise AssertionError(f"{folder} has no Ray cluster")


def pod_specs(folder: str) -> Iterator[tuple[str, Manifest]]:
    """Yields (name, spec) of every pod that a folder leads to."""
    cluster = cluster_of(folder)
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]
    for manifest in render(folder):
        if manifest["kind"] == "StatefulSet":
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]
        if manifest["kind"] == "RayJob":
            yield "submitter", manifest["spec"]["submitterPodTemplate"]["spec"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_is_valid_by_its_own_schema(folder: str) -> None:
    found = {
        f"{manifest['kind']} {manifest['metadata']['name']}": problems(manifest)
        for manifest in render(folder)
    }
    assert len(found) >= 9
    assert {name: errors for name, errors in found.items() if errors} == {}


def test_the_schemas_refuse_what_kubernetes_would() -> None:
    job = by_name("overlays/kueue")["RayJob", "cpt"]
    policy = by_name("base")["NetworkPolicy", "nodes"]
    wrong: list[tuple[Manifest, list[str | int], Any]] = [
        (job, ["spec", "shutDownAfterJobFinishes"], True),
        (job, ["spec", "suspend"], "true"),
        (job, ["apiVersion"], "ray.io/v1alpha1"),
        (job, ["spec", "rayClusterSpec", "authOptions", "mode"], "none"),
        (job, ["spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"], "two"),
        (policy, ["spec", "podSelector", "labels"], {}),
        (policy, ["spec", "policyTypes"], "Ingress"),
    ]
    for manifest, (*parents, last), value in wrong:
        changed = copy.deepcopy(manifest)
        place: Any = changed
        for parent in parents:
            place = place[parent]
        place[last] = value
        assert problems(changed), last
    del job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert problems(job)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", FOLDERS)
def test_kubectl_renders_the_same(folder: str) -> None:
    output = subprocess.run(
        ["kubectl", "kustomize", ROOT / folder], capture_output=True, text=True, check=True
    ).stdout
    objects = sorted(
        yaml.safe_load_all(output), key=lambda found: (found["kind"], found["metadata"]["name"])
    )
    assert objects == render(folder)


# -- what every pod must have


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_pod_is_root_or_writes_to_its_image(folder: str) -> None:
    pods = dict(pod_specs(folder))
    assert len(pods) >= 3
    for name, pod in pods.items():
        security = pod["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            volumes = {volume["name"] for volume in pod.get("volumes", [])} | {"data"}
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name
            assert "memory" in container["resources"]["limits"], name
            assert re.fullmatch(r"\S+:(?!latest)[\w.-]+", container["image"]), name
            if name != "submitter":  # it ends by itself
                assert container["readinessProbe"], name
                assert container["livenessProbe"], name


@pytest.mark.parametrize("folder", FOLDERS)
def test_ray_finds_a_place_to_write(folder: str) -> None:
    for name, pod in pod_specs(folder):
        if name in ("head", "h100"):
            [container] = pod["containers"]
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert "emptyDir" in volumes[mounts["/tmp"]]
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
            environment = {entry["name"]: entry.get("value") for entry in container["env"]}
            assert environment["HOME"] == "/tmp"
            assert environment["USER"]  # torch asks for it, and the image may not know the user


def test_object_store_fits_into_shared_memory() -> None:
    [group] = cluster_of("base")["workerGroupSpecs"]
    volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
    limit = volumes["shared-mem"]["emptyDir"]["sizeLimit"]
    assert limit.endswith("Gi")
    assert int(group["rayStartParams"]["object-store-memory"]) < int(limit[:-2]) << 30


@pytest.mark.parametrize("folder", FOLDERS)
def test_secrets_are_named_and_never_written(folder: str) -> None:
    objects = render(folder)
    assert not [found for found in objects if found["kind"] == "Secret"]
    text = json.dumps(objects)
    referred = set(re.findall(r'"(?:secretName|name)": "(cprec-(?:ray-token|gcs-store))"', text))
    assert referred == {"cprec-ray-token", "cprec-gcs-store"}
    assert cluster_of(folder)["authOptions"]["mode"] == "token"

    def environments(value: Any) -> Iterator[Manifest]:
        if isinstance(value, dict):
            if "name" in value and ("value" in value or "valueFrom" in value):
                yield value
            for nested in value.values():
                yield from environments(nested)
        elif isinstance(value, list):
            for nested in value:
                yield from environments(nested)

    secret = re.compile(r"PASSWORD|TOKEN|SECRET|KEY", re.IGNORECASE)
    named = [entry for entry in environments(objects) if secret.search(entry["name"])]
    assert named
    assert all("secretKeyRef" in entry.get("valueFrom", {}) for entry in named)
    assert "value" not in cluster_of(folder)["gcsFaultToleranceOptions"]["redisPassword"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_policies_cover_every_pod(folder: str) -> None:
    objects = by_name(folder)
    nobody = objects["NetworkPolicy", "nobody"]["spec"]
    assert nobody == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    covered = {
        json.dumps(found["spec"]["podSelector"].get("matchLabels", {}), sort_keys=True)
        for found in objects.values()
        if found["kind"] == "NetworkPolicy"
    }
    cluster = cluster_of(folder)
    templates = [cluster["headGroupSpec"]["template"]]
    templates += [group["template"] for group in cluster["workerGroupSpecs"]]
    templates.append(objects["StatefulSet", "gcs-store"]["spec"]["template"])
    if ("RayJob", "cpt") in objects:
        templates.append(objects["RayJob", "cpt"]["spec"]["submitterPodTemplate"])
    for template in templates:
        assert json.dumps(template["metadata"]["labels"], sort_keys=True) in covered


# -- the cluster


def test_the_head_has_no_gpu_and_runs_no_task() -> None:
    head = cluster_of("base")["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    [container] = head["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in json.dumps(container["resources"])


def test_ports_are_those_of_ray_cluster_yaml() -> None:
    config = yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())
    [start] = [line for line in config["worker_start_ray_commands"] if "ray start" in line]
    ports = dict(re.findall(r"--([a-z-]*port)=(\d+)", start))
    cluster = cluster_of("base")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        params = group["rayStartParams"]
        assert {name: value for name, value in params.items() if name.endswith("port")} == ports


def test_versions_and_image_are_those_of_the_lock_and_of_one_image() -> None:
    assert cluster_of("base")["rayVersion"] == version("ray")
    config = yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())
    images = {
        container["image"]
        for name, pod in pod_specs("overlays/kueue")
        if name != "gcs-store"
        for container in pod["containers"]
    }
    assert images == {config["docker"]["image"]}


def test_the_standing_cluster_scales_with_autoscaler_v2() -> None:
    cluster = cluster_of("base")
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    [group] = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"]) == (0, 0)
    pods = [pod for name, pod in pod_specs("base") if name != "gcs-store"]
    # KubeRay refuses others with autoscaler v2.
    assert {pod["restartPolicy"] for pod in pods} == {"Never"}


# -- the job


def test_the_cluster_of_a_job_has_the_nodes_that_its_recipe_asks_for() -> None:
    objects = by_name("overlays/ray-job")
    assert ("RayCluster", "cprec") not in objects
    cluster = cluster_of("overlays/ray-job")
    assert not cluster["enableInTreeAutoscaling"]
    [group] = cluster["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    text = objects["ConfigMap", "recipe"]["data"]["recipe.yaml"]
    recipe = validate_recipe(parse_yaml(text, "recipe"), "recipe")
    [worker] = group["template"]["spec"]["containers"]
    gpus = group["replicas"] * int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert gpus == recipe.workers * recipe.train.gpus_per_worker
    entrypoint = objects["RayJob", "cpt"]["spec"]["entrypoint"].split()
    assert (REPOSITORY / entrypoint[1]).exists()
    assert entrypoint[2] == "/etc/cprec/recipe.yaml"


def test_kueue_can_admit_the_job_as_a_whole_and_take_its_nodes_back() -> None:
    objects = by_name("overlays/kueue")
    job = objects["RayJob", "cpt"]
    # Kueue's webhook refuses a job without these.
    assert job["spec"]["suspend"]
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert not job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]
    labels = job["metadata"]["labels"]
    queue = objects["LocalQueue", labels["kueue.x-k8s.io/queue-name"]]
    assert queue["metadata"]["namespace"] == job["metadata"]["namespace"]
    assert ("WorkloadPriorityClass", labels["kueue.x-k8s.io/priority-class"]) in objects
    [group] = objects["ClusterQueue", queue["spec"]["clusterQueue"]]["spec"]["resourceGroups"]
    quotas = {
        flavor["name"]: {entry["name"]: entry["nominalQuota"] for entry in flavor["resources"]}
        for flavor in group["flavors"]
    }
    assert {("ResourceFlavor", name) in objects for name in quotas} == {True}
    [workers] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [worker] = workers["template"]["spec"]["containers"]
    requests = worker["resources"]["requests"]
    assert set(requests) == set(group["coveredResources"])
    for name, quota in quotas["h100"].items():
        amount = int(requests[name].removesuffix("Gi")) * workers["replicas"]
        assert amount <= int(quota.removesuffix("Gi")), name
    flavor = objects["ResourceFlavor", "h100"]["spec"]
    assert flavor["nodeLabels"] == workers["template"]["spec"]["nodeSelector"]
