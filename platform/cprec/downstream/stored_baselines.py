"""A domain's SASRec and GRU4Rec: trained once for a corpus version and its settings, kept beside the runs.

<storage>/baselines/<domain>/<name>-<digest>/weights.safetensors
<storage>/baselines/<domain>/<name>-<digest>/fitted.json          written last
"""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save

from cluster.storage import absolute_uri, exists, join, read_bytes, write_bytes, write_text
from corpus.store.tables import Corpus
from cprec.baselines import training
from cprec.baselines.recommender import Recommender
from cprec.baselines.sequences import training_sequences
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import restore_old_keys
from cprec.downstream.domain import Domain, select_whole_users, sort_by_id
from cprec.evaluate.metrics import compute_ranks, hits

WEIGHTS, FIT_RESULT = "weights.safetensors", "fitted.json"


def baseline_uri(recipe: Recipe, corpus: Corpus, domain: str, name: str, seed: int) -> str:
    """Where a baseline lives: equal data, settings and seed, equal place."""
    identity = [
        corpus.commits[0].metadata["fingerprint"],
        corpus.version,
        restore_old_keys("baseline", recipe.baseline.model_dump(exclude={"seeds"})),
        recipe.finetune.max_samples,
        recipe.finetune.validation_users,
        seed,
    ]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return join(absolute_uri(recipe.storage), "baselines", domain, f"{name}-{digest}")


def ensure_trained(recipe: Recipe, corpus: Corpus, domain_name: str, name: str, seed: int) -> str:
    """The URI of a baseline's weights; it is trained if it is not there, on the training split that fine-tuning has too (`finetune.max_samples`)."""
    where = baseline_uri(recipe, corpus, domain_name, name, seed)
    if not exists(join(where, FIT_RESULT)):
        domain = Domain.from_corpus(corpus, domain_name)
        sequences, validation = _read_training_data(recipe, corpus, domain)
        numbered = [(domain.to_local_numbers(np.array(s)) + 1).tolist() for s in sequences]
        longest = max(len(h) for h in validation["history"].to_pylist())
        network = _build_network(recipe, name, len(domain.item_indices), longest, seed)
        scored = sort_by_id(validation, recipe.finetune.validation_users)
        target = scored["target"].to_numpy()

        def measure(now: Recommender) -> float:
            return float(hits(compute_ranks(_score_samples(now, domain, scored), target), 1).mean())

        fitted = training.fit_network(network, numbered, recipe.baseline, seed, measure)
        write_bytes(
            join(where, WEIGHTS), save({n: t.contiguous() for n, t in network.state_dict().items()})
        )
        write_text(
            join(where, FIT_RESULT),
            json.dumps({**asdict(fitted), "length": longest, "sequences": len(numbered)}, indent=1),
        )
    return join(where, WEIGHTS)


def _read_training_data(
    recipe: Recipe, corpus: Corpus, domain: Domain
) -> tuple[list[list[int]], pa.Table]:
    """The training sequences (item indices) and all validation samples. Under `finetune.max_samples`, the sequences of the users that it keeps."""
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
    """Scores [n, candidates] of a baseline, which is trained first if it is not there."""
    weights = ensure_trained(recipe, corpus, domain_name, name, seed)
    domain = Domain.from_corpus(corpus, domain_name)
    longest = json.loads(
        read_bytes(join(baseline_uri(recipe, corpus, domain_name, name, seed), FIT_RESULT))
    )["length"]
    network = _build_network(recipe, name, len(domain.item_indices), longest, seed)
    network.load_state_dict(load(read_bytes(weights)))
    return _score_samples(network, domain, samples)


def _build_network(recipe: Recipe, name: str, items: int, length: int, seed: int) -> Recommender:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return training.build_network(name, items, length, recipe.baseline)


def _score_samples(network: Recommender, domain: Domain, samples: pa.Table) -> NDArray[np.float64]:
    histories = [
        (domain.to_local_numbers(np.array(history)) + 1).tolist()
        for history in samples["history"].to_pylist()
    ]
    candidates = domain.to_local_numbers(np.array(samples["candidates"].to_pylist())) + 1
    return training.score_candidates(network, histories, candidates)
