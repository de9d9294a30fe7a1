"""Renders the manifests as `kubectl kustomize` does, as far as they use it.

Resources, patches of JSON 6902, replacements of a whole field, and what is local to the
configuration. `test_manifests.py` compares the two where kubectl is there.
"""

import copy
import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[4] / "cluster" / "kuberay"
LOCAL = "config.kubernetes.io/local-config"

Manifest = dict[str, Any]


def render(folder: str) -> list[Manifest]:
    """Returns the objects of a folder below cluster/kuberay, sorted by kind and name."""
    objects = [manifest for manifest in _accumulate(ROOT / folder) if not _is_local(manifest)]
    return sorted(objects, key=lambda found: (found["kind"], found["metadata"]["name"]))


def _accumulate(folder: Path) -> list[Manifest]:
    settings = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "resources", "patches", "replacements"}
    assert set(settings) <= known, f"{folder}: this renders no {set(settings) - known}"
    objects: list[Manifest] = []
    for name in settings["resources"]:
        path = folder / name
        if path.is_dir():
            objects += _accumulate(path.resolve())
        else:
            # Written and read again: what an anchor (&name) stands for is not shared then.
            objects += json.loads(json.dumps(list(yaml.safe_load_all(path.read_text()))))
    for patch in settings.get("patches", []):
        target = _find(objects, patch["target"])
        for operation in yaml.safe_load(patch["patch"]):
            _apply(target, operation)
    for replacement in settings.get("replacements", []):
        source = replacement["source"]
        value = _find(objects, source)[source["fieldPath"]]
        for target in replacement["targets"]:
            found = _find(objects, target["select"])
            for path in target["fieldPaths"]:
                *parents, last = path.split(".")
                place = found
                for parent in parents:
                    place = place[parent]
                place[last] = copy.deepcopy(value)
    return objects


def _is_local(manifest: Manifest) -> bool:
    annotations = manifest["metadata"].get("annotations") or {}
    return bool(annotations.get(LOCAL) == "true")


def _find(objects: list[Manifest], wanted: Manifest) -> Manifest:
    [found] = [
        manifest
        for manifest in objects
        if (manifest["kind"], manifest["metadata"]["name"]) == (wanted["kind"], wanted["name"])
    ]
    return found


def _apply(manifest: Manifest, operation: Manifest) -> None:
    """Applies one operation of RFC 6902: add, replace or remove."""
    *parents, last = operation["path"].strip("/").replace("~1", "/").split("/")
    place: Any = manifest
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place[parent]
    if operation["op"] == "add" and isinstance(place, list):
        assert last == "-"
        place.append(operation["value"])
        return
    if operation["op"] != "add":
        assert last in place, f"{operation['path']}: not there"
    if operation["op"] == "remove":
        del place[last]
    else:
        place[last] = operation["value"]
