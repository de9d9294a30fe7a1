"""Ranks the whole catalogue of a domain for an evaluation: exactly, or what was retrieved of it.

Baselines score every item. A language model cannot: it ranks the items that were retrieved, and a
true item that was not counts as a miss. Nothing here knows more of a sample than its history, and
the training split.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from cluster.console import Say
from cluster.errors import CorpusError, RecipeError
from cluster.progress import track
from cluster.ray_tasks import get_results
from corpus.store.tables import Corpus
from cprec.baselines.popularity import POPULARITY
from cprec.baselines.training import ItemText, iter_catalogue_scores
from cprec.config.recipe import Recipe
from cprec.downstream import stored_baselines
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.scoring import score_model
from cprec.evaluation import catalogue_predictions
from cprec.ranking.items import ItemLookup
from cprec.ranking.ranker import MIN_CANDIDATES
from cprec.retrieval.candidates import Items
from cprec.retrieval.catalogue import Catalogue
from cprec.stream.row_encoder import RowEncoder
from cprec.tracking.registry import Registry
from cprec.workflows.evaluation.baselines import start_training
from cprec.workflows.evaluation.embedding import embed_on_ray
from cprec.workflows.evaluation.models import find_models


def find_retrieval_model(
    recipe: Recipe, registry: Registry, names: Sequence[str], corpus: Corpus
) -> EvaluatedModel:
    """Finds the language model whose hidden states are the vectors of titles.

    Args:
        recipe: The recipe, with `retrieval.model`.
        registry: Where versions are looked up.
        names: The models that are evaluated; `base` is theirs.
        corpus: The corpus.

    Raises:
        RecipeError: It is not a language model.
        RunError: There is no such version.
    """
    name = recipe.retrieval.model
    found = find_models(recipe, registry, [*names, name], corpus)
    model = next(model for model in reversed(found) if name in (model.name, *model.other_names))
    if model.is_baseline:
        raise RecipeError(
            f"retrieval.model: {name} has no hidden states; give base, a version or a checkpoint"
        )
    return model


def open_catalogue(
    recipe: Recipe, registry: Registry, model: EvaluatedModel, corpus: Corpus, items: ItemLookup
) -> Catalogue | None:
    """Opens the catalogue that candidates are retrieved from; None if the request gives them.

    `recommend.candidates` says which.

    Raises:
        CorpusError: The domain has too few items.
        RecipeError: `retrieval.model` is not a language model.
    """
    settings = recipe.recommend
    if settings.candidates == "given":
        return None
    if (count := len(items.domain.item_indices)) < MIN_CANDIDATES:
        raise CorpusError(f"{items.domain.name}: {count} item(s); a ranking takes {MIN_CANDIDATES}")
    # Both keys say the same: what is never shown need not be retrieved.
    retrieval = recipe.retrieval.model_copy(update={"exclude_history": settings.exclude_history})
    retriever = find_retrieval_model(recipe, registry, [model.name], corpus)
    return Catalogue(
        recipe.model_copy(update={"retrieval": retrieval}), corpus, items.domain, retriever
    )


@dataclass(frozen=True)
class CatalogueRanking:
    """The ranking of one domain's catalogue for samples of it.

    Attributes:
        catalogue: The items.
        samples: The samples.
    """

    catalogue: Catalogue
    samples: pa.Table

    @property
    def embedders(self) -> list[EvaluatedModel]:
        """The one model that embeds titles; empty where `retrieval.sources` lacks titles."""
        uses_titles = "titles" in self.catalogue.recipe.retrieval.sources
        return [self.catalogue.model] if uses_titles else []

    def describe(self) -> str:
        """Returns what is retrieved, and how, for people."""
        recipe = self.catalogue.recipe
        sources = ", ".join(recipe.retrieval.sources) or "popularity alone"
        return (
            f"  {recipe.evaluate.retrieve_k} of {len(self.catalogue.items):,} items are retrieved "
            f"for language models, by {sources}"
            + "".join(f"; titles by {model.label}" for model in self.embedders)
        )

    def inputs(self, model: EvaluatedModel) -> dict[str, Any]:
        """Returns the inputs of predictions over a catalogue that other predictions do not have."""
        recipe, settings = self.catalogue.recipe, self.catalogue.recipe.retrieval
        inputs = {"candidates": "catalogue", "retrieve_k": recipe.evaluate.retrieve_k}
        if model.is_baseline:
            return {**inputs, "exclude_history": settings.exclude_history}
        uses = settings.sources
        if self._ranks_histories:
            inputs["histories"] = "last"  # earlier releases ranked them among the others
        return {
            **inputs,
            "retrieval": {
                **settings.model_dump(mode="json", exclude={"model"}),
                "max_samples": recipe.finetune.max_samples,
                "vectors": dict(self.catalogue.vector_identity) if "titles" in uses else None,
                "sasrec": self._sasrec_uri if "sasrec" in uses else None,
            },
        }

    @property
    def _ranks_histories(self) -> bool:
        """Whether items of a history, which come last, may be retrieved for want of others."""
        recipe = self.catalogue.recipe
        wanted = recipe.evaluate.retrieve_k + recipe.data.max_history
        return recipe.retrieval.exclude_history and len(self.catalogue.items) < wanted

    def predict(
        self,
        model: EvaluatedModel,
        workers: int,
        row_encoder: RowEncoder | None,
        text: ItemText | None,
        say: Say,
    ) -> pa.Table:
        """Ranks the catalogue with a model, inside a Ray session.

        Args:
            model: The model.
            workers: Number of tasks of a language model; a baseline takes one.
            row_encoder: Encoder of titles for a language model; None for a baseline.
            text: The items' text, for a baseline that reads it.
            say: Takes lines of progress.

        Returns:
            Predictions (cprec.evaluation.catalogue_predictions).
        """
        retrieved = None if model.is_baseline else self._retrieve(workers, say)
        started = time.monotonic()
        if retrieved is None:
            recipe, corpus = self.catalogue.recipe, self.catalogue.corpus
            domain = self.catalogue.domain
            task = ray.remote(_rank_with_baseline).options(num_cpus=recipe.train.cpus_per_worker)
            arguments = (recipe, corpus, domain, model, self.samples, text)
            with track(f"ranking with {model.label}", say):
                table = get_results([task.remote(*arguments)])[0]
        else:
            table = self._rank_retrieved(model, retrieved, workers, row_encoder, say)
        seconds = time.monotonic() - started
        say(f"{model.label}: {seconds:.1f} s, {len(self.samples) / seconds:,.2f} users/s")
        return table

    def _rank_retrieved(
        self,
        model: EvaluatedModel,
        retrieved: Items,
        workers: int,
        row_encoder: RowEncoder | None,
        say: Say,
    ) -> pa.Table:
        """Ranks retrieved items with a language model."""
        recipe, domain = self.catalogue.recipe, self.catalogue.domain
        # In the order of the items: their place in the prompt must not tell where they stood.
        ranked = np.sort(retrieved[:, : recipe.evaluate.retrieve_k], axis=1)
        column = self.samples.schema.get_field_index("candidates")
        candidates = pa.array(list(ranked), self.samples.schema.field(column).type)
        samples = self.samples.set_column(column, "candidates", candidates)
        corpus = self.catalogue.corpus
        scores = score_model(recipe, model, corpus, domain.name, samples, workers, row_encoder, say)
        return catalogue_predictions.from_retrieved(
            self.samples, retrieved, ranked, scores, recipe.retrieval.exclude_history
        )

    def _retrieve(self, workers: int, say: Say) -> Items:
        """Retrieves candidates for every sample, once for all models [n, depth]."""
        if "retrieved" not in self._cache:
            recipe = self.catalogue.recipe
            self._train_sasrec(say)
            source = self.catalogue.build_source(
                embed_on_ray(recipe, self.catalogue.model, workers), say
            )
            depth = max(recipe.evaluate.retrieve_k, *catalogue_predictions.RECALL_CUTOFFS)
            started = time.monotonic()
            self._cache["retrieved"] = source.find(self.samples["history"].to_pylist(), depth)
            seconds = time.monotonic() - started
            say(
                f"retrieved {depth} of {len(self.catalogue.items):,} items: {seconds:.1f} s, "
                f"{len(self.samples) / seconds:,.0f} users/s"
            )
        return self._cache["retrieved"]

    @cached_property
    def _cache(self) -> dict[str, Items]:
        return {}

    @property
    def _sasrec_uri(self) -> str | None:
        """The SASRec that finds candidates; None where the domain has nothing to train it on."""
        recipe, corpus, domain = (
            self.catalogue.recipe,
            self.catalogue.corpus,
            self.catalogue.domain.name,
        )
        try:
            for split in ("train", "validation"):
                corpus.find_domain_source(domain, split)
        except CorpusError:
            return None
        return stored_baselines.baseline_uri(recipe, corpus, domain, "sasrec", recipe.seed)

    def _train_sasrec(self, say: Say) -> None:
        """Trains the SASRec that finds candidates, if it is asked for and not stored yet."""
        recipe, corpus = self.catalogue.recipe, self.catalogue.corpus
        if "sasrec" not in recipe.retrieval.sources or self._sasrec_uri is None:
            return
        say("retrieval: SASRec is trained, if it is not stored yet")
        domain = self.catalogue.domain.name
        with track("SASRec", say):
            get_results([start_training(recipe, corpus, domain, "sasrec", recipe.seed)])


def _rank_with_baseline(
    recipe: Recipe,
    corpus: Corpus,
    domain: Domain,
    model: EvaluatedModel,
    samples: pa.Table,
    text: ItemText | None,
) -> pa.Table:
    """Ranks all items with a baseline, which is trained first if necessary."""
    block_rows = max(catalogue_predictions.BLOCK_BYTES // (8 * len(domain.item_indices)), 1)
    return catalogue_predictions.from_all_scores(
        samples,
        _iter_scores(recipe, corpus, domain, model, samples, text, block_rows),
        domain.item_indices,
        recipe.evaluate.retrieve_k,
        recipe.retrieval.exclude_history,
    )


def _iter_scores(
    recipe: Recipe,
    corpus: Corpus,
    domain: Domain,
    model: EvaluatedModel,
    samples: pa.Table,
    text: ItemText | None,
    block_rows: int,
) -> Iterator[NDArray[Any]]:
    """Yields a baseline's scores of all items, for so many samples at a time."""
    if model.name == POPULARITY:
        counts = stored_baselines.count_training_purchases(recipe, corpus, domain)
        for start in range(0, len(samples), block_rows):
            rows = min(block_rows, len(samples) - start)
            yield np.broadcast_to(counts.astype(np.float64), (rows, len(counts)))
        return
    stored_baselines.ensure_trained(recipe, corpus, domain.name, model.name, model.seed, text)
    network = stored_baselines.load_trained(recipe, corpus, domain, model.name, model.seed, text)
    histories = [
        (domain.to_local_numbers(np.array(history)) + 1).tolist()
        for history in samples["history"].to_pylist()
    ]
    yield from iter_catalogue_scores(network, histories, block_rows)
