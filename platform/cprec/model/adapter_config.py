"""The configuration that is saved with an adapter, compared with a recipe's."""

import json
import posixpath
from typing import Any

from cluster.errors import RunError
from cluster.storage import exists, join, read_text
from cprec.config.sections.model import ModelSettings

ADAPTER_FOLDER = "adapter"
"""Folder of a checkpoint that holds the trained weights."""
ADAPTER_CONFIG = "adapter_config.json"
"""File that makes a folder a PEFT directory."""


def require_matching_adapter(model: ModelSettings, base: str, parent: str) -> None:
    """Checks that a run trains the kind of adapter that its parent checkpoint holds.

    Weights of another scale, or for another base of the same shape, would load without an error
    and mean something else.

    Args:
        model: The recipe's section `model`.
        base: Base model that workers load.
        parent: URI of the parent checkpoint.

    Raises:
        RunError: Something differs; lists keys and values.
    """
    config_uri = join(parent, ADAPTER_FOLDER, ADAPTER_CONFIG)
    parent_has_lora = exists(config_uri)
    recipe_values: dict[str, Any] = {"model.adapter": model.adapter}
    parent_values: dict[str, Any] = {"model.adapter": "lora" if parent_has_lora else "full"}
    if parent_has_lora and model.adapter == "lora":
        recipe_values |= {
            "model.lora_rank": model.lora_rank,
            "model.lora_alpha": model.lora_alpha,
            "model.base": base,
            "model.revision": model.revision,
        }
        config = json.loads(read_text(config_uri))
        parent_base = config.get("base_model_name_or_path")
        if posixpath.basename(base) == posixpath.basename(str(parent_base)):
            parent_base = base  # the same model in another folder
        parent_values |= {
            "model.lora_rank": config.get("r"),
            "model.lora_alpha": config.get("lora_alpha"),
            "model.base": parent_base,
            "model.revision": config.get("revision"),
        }
    differences = [
        f"  {key}: {parent_values[key]!r} in the checkpoint, {value!r} in this recipe"
        for key, value in recipe_values.items()
        if value != parent_values[key]
    ]
    if differences:
        raise RunError(
            f"{parent} was trained with other settings:\n"
            + "\n".join(differences)
            + "\nset the checkpoint's values, or start from the base"
        )
