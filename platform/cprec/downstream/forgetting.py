"""Measures what a language model forgot: the perplexity of a plain text (`evaluate.text`).

It is stored in the model's evaluation folder, and compared with the perplexity of its base.
"""

import json
from collections.abc import Sequence
from typing import Any, TypedDict, cast

from cluster.console import Say
from cluster.ray_session import ray_session
from cluster.storage import exists, join, write_text
from corpus.ingest.plain_text import read_plain_text
from corpus.sampling.replay_text import text_digest
from cprec.config.recipe import Recipe
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.scoring import compute_perplexities
from cprec.runs.record_files import read_json_object
from cprec.runs.token_form import TOKEN_FORM

PERPLEXITY_FILE = "perplexity.json"
"""File of a model's evaluation folder that holds its perplexity and what it depends on."""


class StoredPerplexity(TypedDict):
    """The content of perplexity.json.

    Attributes:
        perplexity: Perplexity of the whole of `evaluate.text`.
        inputs: What it depends on: equal inputs are not measured again.
    """

    perplexity: float
    inputs: dict[str, Any]


def check_text(recipe: Recipe) -> None:
    """Checks that `evaluate.text` can be read, if the recipe names one.

    Raises:
        RecipeError: The text is missing, is empty, or is not UTF-8.
    """
    if recipe.evaluate.text is not None:
        read_plain_text(recipe.evaluate.text, "evaluate.text")


def measure_perplexities(
    recipe: Recipe, folder: str, models: Sequence[EvaluatedModel], say: Say
) -> dict[str, float]:
    """Measures the perplexity of `evaluate.text` under each language model.

    A perplexity that was measured before on the same text is read from its file. Baselines do not
    read text and are left out.

    Args:
        recipe: The recipe; without `evaluate.text` nothing is measured.
        folder: URI below which `<label>/perplexity.json` of each model is stored.
        models: The models.
        say: Prints progress.

    Returns:
        The perplexity of each language model, by its label.

    Raises:
        RecipeError: The text is missing, is empty, or is not UTF-8.
    """
    uri = recipe.evaluate.text
    language_models = [model for model in models if not model.is_baseline]
    if uri is None or not language_models:
        return {}
    text = read_plain_text(uri, "evaluate.text")
    digest = text_digest(text)
    inputs = {model.label: _perplexity_inputs(recipe, model, digest) for model in language_models}
    perplexities = {
        label: value
        for label in inputs
        if (value := _read_stored(join(folder, label, PERPLEXITY_FILE), inputs[label])) is not None
    }
    if missing := [model for model in language_models if model.label not in perplexities]:
        say(f"perplexity of {uri}: {', '.join(model.label for model in missing)}")
        with ray_session(
            recipe.cluster.address,
            recipe.cluster.num_cpus or recipe.workers * recipe.train.cpus_per_worker,
        ):
            for model, value in zip(
                missing, compute_perplexities(recipe, missing, text, say), strict=True
            ):
                content: StoredPerplexity = {"perplexity": value, "inputs": inputs[model.label]}
                write_text(
                    join(folder, model.label, PERPLEXITY_FILE),
                    json.dumps(content, indent=2, allow_nan=False),
                )
                perplexities[model.label] = value
    return perplexities


def _perplexity_inputs(recipe: Recipe, model: EvaluatedModel, digest: str) -> dict[str, Any]:
    """Returns everything that a perplexity depends on."""
    return {
        "base": model.base,
        "base_revision": model.revision,
        "checkpoint": model.checkpoint,
        "precision": recipe.model.precision,
        "max_tokens": recipe.model.max_tokens,
        "text": digest,
        "token_form": TOKEN_FORM,
    }


def _read_stored(file: str, inputs: dict[str, Any]) -> float | None:
    """Returns a stored perplexity, or None if there is none for equal inputs."""
    if not exists(file):
        return None
    content = cast(StoredPerplexity, read_json_object(file))
    return content["perplexity"] if content["inputs"] == inputs else None
