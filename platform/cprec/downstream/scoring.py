"""A model's scores for samples, from Ray tasks that each load it and take a contiguous share of them."""

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from cluster import storage
from cluster.errors import CprecError
from corpus.store.tables import Corpus
from cprec.baselines.training import BASELINE_NAMES
from cprec.config.recipe import Recipe
from cprec.downstream import hybrid, stored_baselines
from cprec.downstream.domain import Domain
from cprec.downstream.hybrid import HybridModel
from cprec.downstream.trial import BEHAVIOUR_FOLDER, build_encoders
from cprec.evaluate.candidate_scoring import PromptEncoder, score_samples
from cprec.evaluate.generation import generate_answers
from cprec.evaluate.perplexity import compute_perplexity
from cprec.model import adapter, backbone
from cprec.runs import checkpoint
from cprec.stream.row_encoder import RowEncoder


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to be scored: a base and, unless it is the base itself, a checkpoint; or a baseline, which has neither.

    name: as it was asked for; label: what it is, and its folder; seed: of a baseline's training.
    """

    name: str
    label: str
    base: str
    revision: str | None
    checkpoint: str | None = None
    version: int | None = None
    seed: int = 0

    @property
    def is_baseline(self) -> bool:
        """Whether it knows item ids only."""
        return self.name in BASELINE_NAMES


def score_model(
    recipe: Recipe,
    model: EvaluatedModel,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    workers: int,
    row_encoder: RowEncoder | None,
) -> NDArray[np.float64]:
    """Scores [n, candidates] of the samples' candidates, inside a Ray session. A baseline is trained first if it is not there.

    text: what a language model reads with; None for a baseline.
    """
    if model.is_baseline:
        alone = ray.remote(stored_baselines.score_baseline).options(
            num_cpus=recipe.train.cpus_per_worker
        )
        return np.asarray(
            get_results([alone.remote(recipe, corpus, domain, model.name, model.seed, samples)])[0]
        )
    return np.concatenate(
        _map_samples(recipe, _score_task, model, corpus, domain, samples, workers, row_encoder)
    )


def generate_texts(
    recipe: Recipe,
    model: EvaluatedModel,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    workers: int,
    row_encoder: RowEncoder | None,
) -> list[list[str]]:
    """What a language model answers to each sample, in turn (cprec.evaluate.generation), inside a Ray session."""
    found = _map_samples(
        recipe, _generate_task, model, corpus, domain, samples, workers, row_encoder
    )
    return [said for share in found for said in share]


def compute_perplexities(
    recipe: Recipe, models: Sequence[EvaluatedModel], text: str
) -> list[float]:
    """The perplexity of a plain text by each language model, inside a Ray session."""
    remote = ray.remote(_perplexity_task).options(
        num_cpus=recipe.train.cpus_per_worker, num_gpus=recipe.train.gpus_per_worker
    )
    return get_results([remote.remote(recipe, model, text) for model in models])


def _map_samples(
    recipe: Recipe,
    task: Any,
    model: EvaluatedModel,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    workers: int,
    row_encoder: RowEncoder | None,
) -> list[Any]:
    """Results of a task on contiguous shares of the samples, in their order."""
    bounds = np.linspace(0, len(samples), workers + 1).astype(int)
    remote = ray.remote(task).options(
        num_cpus=recipe.train.cpus_per_worker, num_gpus=recipe.train.gpus_per_worker
    )
    shares = [samples.slice(start, stop - start) for start, stop in itertools.pairwise(bounds)]
    return get_results(
        [remote.remote(recipe, model, corpus, domain, share, row_encoder) for share in shares]
    )


def get_results(references: list[Any]) -> list[Any]:
    """Results of Ray tasks; an error of ours comes without the worker's traceback, which is no news to the user."""
    try:
        return list(ray.get(references))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CprecError):
            raise error.cause from None
        raise


def load_model(recipe: Recipe, model: EvaluatedModel) -> tuple[Any, Any]:
    """A language model as it is evaluated, with its projector where it has one, on the device at hand; its tokenizer."""
    network, tokenizer = backbone.load(model.base, model.revision, recipe.model.precision)
    if model.checkpoint is not None:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            network = adapter.load(
                network,
                storage.download(
                    storage.join(model.checkpoint, checkpoint.ADAPTER),
                    directory / checkpoint.ADAPTER,
                ),
            )
            if storage.exists(extra := storage.join(model.checkpoint, BEHAVIOUR_FOLDER)):
                network = hybrid.load(
                    network, storage.download(extra, directory / BEHAVIOUR_FOLDER)
                )  # type: ignore[assignment]
    if torch.cuda.is_available():
        network = network.to("cuda")  # type: ignore[arg-type]
    return network, tokenizer


def _build_encoder(
    recipe: Recipe, network: Any, tokenizer: Any, domain: Domain, row_encoder: RowEncoder | None
) -> PromptEncoder:
    """Behaviour tokens are woven in by the tokenizer; text alone is stitched from the object store."""
    if row_encoder is None or isinstance(network, HybridModel):
        return build_encoders(
            tokenizer, recipe.model.max_tokens, network, domain.items_by_index()
        ).for_evaluation
    return row_encoder.load_prompt_encoder()


def _score_task(
    recipe: Recipe,
    model: EvaluatedModel,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    row_encoder: RowEncoder | None,
) -> NDArray[np.float64]:
    network, tokenizer = load_model(recipe, model)
    known = Domain.from_corpus(corpus, domain, recipe.evaluate.split)
    return score_samples(
        network,
        _build_encoder(recipe, network, tokenizer, known, row_encoder),
        samples,
        recipe.evaluate.batch,
    )


def _generate_task(
    recipe: Recipe,
    model: EvaluatedModel,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    row_encoder: RowEncoder | None,
) -> list[list[str]]:
    network, tokenizer = load_model(recipe, model)
    known, constrained = (
        Domain.from_corpus(corpus, domain, recipe.evaluate.split),
        recipe.evaluate.mode == "constrained",
    )
    encoder = _build_encoder(recipe, network, tokenizer, known, row_encoder)
    return generate_answers(
        network, tokenizer, encoder, samples, known.titles, recipe.evaluate.batch, constrained
    )


def _perplexity_task(recipe: Recipe, model: EvaluatedModel, text: str) -> float:
    network, tokenizer = load_model(recipe, model)
    return compute_perplexity(network, tokenizer, text, recipe.model.max_tokens)
