"""Embeds titles on the workers of a Ray session."""

from collections.abc import Sequence

import numpy as np
import ray

from cluster.ray_tasks import get_results
from cprec.config.recipe import Recipe
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.scoring import load_model
from cprec.retrieval.title_vectors import Embed, embed_titles
from cprec.retrieval.vector_index import Vectors


def embed_on_ray(recipe: Recipe, model: EvaluatedModel, workers: int) -> Embed:
    """Returns a function that embeds titles in equal parts on several workers of the session.

    Args:
        recipe: Precision, and the CPUs and GPUs of a worker.
        model: The language model whose hidden states are the vectors.
        workers: Number of workers.
    """
    task = ray.remote(_embed_task).options(
        num_cpus=recipe.train.cpus_per_worker, num_gpus=recipe.train.gpus_per_worker
    )

    def embed(titles: Sequence[str]) -> Vectors:
        parts = [titles[start::workers] for start in range(min(workers, len(titles)))]
        embedded = get_results([task.remote(recipe, model, part) for part in parts])
        vectors = np.empty((len(titles), embedded[0].shape[1]), dtype=np.float32)
        for start, part in enumerate(embedded):
            vectors[start::workers] = part
        return vectors

    return embed


def _embed_task(recipe: Recipe, model: EvaluatedModel, titles: Sequence[str]) -> Vectors:
    """Loads a language model and embeds titles with it."""
    network, tokenizer = load_model(recipe, model)
    return embed_titles(network, tokenizer, titles)
