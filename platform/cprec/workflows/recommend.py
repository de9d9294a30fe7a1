"""Ranks candidates for one history, to try a model by hand."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cluster.console import Say
from cluster.errors import RecipeError
from cluster.storage import read_text
from corpus.ingest.titles import clean_title
from cprec.config.recipe import Recipe
from cprec.downstream.scoring import EvaluatedModel, load_model
from cprec.downstream.trial import build_encoders
from cprec.evaluate.candidate_scoring import score_samples
from cprec.evaluate.scoring_check import choose_scoring
from cprec.model.context_length import require_context


def read_candidate_titles(uri: str) -> list[str]:
    """Reads candidate titles from a text file, one a line, without empty and repeated ones.

    Raises:
        RecipeError: There are fewer than two.
    """
    cleaned = (clean_title(line) for line in read_text(uri).splitlines())
    titles = list(dict.fromkeys(title for title in cleaned if title))
    if len(titles) < 2:
        raise RecipeError(
            f"--candidates {uri}: {len(titles)} title(s), one a line; a ranking takes two at least"
        )
    return titles


def recommend(
    recipe: Recipe,
    model: EvaluatedModel,
    history: Sequence[str],
    candidates: Sequence[str],
    say: Say,
) -> list[tuple[str, float]]:
    """Ranks candidates as the next item of a history.

    Args:
        recipe: Precision and longest prompt.
        model: The text-only model that ranks.
        history: Titles, the oldest first.
        candidates: Titles.
        say: Takes a line where the model is scored the slow way.

    Returns:
        The candidates, the likeliest first, each with its share of the likelihood of them all. The
        shares are a softmax of summed log-probabilities, and not calibrated: the first is often
        close to 1, also where the model is often wrong.

    Raises:
        RecipeError: The model is hybrid; it needs items, for which titles do not suffice.
    """
    require_context(model.base, model.revision, recipe.model.max_tokens)
    network, tokenizer = load_model(recipe, model)
    titles = [clean_title(title) for title in history] + list(candidates)
    # One sample of a catalogue that holds nothing else: item i has title i.
    items = {index: (title, index) for index, title in enumerate(titles)}
    encoder = build_encoders(tokenizer, recipe.model.max_tokens, network, items).for_evaluation
    indices = list(range(len(titles)))
    sample = pa.table(
        {"history": [indices[: len(history)]], "candidates": [indices[len(history) :]]}
    )
    way = choose_scoring(network, recipe.model.max_tokens)
    if way.reason:
        say(f"each candidate is scored on its own, as one pass is wrong: {way.reason}")
    scores = score_samples(network, encoder, sample, 1, way)[0]
    # Softmax over the candidates.
    weights = np.exp(scores - scores.max())
    ranking = np.argsort(-scores, kind="stable")
    return [(candidates[i], float(weights[i] / weights.sum())) for i in ranking]
