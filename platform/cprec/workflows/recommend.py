"""A ranking for one history, to try a model by hand."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cluster.errors import RecipeError, RunError
from cluster.storage import read_text
from corpus.ingest.titles import clean_title
from cprec.config.recipe import Recipe
from cprec.downstream.hybrid import HybridModel
from cprec.downstream.scoring import EvaluatedModel, load_model
from cprec.downstream.trial import build_encoders
from cprec.evaluate.candidate_scoring import score_samples
from cprec.runs import checkpoint
from cprec.tracking.registry import Registry


def find_registered_model(registry: Registry, model_uri: str) -> EvaluatedModel:
    """The model that `models:/<registered model>@<alias>` or `models:/<registered model>/<version>` means, as in MLflow.

    Raises RecipeError for another form, RunError for a version that is not there or has no lineage.
    """
    name, at, alias = model_uri.removeprefix("models:/").partition("@")
    name, slash, number = (name, "@", alias) if at else name.partition("/")
    if not model_uri.startswith("models:/") or not slash or not number:
        raise RecipeError(f"--model {model_uri}: give models:/NAME@champion or models:/NAME/3")
    registry = registry.with_model(name)
    version = registry.find_version(number)
    if version is None:
        raise RecipeError(
            f"--model {model_uri}: {number} is neither candidate, champion or previous nor a version number"
        )
    if "base" not in version.tags:
        raise RunError(
            f"--model {model_uri}: version {version.number} does not say which base it stands on (tag base)"
        )
    checkpoint.verify(version.checkpoint)
    return EvaluatedModel(
        model_uri,
        f"version-{version.number}",
        version.tags["base"],
        version.tags.get("base_revision") or None,
        version.checkpoint,
        version.number,
    )


def read_candidate_titles(uri: str) -> list[str]:
    """The candidates in a text file: one title a line. Raises RecipeError with fewer than two."""
    titles = list(dict.fromkeys(filter(None, map(clean_title, read_text(uri).splitlines()))))
    if len(titles) < 2:
        raise RecipeError(
            f"--candidates {uri}: {len(titles)} title(s), one a line; a ranking takes two at least"
        )
    return titles


def recommend(
    recipe: Recipe, model: EvaluatedModel, history: Sequence[str], candidates: Sequence[str]
) -> list[tuple[str, float]]:
    """The candidates with their probabilities given that one of them is next, the likeliest first.

    history: titles, oldest first. Raises RecipeError for a model with behaviour tokens: it knows items, and titles are not enough for it.
    """
    network, tokenizer = load_model(recipe, model)
    if isinstance(network, HybridModel):
        raise RecipeError(
            f"--model {model.name}: a hybrid model needs the items of its domain, not only titles; give one tuned with finetune.hybrid false"
        )
    titles = [clean_title(title) for title in history] + list(candidates)
    numbered = {index: (title, index) for index, title in enumerate(titles)}
    encoder = build_encoders(tokenizer, recipe.model.max_tokens, network, numbered).for_evaluation
    places = list(range(len(titles)))
    sample = pa.table({"history": [places[: len(history)]], "candidates": [places[len(history) :]]})
    scores = score_samples(network, encoder, sample, 1)[0]
    chances = np.exp(scores - scores.max())
    ranked = np.argsort(-scores, kind="stable")
    return [(candidates[i], float(chances[i] / chances.sum())) for i in ranked]
