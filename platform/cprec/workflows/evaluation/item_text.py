"""The text of a domain's items for the baselines that read it, as a language model embeds titles.

Vectors are those that retrieval has, from the same store: no title is embedded twice.
"""

from collections.abc import Mapping
from typing import Any

from cluster.console import Say
from corpus.store.tables import Corpus
from cprec.baselines.training import ItemText
from cprec.config.recipe import Recipe
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.retrieval.catalogue import Catalogue, vector_identity
from cprec.retrieval.title_vectors import WHITENING_RIDGE, whiten
from cprec.workflows.evaluation.embedding import embed_on_ray


def text_identity(recipe: Recipe, model: EvaluatedModel) -> Mapping[str, Any] | None:
    """Returns what the text of a baseline depends on besides titles; None if it reads none."""
    if not model.reads_text:
        return None
    return {**vector_identity(recipe, model), "whitening_ridge": WHITENING_RIDGE}


def read_item_text(
    recipe: Recipe, corpus: Corpus, domain: Domain, model: EvaluatedModel, workers: int, say: Say
) -> ItemText | None:
    """Reads the text of a domain's items for a baseline, inside a Ray session.

    Args:
        recipe: The recipe.
        corpus: The corpus.
        domain: The domain.
        model: The baseline, with the language model whose hidden states are the vectors.
        workers: Number of tasks that embed titles that the storage does not have.
        say: Takes lines of progress.

    Returns:
        The vectors, whitened, because hidden states have a few directions in which all texts differ
        much. None where the baseline reads no text.
    """
    identity = text_identity(recipe, model)
    if identity is None:
        return None
    catalogue = Catalogue(recipe, corpus, domain, model)
    return ItemText(
        identity, whiten(catalogue.ensure_vectors(embed_on_ray(recipe, model, workers), say))
    )
