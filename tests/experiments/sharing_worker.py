"""One training of tests/experiments/test_sharing.py in a process of its own: the demo's plan in the bare loop, then HR@1 on the held-out domain.

python tests/experiments/sharing_worker.py RECIPE.yaml
"""

import json
import sys
import time
from typing import cast

from transformers import PreTrainedModel

from corpus.store.tables import Corpus
from cprec.config.recipe_file import load_recipe
from cprec.encode.title_tokens import CachedPromptEncoder, tokenise_titles
from cprec.evaluate.candidate_scoring import score_samples
from cprec.evaluate.metrics import compute_ranks, hits
from cprec.model import adapter, backbone
from cprec.train.engine import Engine, micro_batch_spec
from cprec.train.loop import Observer, StepRecord, TrainingStep, train
from tests import bare


class Counts(Observer):
    """Tokens of all steps: of samples, and computed; and the losses."""

    def __init__(self) -> None:
        self.useful = self.computed = 0
        self.losses: list[float] = []

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        self.useful += record.batch.token_count
        self.computed += record.computed_tokens
        self.losses.append(record.loss)


def main(path: str) -> None:
    recipe = load_recipe(path)
    corpus = Corpus.open(recipe.corpus)
    network, tokenizer = backbone.load(recipe.model.base, None, recipe.model.precision)
    words = tokenise_titles(corpus.read_titles(), tokenizer)
    engine = Engine(
        adapter.attach(network, recipe.model, recipe.seed), recipe.train, recipe.model.precision
    )
    counts, todo = Counts(), list(bare.works(recipe, corpus, words))
    began = time.process_time()
    train(engine, todo, counts, micro_batch_spec(recipe.train), words.eos_token_id, recipe.seed)
    seconds = time.process_time() - began
    # In the order of users, which is the same in every corpus of the same behaviours.
    test = (
        corpus.read_samples(f"downstream/{recipe.data.held_out[0]}", "test")
        .sort_by("user_id")
        .slice(0, recipe.evaluate.max_users)
    )
    engine.model.eval()
    scores = score_samples(
        cast(PreTrainedModel, engine.model),
        CachedPromptEncoder(words, recipe.model.max_tokens),
        test,
        recipe.evaluate.batch,
    )
    found = hits(compute_ranks(scores, test["target"].to_numpy()), 1).tolist()
    samples = sum(work.worker_batch.global_batch.sample_count for work in todo)
    seen = {
        "hits": found,
        "samples": samples,
        "useful": counts.useful,
        "computed": counts.computed,
        "seconds": seconds,
        "losses": counts.losses[-20:],
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    with bare.alone():
        main(sys.argv[1])
