"""The configuration that is saved with a trained part, compared with a recipe's."""

import json
import posixpath
from collections.abc import Mapping
from typing import Any

from cluster.errors import RunError
from cluster.storage import exists, join, read_text_if_exists
from cprec.config.sections.model import ModelSettings
from cprec.model.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS,
    PARTIAL_CONFIG,
)

PEFT_KEYS: Mapping[str, Mapping[str, str]] = {
    "lora": {"lora_rank": "r", "lora_alpha": "lora_alpha"},
    "prompt": {"soft_tokens": "num_virtual_tokens"},
}
"""For each `model.adapter`, the keys of the recipe whose values PEFT's configuration has."""


def is_bare_adapter(uri: str) -> bool:
    """Returns whether a folder is a PEFT directory of its own, and not a checkpoint."""
    return exists(join(uri, ADAPTER_CONFIG))


def adapter_uri(uri: str) -> str:
    """Returns the folder that holds the weights of a checkpoint, or of a bare adapter."""
    return uri if is_bare_adapter(uri) else join(uri, ADAPTER_FOLDER)


def read_kind(folder: str) -> tuple[str, dict[str, Any]]:
    """Reads which `model.adapter` made a folder of trained weights, and the configuration in it.

    Args:
        folder: URI of a PEFT directory, or of the folder of a checkpoint.
    """
    for name, kind in ((ADAPTER_CONFIG, "lora"), (PARTIAL_CONFIG, "partial")):
        text = read_text_if_exists(join(folder, name))
        if text is not None:
            config: dict[str, Any] = json.loads(text)
            return "prompt" if config.get("peft_type") == "PROMPT_TUNING" else kind, config
    return "full", {}


def require_matching_adapter(model: ModelSettings, base: str, parent: str) -> None:
    """Checks that a run trains the kind of adapter that it starts from.

    Weights of another scale, or for another base of the same shape, would load without an error
    and mean something else.

    Args:
        model: The recipe's section `model`.
        base: Base model that workers load.
        parent: URI of the parent checkpoint, or of a bare adapter.

    Raises:
        RunError: Something differs, which is listed, or a bare adapter lacks its weights.
    """
    folder = adapter_uri(parent)
    is_bare = folder == parent
    if is_bare and not exists(join(parent, ADAPTER_WEIGHTS)):
        raise RunError(f"{parent}: no {ADAPTER_WEIGHTS}, so there are no weights to begin with")
    kind, config = read_kind(folder)
    recipe_values: dict[str, Any] = {"model.adapter": model.adapter}
    parent_values: dict[str, Any] = {"model.adapter": kind}
    if kind == model.adapter and kind != "full":
        for key, peft_key in PEFT_KEYS.get(kind, {}).items():
            recipe_values[f"model.{key}"] = getattr(model, key)
            parent_values[f"model.{key}"] = config.get(peft_key)
        recipe_values |= {"model.base": base, "model.revision": model.revision}
        parent_base = config.get("base_model_name_or_path")
        is_moved = posixpath.basename(base) == posixpath.basename(str(parent_base))
        # A bare adapter may call its base by a word of its own, or not at all.
        is_word = is_bare and "/" not in str(parent_base)
        if is_moved or is_word:
            parent_base = base
        parent_values |= {
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
