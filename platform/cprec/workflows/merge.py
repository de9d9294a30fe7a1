"""An adapter merged into its base: one plain model directory, for servers that take no adapters."""

import tempfile
from pathlib import Path

from peft import PeftModel

from cluster.errors import RunError
from cluster.storage import exists, upload
from cprec.config.recipe import Recipe
from cprec.downstream.hybrid import HybridModel
from cprec.downstream.scoring import EvaluatedModel, load_model


def export_model(recipe: Recipe, model: EvaluatedModel, uri: str) -> None:
    """Write a model and its tokenizer to a directory or an object store, in Hugging Face's format; config.json goes last.

    Raises RunError where something is already, and for a hybrid model: its behaviour tokens are in no vocabulary.
    """
    if exists(uri):
        raise RunError(f"{uri}: there is something already; give another place")
    network, tokenizer = load_model(recipe, model)
    if isinstance(network, HybridModel):
        raise RunError(
            f"{model.name}: a hybrid model has a projector, which no model directory holds; export one tuned with finetune.hybrid false"
        )
    whole = network.merge_and_unload() if isinstance(network, PeftModel) else network
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        whole.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        upload(directory, uri, last="config.json")
