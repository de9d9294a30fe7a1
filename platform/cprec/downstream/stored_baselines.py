"""Trains a domain's baselines once per corpus version and settings, and stores them.

<storage>/baselines/<domain>/<name>-<digest>/weights.safetensors
<storage>/baselines/<domain>/<name>-<digest>/fitted.json          written last
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save

from cluster.storage import absolute_uri, exists, join, read_bytes, write_bytes, write_text
from corpus.store.tables import Corpus
from cprec.baselines import training
from cprec.baselines.popularity import POPULARITY, count_purchases
from cprec.baselines.recommender import Recommender
from cprec.baselines.sequences import training_sequences
from cprec.baselines.training import FitResult, ItemText
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import restore_old_keys
from cprec.downstream.domain import Domain, select_whole_users, sort_by_id
from cprec.evaluation.metrics import compute_ranks, hits
from cprec.runs.record_files import read_json_object

WEIGHTS = "weights.safetensors"
"""File that holds a baseline's weights."""
FIT_RESULT = "fitted.json"
"""File that holds the result of a baseline's training; a baseline without it is trained again."""


@dataclass(frozen=True)
class StoredFit(FitResult):
    """The content of fitted.json.

    Attributes:
        length: Places of a sequence, which the network was built for.
        sequences: Users' sequences that it was trained on.
    """

    length: int
    sequences: int


def baseline_uri(
    recipe: Recipe,
    corpus: Corpus,
    domain: str,
    name: str,
    seed: int,
    text: Mapping[str, Any] | None = None,
) -> str:
    """Returns the folder of a baseline; equal data, settings and seed give the same folder.

    Args:
        recipe: The recipe.
        corpus: The corpus.
        domain: Domain that the baseline is trained on.
        name: One of `BASELINE_NAMES`, or `popularity`, which has no folder but an identity.
        seed: Seed of the training.
        text: Identity of the vectors of the items' text; None for a baseline that reads none.
    """
    settings = recipe.baseline.model_dump(include=recipe.baseline.keys_of(name))
    identity = [
        corpus.fingerprint,
        corpus.version,
        restore_old_keys("baseline", settings),
        recipe.finetune.max_samples,
        recipe.finetune.validation_users,
        seed,
        *([dict(text)] if text is not None else []),
    ]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return join(absolute_uri(recipe.storage), "baselines", domain, f"{name}-{digest}")


def is_trained(
    recipe: Recipe,
    corpus: Corpus,
    domain: str,
    name: str,
    seed: int,
    text: Mapping[str, Any] | None = None,
) -> bool:
    """Returns whether a baseline is stored. The arguments are those of `baseline_uri`."""
    return exists(join(baseline_uri(recipe, corpus, domain, name, seed, text), FIT_RESULT))


def ensure_trained(
    recipe: Recipe,
    corpus: Corpus,
    domain_name: str,
    name: str,
    seed: int,
    text: ItemText | None = None,
) -> str:
    """Trains a baseline if it is not stored yet.

    It is trained on the samples that fine-tuning is trained on (`finetune.max_samples`).

    Args:
        recipe: The recipe.
        corpus: The corpus.
        domain_name: Domain to train on.
        name: One of `BASELINE_NAMES`.
        seed: Seed of the training.
        text: The items' text, for a baseline that reads it.

    Returns:
        The URI of the weights.
    """
    uri = baseline_uri(recipe, corpus, domain_name, name, seed, text.identity if text else None)
    if not exists(join(uri, FIT_RESULT)):
        domain = Domain.from_corpus(corpus, domain_name)
        sequences, validation = _read_training_data(recipe, corpus, domain)
        numbered = [(domain.to_local_numbers(np.array(s)) + 1).tolist() for s in sequences]
        max_history = max(len(h) for h in validation["history"].to_pylist())
        network = _build_network(recipe, name, domain, max_history, seed, text)
        measured = sort_by_id(validation, recipe.finetune.validation_users)
        targets = measured["target"].to_numpy()

        def measure(current: Recommender) -> float:
            scores = _score_samples(current, domain, measured)
            return float(hits(compute_ranks(scores, targets), 1).mean())

        result = training.fit_network(network, numbered, recipe.baseline, seed, measure)
        weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        write_bytes(join(uri, WEIGHTS), save(weights))
        stored = StoredFit(**asdict(result), length=max_history, sequences=len(numbered))
        write_text(join(uri, FIT_RESULT), json.dumps(asdict(stored), indent=1))
    return join(uri, WEIGHTS)


