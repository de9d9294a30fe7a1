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

from cluster.storage import absolute, exists, join, read_bytes, write_bytes, write_text
from corpus.store.tables import Corpus
from cprec.baselines import training
from cprec.baselines.network import Recommender
from cprec.baselines.sequences import training_sequences
from cprec.config.recipe import Recipe
from cprec.downstream.items import Domain, by_id, whole_users
from cprec.evaluate.metrics import hits, ranks

WEIGHTS, FITTED = "weights.safetensors", "fitted.json"


def place(recipe: Recipe, corpus: Corpus, domain: str, name: str, seed: int) -> str:
    """Where a baseline lives: equal data, settings and seed, equal place."""
    identity = [
        corpus.commits[0].metadata["fingerprint"],
        corpus.version,
        recipe.baseline.model_dump(exclude={"seeds"}),
        recipe.finetune.max_samples,
        recipe.finetune.validation_users,
        seed,
    ]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return join(absolute(recipe.storage), "baselines", domain, f"{name}-{digest}")


def prepare(recipe: Recipe, corpus: Corpus, domain_name: str, name: str, seed: int) -> str:
    """The URI of a baseline's weights; it is trained if it is not there, on the training split that fine-tuning has too (`finetune.max_samples`)."""
    where = place(recipe, corpus, domain_name, name, seed)
    if not exists(join(where, FITTED)):
        domain = Domain.of(corpus, domain_name)
        sequences, validation = _data(recipe, corpus, domain)
        numbered = [(domain.numbers(np.array(s)) + 1).tolist() for s in sequences]
        longest = max(len(h) for h in validation["history"].to_pylist())
        network = _network(recipe, name, len(domain.indices), longest, seed)
        scored = by_id(validation, recipe.finetune.validation_users)
        target = scored["target"].to_numpy()

        def measure(now: Recommender) -> float:
            return float(hits(ranks(_scores(now, domain, scored), target), 1).mean())

        fitted = training.fit(network, numbered, recipe.baseline, seed, measure)
        write_bytes(
            join(where, WEIGHTS), save({n: t.contiguous() for n, t in network.state_dict().items()})
        )
        write_text(
            join(where, FITTED),
            json.dumps({**asdict(fitted), "length": longest, "sequences": len(numbered)}, indent=1),
        )
    return join(where, WEIGHTS)


def _data(recipe: Recipe, corpus: Corpus, domain: Domain) -> tuple[list[list[int]], pa.Table]:
    """The training sequences (item indices) and all validation samples. Under `finetune.max_samples`, the sequences of the users that it keeps."""
    train, validation, test = (
        corpus.samples(domain.source, split) for split in ("train", "validation", "test")
    )
    capped = whole_users(train, recipe.finetune.max_samples)
    tables = (capped, validation, test)
    if len(capped) < len(train):
        users = pc.unique(capped["user_id"])
        tables = (
            capped,
            *(table.filter(pc.is_in(table["user_id"], users)) for table in (validation, test)),
        )
    return training_sequences(*tables), validation


def scores(
    recipe: Recipe, corpus: Corpus, domain_name: str, name: str, seed: int, samples: pa.Table
) -> NDArray[np.float64]:
    """Scores [n, candidates] of a baseline, which is trained first if it is not there."""
    weights = prepare(recipe, corpus, domain_name, name, seed)
    domain = Domain.of(corpus, domain_name)
    longest = json.loads(read_bytes(join(place(recipe, corpus, domain_name, name, seed), FITTED)))[
        "length"
    ]
    network = _network(recipe, name, len(domain.indices), longest, seed)
    network.load_state_dict(load(read_bytes(weights)))
    return _scores(network, domain, samples)


def _network(recipe: Recipe, name: str, items: int, length: int, seed: int) -> Recommender:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return training.make(name, items, length, recipe.baseline)


def _scores(network: Recommender, domain: Domain, samples: pa.Table) -> NDArray[np.float64]:
    histories = [
        (domain.numbers(np.array(history)) + 1).tolist()
        for history in samples["history"].to_pylist()
    ]
    candidates = domain.numbers(np.array(samples["candidates"].to_pylist())) + 1
    return training.score(network, histories, candidates)
