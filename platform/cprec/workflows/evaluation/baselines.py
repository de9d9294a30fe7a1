"""Trains the baselines of an evaluation, all of them at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from cluster.console import Say
from cluster.progress import track
from cluster.ray_tasks import get_results
from corpus.store.tables import Corpus
from cprec.baselines.popularity import POPULARITY
from cprec.baselines.training import ItemText
from cprec.config.recipe import Recipe
from cprec.downstream import stored_baselines
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.workflows.evaluation.item_text import read_item_text


def start_training(
    recipe: Recipe,
    corpus: Corpus,
    domain: str,
    name: str,
    seed: int,
    text: ItemText | None = None,
) -> Any:
    """Starts to train a baseline that may not be stored yet, as a Ray task.

    The arguments are those of `stored_baselines.ensure_trained`.

    Returns:
        The reference to the URI of the weights.
    """
    task: Any = ray.remote(stored_baselines.ensure_trained).options(
        num_cpus=recipe.train.cpus_per_worker
    )
    return task.remote(recipe, corpus, domain, name, seed, text)


def train_baselines(
    recipe: Recipe,
    corpus: Corpus,
    domain_name: str,
    models: Sequence[EvaluatedModel],
    workers: int,
    say: Say,
) -> Mapping[str, ItemText | None]:
    """Trains the baselines that are not stored yet, a task for each seed, inside a Ray session.

    SASRec is one of them if a model has its behaviour tokens.

    Args:
        recipe: The recipe.
        corpus: The corpus.
        domain_name: Domain to train on.
        models: The models to be evaluated; those that are no baselines are left alone.
        workers: Number of tasks that embed titles that the storage does not have.
        say: Takes lines of progress.

    Returns:
        The items' text for each name of a baseline; None for one that reads none.
    """
    baselines = {
        (model.name, model.seed): model
        for model in models
        if model.is_baseline and model.name != POPULARITY
    }
    to_train: dict[tuple[str, int], ItemText | None] = {}
    texts: dict[str, ItemText | None] = {}
    if any(model.behaviour_weights is not None for model in models):
        to_train["sasrec", recipe.seed] = None
    if baselines:
        domain = Domain.from_corpus(corpus, domain_name, recipe.evaluate.split)
        # The text of all seeds is the same.
        texts = {
            model.name: read_item_text(recipe, corpus, domain, model, workers, say)
            for model in {name: model for (name, _), model in baselines.items()}.values()
        }
        to_train |= {(name, seed): texts[name] for name, seed in baselines}
    tasks = [
        start_training(recipe, corpus, domain_name, name, seed, text)
        for (name, seed), text in to_train.items()
        if not stored_baselines.is_trained(
            recipe, corpus, domain_name, name, seed, text.identity if text else None
        )
    ]
    if tasks:
        with track("training baselines", say, len(tasks), "models") as advance:
            get_results(tasks, advance)
    return texts
