"""What a language model forgot: the perplexity of a plain text (`evaluate.text`), beside that of its base. Kept in the model's evaluation folder."""

import json
from collections.abc import Sequence
from typing import Any

from cluster.console import Say
from cluster.ray_session import ray_session
from cluster.storage import exists, join, read_text, write_text
from corpus.ingest.plain_text import read_plain_text
from corpus.sampling.replay_text import text_digest
from cprec.config.recipe import Recipe
from cprec.downstream.scoring import EvaluatedModel, compute_perplexities

PERPLEXITY_FILE = "perplexity.json"


def measure_perplexities(
    recipe: Recipe, folder: str, models: Sequence[EvaluatedModel], say: Say
) -> dict[str, float]:
    """Perplexity of `evaluate.text` by the label of each language model; what was measured before on the same text is not measured again.

    folder: each model's `<label>/perplexity.json` is kept there. Nothing without a text; baselines read none. Raises RecipeError where the text is
    not there or is no UTF-8.
    """
    uri = recipe.evaluate.text
    readers = [model for model in models if not model.is_baseline]
    if uri is None or not readers:
        return {}
    text = read_plain_text(uri, "evaluate.text")
    inputs = {
        model.label: _perplexity_inputs(recipe, model, text_digest(text)) for model in readers
    }
    found = {
        label: value
        for label in inputs
        if (value := _read_cached(join(folder, label, PERPLEXITY_FILE), inputs[label])) is not None
    }
    if missing := [model for model in readers if model.label not in found]:
        say(f"perplexity of {uri}: {', '.join(model.label for model in missing)}")
        with ray_session(
            recipe.cluster.address,
            recipe.cluster.num_cpus or recipe.workers * recipe.train.cpus_per_worker,
        ):
            for model, value in zip(
                missing, compute_perplexities(recipe, missing, text), strict=True
            ):
                written = {"perplexity": value, "inputs": inputs[model.label]}
                write_text(
                    join(folder, model.label, PERPLEXITY_FILE),
                    json.dumps(written, indent=2, allow_nan=False),
                )
                found[model.label] = value
    return found


def _perplexity_inputs(recipe: Recipe, model: EvaluatedModel, text_digest: str) -> dict[str, Any]:
    """All that a perplexity depends on."""
    return {
        "base": model.base,
        "base_revision": model.revision,
        "checkpoint": model.checkpoint,
        "precision": recipe.model.precision,
        "max_tokens": recipe.model.max_tokens,
        "text": text_digest,
    }


def _read_cached(file: str, inputs: dict[str, Any]) -> float | None:
    if not exists(file):
        return None
    kept = json.loads(read_text(file))
    return float(kept["perplexity"]) if kept["inputs"] == inputs else None
