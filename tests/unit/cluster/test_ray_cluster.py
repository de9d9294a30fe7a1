"""Ray's launcher and EC2's API accept ray_cluster.yaml, as far as that shows without an account."""

import copy
import json
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.aws.config import _configure_from_network_interfaces
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return loaded


def test_valid_under_the_schema_that_ray_ships(config: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)


def test_prepared_as_ray_up_prepares_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["available_node_types"]["h100"]["max_workers"] <= prepared["max_workers"]
    interfaces = _configure_from_network_interfaces(copy.deepcopy(prepared))[
        "available_node_types"
    ]["h100"]["node_config"]
    assert len(interfaces["SubnetIds"]) == 32


@pytest.mark.parametrize("node", ["head", "h100"])
def test_ec2_accepts_the_node_config(config: dict[str, Any], node: str) -> None:
    operation = (
        botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
    )
    request = {**config["available_node_types"][node]["node_config"], "MinCount": 1, "MaxCount": 1}
    assert not ParamValidator().validate(request, operation.input_shape).has_errors()


def test_every_network_card_of_a_p5_is_used_once_and_one_has_an_address(
    config: dict[str, Any],
) -> None:
    interfaces = config["available_node_types"]["h100"]["node_config"]["NetworkInterfaces"]
    assert [i["NetworkCardIndex"] for i in interfaces] == list(range(32))
    assert [i["DeviceIndex"] for i in interfaces] == [0] + [1] * 31
    assert [i["InterfaceType"] for i in interfaces] == ["efa"] + ["efa-only"] * 31
    assert all(i["SubnetId"] and i["Groups"] for i in interfaces)


def test_head_is_on_demand_and_every_ray_start_asks_for_the_token(config: dict[str, Any]) -> None:
    assert "InstanceMarketOptions" not in config["available_node_types"]["head"]["node_config"]
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "/root/.ray/auth_token" in config["file_mounts"]


def test_image_is_pinned(config: dict[str, Any]) -> None:
    image = config["docker"]["image"]
    assert ":" in image
    assert not image.endswith(":latest")
