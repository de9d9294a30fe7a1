"""One training of tests/experiments/test_sharing.py, in a process of its own.

    python tests/experiments/sharing_worker.py RECIPE.yaml

Trains the plan of the recipe in the bare loop, then measures hits at 1 on the held-out domain.
"""

import json
import sys
import time
from typing import cast

from transformers import PreTrainedModel

from corpus.store.tables import Corpus
from cprec.config.recipe_file import load_recipe
from cprec.encode.prompt import TABLE1
from cprec.encode.title_tokens import CachedPromptEncoder, tokenise_titles
from cprec.evaluation.candidate_scoring import score_samples
from cprec.evaluation.metrics import compute_ranks, hits
from cprec.model import adapter, backbone
from cprec.train.engine import Engine
from cprec.train.loop import Observer, StepRecord, TrainingStep, train
from tests import bare


class StepTotals(Observer):
    """Tokens and losses of all steps.

    Attributes:
        useful: Tokens of the samples.
        computed: Tokens that were computed; those that samples share count once.
        losses: Loss of each step.
    """

    def __init__(self) -> None:
        self.useful = self.computed = 0
        self.losses: list[float] = []

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        self.useful += record.batch.num_tokens
        self.computed += record.computed_tokens
        self.losses.append(record.loss)


def main(path: str) -> None:
    recipe = load_recipe(path)
    corpus = Corpus.open(recipe.corpus)
    network, tokenizer = backbone.load(recipe.model.base, None, recipe.model.precision)
    title_tokens = tokenise_titles(corpus.read_titles(), tokenizer, TABLE1)
    engine = Engine(
        adapter.attach(network, recipe.model, recipe.seed), recipe.train, recipe.model.precision
    )
    totals = StepTotals()
    steps = list(bare.works(recipe, corpus, title_tokens))
    spec = engine.micro_batch_spec
    began = time.process_time()
    train(engine, steps, totals, spec, title_tokens.eos_token_id, recipe.seed)
    seconds = time.process_time() - began
    # Sorted by user, so that corpora in different orders give the same test samples.
    test = (
        corpus.read_samples(f"downstream/{recipe.data.held_out[0]}", "test")
        .sort_by("user_id")
        .slice(0, recipe.evaluate.max_users)
    )
    engine.model.eval()
    scores = score_samples(
        cast(PreTrainedModel, engine.model),
        CachedPromptEncoder(title_tokens, recipe.model.max_tokens),
        test,
        recipe.evaluate.batch,
    )
    result = {
        "hits": hits(compute_ranks(scores, test["target"].to_numpy()), 1).tolist(),
        "samples": sum(step.worker_batch.global_batch.num_samples for step in steps),
        "useful": totals.useful,
        "computed": totals.computed,
        "seconds": seconds,
        "losses": totals.losses[-20:],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    with bare.alone():
        main(sys.argv[1])
