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
from cprec.baselines.training import NAMES
from cprec.config.recipe import Recipe
from cprec.downstream import baseline, hybrid
from cprec.downstream.hybrid import Hybrid
from cprec.downstream.items import Domain
from cprec.downstream.trial import BEHAVIOUR, encoders_of
from cprec.evaluate.generate import answered
from cprec.evaluate.perplexity import perplexity
from cprec.evaluate.rank import PromptEncoder, score
from cprec.model import adapter, backbone
from cprec.runs import checkpoint
from cprec.stream.segments import Text


@dataclass(frozen=True)
class Contender:
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
        return self.name in NAMES


def scores(
    recipe: Recipe,
    model: Contender,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    workers: int,
    text: Text | None,
) -> NDArray[np.float64]:
    """Scores [n, candidates] of the samples' candidates, inside a Ray session. A baseline is trained first if it is not there.

    text: what a language model reads with; None for a baseline.
    """
    if model.is_baseline:
        alone = ray.remote(baseline.scores).options(num_cpus=recipe.train.cpus_per_worker)
        return np.asarray(
            fetch([alone.remote(recipe, corpus, domain, model.name, model.seed, samples)])[0]
        )
    return np.concatenate(_shares(recipe, _scored, model, corpus, domain, samples, workers, text))


def texts(
    recipe: Recipe,
    model: Contender,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    workers: int,
    text: Text | None,
) -> list[list[str]]:
    """What a language model answers to each sample, in turn (cprec.evaluate.generate), inside a Ray session."""
    found = _shares(recipe, _generated, model, corpus, domain, samples, workers, text)
    return [said for share in found for said in share]


def perplexities(recipe: Recipe, models: Sequence[Contender], text: str) -> list[float]:
    """The perplexity of a plain text by each language model, inside a Ray session."""
    remote = ray.remote(_perplexity).options(
        num_cpus=recipe.train.cpus_per_worker, num_gpus=recipe.train.gpus_per_worker
    )
    return fetch([remote.remote(recipe, model, text) for model in models])


def _shares(
    recipe: Recipe,
    task: Any,
    model: Contender,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    workers: int,
    text: Text | None,
) -> list[Any]:
    """Results of a task on contiguous shares of the samples, in their order."""
    bounds = np.linspace(0, len(samples), workers + 1).astype(int)
    remote = ray.remote(task).options(
        num_cpus=recipe.train.cpus_per_worker, num_gpus=recipe.train.gpus_per_worker
    )
    shares = [samples.slice(start, stop - start) for start, stop in itertools.pairwise(bounds)]
    return fetch([remote.remote(recipe, model, corpus, domain, share, text) for share in shares])


def fetch(references: list[Any]) -> list[Any]:
    """Results of Ray tasks; an error of ours comes without the worker's traceback, which is no news to the user."""
    try:
        return list(ray.get(references))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CprecError):
            raise error.cause from None
        raise


def loaded(recipe: Recipe, model: Contender) -> tuple[Any, Any]:
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
            if storage.exists(extra := storage.join(model.checkpoint, BEHAVIOUR)):
                network = hybrid.load(network, storage.download(extra, directory / BEHAVIOUR))  # type: ignore[assignment]
    if torch.cuda.is_available():
        network = network.to("cuda")  # type: ignore[arg-type]
    return network, tokenizer


def _encoder(
    recipe: Recipe, network: Any, tokenizer: Any, known: Domain, text: Text | None
) -> PromptEncoder:
    """Behaviour tokens are woven in by the tokenizer; text alone is stitched from the object store."""
    if text is None or isinstance(network, Hybrid):
        return encoders_of(tokenizer, recipe.model.max_tokens, network, known.items()).at_evaluation
    return text.encoder()


def _scored(
    recipe: Recipe,
    model: Contender,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    text: Text | None,
) -> NDArray[np.float64]:
    network, tokenizer = loaded(recipe, model)
    known = Domain.of(corpus, domain, recipe.evaluate.split)
    return score(
        network, _encoder(recipe, network, tokenizer, known, text), samples, recipe.evaluate.batch
    )


def _generated(
    recipe: Recipe,
    model: Contender,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    text: Text | None,
) -> list[list[str]]:
    network, tokenizer = loaded(recipe, model)
    known, constrained = (
        Domain.of(corpus, domain, recipe.evaluate.split),
        recipe.evaluate.mode == "constrained",
    )
    encoder = _encoder(recipe, network, tokenizer, known, text)
    return answered(
        network, tokenizer, encoder, samples, known.titles, recipe.evaluate.batch, constrained
    )


def _perplexity(recipe: Recipe, model: Contender, text: str) -> float:
    network, tokenizer = loaded(recipe, model)
    return perplexity(network, tokenizer, text, recipe.model.max_tokens)
