"""Exports an adapter merged into its base as one plain model directory.

Servers that take no adapters can load it.
"""

import tempfile
from pathlib import Path

from peft import PeftModel

from cluster.errors import RunError
from cluster.storage import exists, upload
from cprec.config.recipe import Recipe
from cprec.downstream.scoring import EvaluatedModel, load_model
from cprec.model.libraries import refused_input


def require_free(uri: str) -> None:
    """Raises RunError if there is something at a place already."""
    if exists(uri):
        raise RunError(f"{uri}: there is something already; give another place")


def export_model(recipe: Recipe, model: EvaluatedModel, uri: str) -> None:
    """Writes a model and its tokenizer in the format of Hugging Face, config.json last.

    Args:
        recipe: Precision in which the model is loaded.
        model: The text-only model to export.
        uri: Directory or object store, where nothing may be yet.

    Raises:
        RunError: There is something at `uri`.
    """
    require_free(uri)
    network, tokenizer = load_model(recipe, model)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with refused_input(f"{model.name}: it cannot be merged into its base", RunError):
            merged = network.merge_and_unload() if isinstance(network, PeftModel) else network
            merged.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        upload(directory, uri, last="config.json")
