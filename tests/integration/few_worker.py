"""The trainings of test_few_interactions.py, one after the other in a process of their own, without Ray:

    python -m tests.integration.few_worker RECIPE.yaml SEEDS RATE-OF-CPREC RATE-OF-LLARA

Prints, as JSON, the base, the pre-trained checkpoint, and the hits at 1 of each model's seeds on the held-out domain's test samples.
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
from cprec.downstream import stored_baselines, trial
from cprec.downstream.domain import Domain, sort_by_id
from cprec.downstream.scoring import EvaluatedModel, load_model
from cprec.downstream.trial import Trial, build_encoders
from cprec.encode.title_tokens import tokenise_titles
from cprec.evaluate.candidate_scoring import score_samples
from cprec.evaluate.metrics import compute_ranks, hits
from cprec.model import adapter, backbone
from cprec.model import base_uri as bases
from cprec.runs import checkpoint, run_plan
from cprec.schedule.ledger import Ledger
from cprec.train.engine import Engine, micro_batch_spec
from cprec.train.loop import Observer, StepRecord, TrainingStep, train
from tests import bare


class Counted(Observer):
    """Keeps the ledger, for the checkpoint."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        """Count the step."""
        self.ledger = self.ledger.add_step(record.batch.sample_count, record.batch.ids_digest)


def pretrained(recipe: Recipe, corpus: Corpus, base: str, run: str) -> str:
    """The URI of the checkpoint that pre-training makes of the base; its adapter is all that is kept."""
    with bare.alone(), tempfile.TemporaryDirectory() as folder:
        network, tokenizer = backbone.load(base, None, recipe.model.precision)
        words = tokenise_titles(corpus.read_titles(), tokenizer)
        engine = Engine(
            adapter.attach(network, recipe.model, recipe.seed), recipe.train, recipe.model.precision
        )
        seen = Counted(Ledger(run_plan.create_run_plan(recipe, corpus).plan))
        train(
            engine,
            bare.works(recipe, corpus, words),
            seen,
            micro_batch_spec(recipe.train),
            words.eos_token_id,
            recipe.seed,
        )
        adapter.save(
            engine.model,
            engine.gather_state().weights,
            Path(folder) / checkpoint.ADAPTER,
            base,
            None,
        )
        uri = checkpoint.checkpoint_uri(run, checkpoint.CheckpointName(seen.ledger.samples, 0))
        checkpoint.commit(Path(folder), uri, seen.ledger)
        engine.close()
    return uri


def tuned(recipe: Recipe, one: Trial, domain: Domain, samples: pa.Table) -> list[float]:
    """Train a trial and return the hits at 1 of its best epoch."""
    with bare.alone():
        trial.run_trial(one, lambda epoch: None)
    ended = trial.find_result(one.uri)
    assert ended is not None
    return hits_at_1(recipe, domain, one.base, ended.checkpoint, samples)


def hits_at_1(
    recipe: Recipe, domain: Domain, base: str, uri: str, samples: pa.Table
) -> list[float]:
    """Of a language model's checkpoint."""
    network, tokenizer = load_model(recipe, EvaluatedModel("", "", base, None, uri))
    encoder = build_encoders(
        tokenizer, recipe.model.max_tokens, network, domain.items_by_index()
    ).for_evaluation
    found = hits(
        compute_ranks(
            score_samples(network, encoder, samples, recipe.evaluate.batch),
            samples["target"].to_numpy(),
        ),
        1,
    )
    return [float(hit) for hit in found]


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """A function's result from a process that is forked for it: DeepSpeed keeps the process group of its first engine for ever, and this process has
    imported what they all need."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def main(path: str, seeds: int, rates: tuple[float, float]) -> None:
    recipe, place = load_recipe(path), Path(path).parent
    corpus = simulate_and_build(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, print)
    name = recipe.data.held_out[0]
    domain, samples = (
        Domain.from_corpus(corpus, name),
        sort_by_id(corpus.read_samples(f"downstream/{name}", "test"), recipe.evaluate.max_users),
    )
    base = apart(bases.resolve_base, recipe, corpus, print)
    start = apart(pretrained, recipe, corpus, base, join(absolute_uri(recipe.storage), recipe.run))
    behaviour = apart(stored_baselines.ensure_trained, recipe, corpus, name, "sasrec", recipe.seed)
    found: dict[str, list[list[float]]] = {"cprec": [], "llara": [], "sasrec": [], "pretrained": []}
    found["pretrained"].append(apart(hits_at_1, recipe, domain, base, start, samples))
    for seed in range(seeds):
        for model, begins, rate in zip(("cprec", "llara"), (start, None), rates, strict=True):
            one = Trial(
                recipe, f"{place}/{model}-{seed}", name, base, begins, behaviour, rate, seed
            )
            found[model].append(apart(tuned, recipe, one, domain, samples))
        scores = apart(
            stored_baselines.score_baseline, recipe, corpus, name, "sasrec", seed, samples
        )
        found["sasrec"].append(
            hits(compute_ranks(scores, samples["target"].to_numpy()), 1).tolist()
        )
    print(json.dumps({"base": base, "checkpoint": start, "hits": found}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), (float(sys.argv[3]), float(sys.argv[4])))
