"""Trains a domain's SASRec and GRU4Rec once per corpus version and settings, and stores them.

<storage>/baselines/<domain>/<name>-<digest>/weights.safetensors
<storage>/baselines/<domain>/<name>-<digest>/fitted.json          written last
"""

import hashlib
import json
from dataclasses import asdict, dataclass

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
from cprec.baselines.training import FitResult
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import restore_old_keys
from cprec.downstream.domain import Domain, select_whole_users, sort_by_id
from cprec.evaluation.metrics import compute_ranks, hits

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


def baseline_uri(recipe: Recipe, corpus: Corpus, domain: str, name: str, seed: int) -> str:
    """Returns the folder of a baseline; equal data, settings and seed give the same folder.

    Args:
        recipe: The recipe.
        corpus: The corpus.
        domain: Domain that the baseline is trained on.
        name: `sasrec`, `gru4rec`, or `popularity`, which has no folder but an identity.
        seed: Seed of the training.
    """
    identity = [
        corpus.fingerprint,
        corpus.version,
        restore_old_keys("baseline", recipe.baseline.model_dump(exclude={"seeds"})),
        recipe.finetune.max_samples,
        recipe.finetune.validation_users,
        seed,
    ]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return join(absolute_uri(recipe.storage), "baselines", domain, f"{name}-{digest}")


def ensure_trained(recipe: Recipe, corpus: Corpus, domain_name: str, name: str, seed: int) -> str:
    """Trains a baseline if it is not stored yet.

    It is trained on the samples that fine-tuning is trained on (`finetune.max_samples`).

    Args:
        recipe: The recipe.
        corpus: The corpus.
        domain_name: Domain to train on.
        name: `sasrec` or `gru4rec`.
        seed: Seed of the training.

    Returns:
        The URI of the weights.
    """
    uri = baseline_uri(recipe, corpus, domain_name, name, seed)
    if not exists(join(uri, FIT_RESULT)):
        domain = Domain.from_corpus(corpus, domain_name)
        sequences, validation = _read_training_data(recipe, corpus, domain)
        numbered = [(domain.to_local_numbers(np.array(s)) + 1).tolist() for s in sequences]
        max_history = max(len(h) for h in validation["history"].to_pylist())
        network = _build_network(recipe, name, len(domain.item_indices), max_history, seed)
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
    recipe: Recipe, corpus: Corpus, domain_name: str, name: str, seed: int, samples: pa.Table
) -> NDArray[np.float64]:
    """Scores the candidates of samples with a baseline, which is trained first if necessary.

    Args:
        recipe: The recipe.
        corpus: The corpus.
        domain_name: Domain of the samples.
        name: `sasrec`, `gru4rec` or `popularity`.
        seed: Seed of the baseline's training.
        samples: The samples.

    Returns:
        Scores [n, candidates]; higher is better.
    """
    domain = Domain.from_corpus(corpus, domain_name)
    if name == POPULARITY:
        counts = count_training_purchases(recipe, corpus, domain)
        candidates = np.array(samples["candidates"].to_pylist())
        return counts[domain.to_local_numbers(candidates)].astype(np.float64)
    ensure_trained(recipe, corpus, domain_name, name, seed)
    return _score_samples(load_trained(recipe, corpus, domain, name, seed), domain, samples)


def load_trained(
    recipe: Recipe, corpus: Corpus, domain: Domain, name: str, seed: int
) -> Recommender:
    """Loads a baseline that `ensure_trained` stored, in evaluation mode."""
    uri = baseline_uri(recipe, corpus, domain.name, name, seed)
    max_history = json.loads(read_bytes(join(uri, FIT_RESULT)))["length"]
    network = _build_network(recipe, name, len(domain.item_indices), max_history, seed)
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
        if exists(join(baseline_uri(recipe, earlier, domain, name, seed), FIT_RESULT)):
            return earlier
    return None


def count_training_purchases(recipe: Recipe, corpus: Corpus, domain: Domain) -> NDArray[np.int64]:
    """Counts how often each item of a domain was bought in what a baseline is trained on [items].

    The validation and the test split are not counted.
    """
    sequences, _ = _read_training_data(recipe, corpus, domain)
    return count_purchases(sequences, domain.item_indices)


def _build_network(
    recipe: Recipe, name: str, item_count: int, max_history: int, seed: int
) -> Recommender:
    """Builds a baseline with fresh weights, and leaves torch's random generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return training.build_network(name, item_count, max_history, recipe.baseline)


def _score_samples(network: Recommender, domain: Domain, samples: pa.Table) -> NDArray[np.float64]:
    """Scores the candidates of samples with a network, whose item numbers start at 1."""
    histories = [
        (domain.to_local_numbers(np.array(history)) + 1).tolist()
        for history in samples["history"].to_pylist()
    ]
    candidates = domain.to_local_numbers(np.array(samples["candidates"].to_pylist())) + 1
    return training.score_candidates(network, histories, candidates)