def _read_training_data(
    recipe: Recipe, corpus: Corpus, domain: Domain
) -> tuple[list[list[int]], pa.Table]:
    """Reads what a baseline is trained and validated on.

    Returns:
        The training sequences of item indices, and all validation samples of the domain. Under
        `finetune.max_samples` there are only the sequences of the users that fine-tuning keeps.
    """
    train, validation, test = (
        corpus.read_samples(domain.source, split) for split in ("train", "validation", "test")
    )
    capped = select_whole_users(train, recipe.finetune.max_samples)
    tables = (capped, validation, test)
    if len(capped) < len(train):
        users = pc.unique(capped["user_id"])
        tables = (
            capped,
            *(table.filter(pc.is_in(table["user_id"], users)) for table in (validation, test)),
        )
    return training_sequences(*tables), validation


def score_baseline(
    recipe: Recipe,
    corpus: Corpus,
    domain_name: str,
    name: str,
    seed: int,
    samples: pa.Table,
    text: ItemText | None = None,
) -> NDArray[np.float64]:
    """Scores the candidates of samples with a baseline, which is trained first if necessary.

    Args:
        recipe: The recipe.
        corpus: The corpus.
        domain_name: Domain of the samples.
        name: One of `BASELINE_NAMES`, or `popularity`.
        seed: Seed of the baseline's training.
        samples: The samples.
        text: The items' text, for a baseline that reads it.

    Returns:
        Scores [n, candidates]; higher is better.
    """
    domain = Domain.from_corpus(corpus, domain_name)
    if name == POPULARITY:
        counts = count_training_purchases(recipe, corpus, domain)
        candidates = np.array(samples["candidates"].to_pylist())
        return counts[domain.to_local_numbers(candidates)].astype(np.float64)
    ensure_trained(recipe, corpus, domain_name, name, seed, text)
    network = load_trained(recipe, corpus, domain, name, seed, text)
    return _score_samples(network, domain, samples)


def load_trained(
    recipe: Recipe,
    corpus: Corpus,
    domain: Domain,
    name: str,
    seed: int,
    text: ItemText | None = None,
) -> Recommender:
    """Loads a baseline that `ensure_trained` stored, in evaluation mode."""
    uri = baseline_uri(recipe, corpus, domain.name, name, seed, text.identity if text else None)
    max_history = read_json_object(join(uri, FIT_RESULT))["length"]
    network = _build_network(recipe, name, domain, max_history, seed, text)
    network.load_state_dict(load(read_bytes(join(uri, WEIGHTS))))
    return network.eval()


def find_trained_version(
    recipe: Recipe, corpus: Corpus, domain: str, name: str, seed: int
) -> Corpus | None:
    """Finds the newest corpus version, this one or an earlier, for which a baseline is stored.

    A baseline of an earlier version knows the items that the domain had there, which are the first
    ones of the domain now: indices of items never change, and new ones are higher.
    """
    for version in range(corpus.version, -1, -1):
        earlier = Corpus(corpus.uri, version, corpus.commits[: version + 1])
        if is_trained(recipe, earlier, domain, name, seed):
            return earlier
    return None


def count_training_purchases(recipe: Recipe, corpus: Corpus, domain: Domain) -> NDArray[np.int64]:
    """Counts how often each item of a domain was bought in what a baseline is trained on [items].

    The validation and the test split are not counted.
    """
    sequences, _ = _read_training_data(recipe, corpus, domain)
    return count_purchases(sequences, domain.item_indices)


def _build_network(
    recipe: Recipe, name: str, domain: Domain, max_history: int, seed: int, text: ItemText | None
) -> Recommender:
    """Builds a baseline with fresh weights, and leaves torch's random generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return training.build_network(
            name,
            len(domain.item_indices),
            max_history,
            recipe.baseline,
            text.vectors if text else None,
        )


def _score_samples(network: Recommender, domain: Domain, samples: pa.Table) -> NDArray[np.float64]:
    """Scores the candidates of samples with a network, whose item numbers start at 1."""
    histories = [
        (domain.to_local_numbers(np.array(history)) + 1).tolist()
        for history in samples["history"].to_pylist()
    ]
    candidates = domain.to_local_numbers(np.array(samples["candidates"].to_pylist())) + 1
    return training.score_candidates(network, histories, candidates)
