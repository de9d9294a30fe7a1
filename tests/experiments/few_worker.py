"""Trains the models of test_few_interactions.py one after the other, without Ray:

    python -m tests.experiments.few_worker RECIPE.yaml SEEDS CPREC-LR LLARA-LR

Prints, as JSON, the base, the pre-trained checkpoint, and each model's hits at 1 for every seed, on
the test samples of the held-out domain.
"""

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.storage import absolute_uri, join
from corpus.build import simulate_and_build
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import load_recipe
from cprec.downstream import stored_baselines
from cprec.downstream.domain import Domain, sort_by_id
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.hybrid import build_encoders
from cprec.downstream.scoring import load_model
from cprec.downstream.trial import Trial, run_trial
from cprec.downstream.trial_records import find_result
from cprec.encode.prompt import TABLE1
from cprec.encode.title_tokens import tokenise_titles
from cprec.evaluation.candidate_scoring import score_samples
from cprec.evaluation.metrics import compute_ranks, hits
from cprec.model import adapter, backbone
from cprec.model import base_uri as bases
from cprec.runs import checkpoint
from cprec.runs.run_planning import create_run_plan
from cprec.schedule.ledger import Ledger
from cprec.train.engine import Engine
from cprec.train.loop import Observer, StepRecord, TrainingStep, train
from tests import bare


class LedgerObserver(Observer):
    """Keeps the ledger up to date, for the checkpoint."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        """Counts the step."""
        self.ledger = self.ledger.add_step(record.batch.num_samples, record.batch.ids_digest)


def pretrain(recipe: Recipe, corpus: Corpus, base: str, run: str) -> str:
    """Pre-trains the base and returns the URI of a checkpoint that holds only the adapter."""
    with bare.alone(), tempfile.TemporaryDirectory() as folder:
        network, tokenizer = backbone.load(base, None, recipe.model.precision)
        words = tokenise_titles(corpus.read_titles(), tokenizer, TABLE1)
        engine = Engine(
            adapter.attach(network, recipe.model, recipe.seed), recipe.train, recipe.model.precision
        )
        observer = LedgerObserver(Ledger(create_run_plan(recipe, corpus).plan))
        train(
            engine,
            bare.works(recipe, corpus, words),
            observer,
            engine.micro_batch_spec,
            words.eos_token_id,
            recipe.seed,
        )
        adapter.save(
            engine.model,
            engine.gather_state().weights,
            Path(folder) / checkpoint.ADAPTER,
            base,
            None,
            TABLE1,
        )
        name = checkpoint.CheckpointName(observer.ledger.samples, 0)
        uri = checkpoint.checkpoint_uri(run, name)
        checkpoint.commit(Path(folder), uri, observer.ledger)
        engine.close()
    return uri


def tune(recipe: Recipe, one: Trial, domain: Domain, samples: pa.Table) -> list[float]:
    """Trains a trial and returns the hits at 1 of its best epoch."""
    with bare.alone():
        run_trial(one, lambda epoch: None)
    result = find_result(one.uri)
    assert result is not None
    return hits_at_1(recipe, domain, one.base, result.checkpoint, samples)


def hits_at_1(
    recipe: Recipe, domain: Domain, base: str, uri: str, samples: pa.Table
) -> list[float]:
    """Returns each sample's hit at 1 of a language model's checkpoint."""
    network, tokenizer = load_model(recipe, EvaluatedModel("", "", base, None, uri))
    encoder = build_encoders(
        tokenizer, recipe.model.max_tokens, network, domain.items_by_index(), TABLE1
    ).for_evaluation
    scores = score_samples(network, encoder, samples, recipe.evaluate.batch)
    return [float(hit) for hit in hits(compute_ranks(scores, samples["target"].to_numpy()), 1)]


def run_forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns a function's result from a process that is forked for it.

    DeepSpeed keeps the process group of its first engine forever, so each engine needs a process of
    its own. A fork has the imports of this process already.
    """
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def main(path: str, seeds: int, lrs: tuple[float, float]) -> None:
    recipe = load_recipe(path)
    folder = Path(path).parent
    corpus = simulate_and_build(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, print)
    name = recipe.data.held_out[0]
    domain = Domain.from_corpus(corpus, name)
    samples = sort_by_id(corpus.read_samples(domain.source, "test"), recipe.evaluate.max_users)
    base = run_forked(bases.resolve_base, recipe, corpus, print)
    start = run_forked(
        pretrain, recipe, corpus, base, join(absolute_uri(recipe.storage), recipe.run)
    )
    behaviour = run_forked(
        stored_baselines.ensure_trained, recipe, corpus, name, "sasrec", recipe.seed
    )
    hits_by_model: dict[str, list[list[float]]] = {
        "cprec": [],
        "llara": [],
        "sasrec": [],
        "pretrained": [],
    }
    hits_by_model["pretrained"].append(run_forked(hits_at_1, recipe, domain, base, start, samples))
    for seed in range(seeds):
        for model, start_checkpoint, lr in zip(("cprec", "llara"), (start, None), lrs, strict=True):
            one = Trial(
                recipe,
                f"{folder}/{model}-{seed}",
                name,
                base,
                start_checkpoint,
                behaviour,
                lr,
                seed,
                TABLE1,
            )
            hits_by_model[model].append(run_forked(tune, recipe, one, domain, samples))
        scores = run_forked(
            stored_baselines.score_baseline, recipe, corpus, name, "sasrec", seed, samples
        )
        hits_by_model["sasrec"].append(
            hits(compute_ranks(scores, samples["target"].to_numpy()), 1).tolist()
        )
    print(json.dumps({"base": base, "checkpoint": start, "hits": hits_by_model}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), (float(sys.argv[3]), float(sys.argv[4])))
