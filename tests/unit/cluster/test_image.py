"""The image holds what the lock says, as far as its file tells: nothing is built here."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "cluster" / "image" / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_base_has_the_torch_of_the_lock_and_is_pinned() -> None:
    pattern = r"^ARG BASE=pytorch/pytorch:(\S+)\nFROM \$\{BASE\}$"
    [tag] = re.findall(pattern, DOCKERFILE, re.MULTILINE)
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    assert f"torch=={tag.split('-')[0]}" in locked


def test_labels_and_tags_are_those_of_the_project() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', DOCKERFILE))
    assert labels["title"] == PROJECT["name"]
    assert labels["version"] == PROJECT["version"]
    assert labels["licenses"] == PROJECT["license"]
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    assert config["docker"]["image"].endswith(f"/cprec:{PROJECT['version']}")
    assert f"/cprec:{PROJECT['version']} ." in DOCKERFILE


def test_packages_are_those_of_the_lock_and_nothing_is_resolved() -> None:
    check, install = re.findall(r"pip install (.*)", DOCKERFILE)
    assert "--no-deps --dry-run --no-index" in check  # of the torch of the base
    assert "--no-deps" in install
    assert "--requirement /tmp/requirements.lock" in install
