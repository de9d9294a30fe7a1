"""One training of tests/experiments/test_sharing.py in a process of its own: the demo's plan in the bare loop, then HR@1 on the held-out domain.

python tests/experiments/sharing_worker.py RECIPE.yaml
"""

import json
import sys
import time
from typing import cast

from transformers import PreTrainedModel

from corpus.store.tables import Corpus
from cprec.config.cli import load
from cprec.encode.title_tokens import Stitcher, tokenise
from cprec.evaluate.metrics import hits, ranks
from cprec.evaluate.rank import score
from cprec.model import adapter, backbone
from cprec.train.engine import Engine, cut_of
from cprec.train.loop import Observer, StepRecord, Work, train
from tests import bare


class Counts(Observer):
    """Tokens of all steps: of samples, and computed; and the losses."""

    def __init__(self) -> None:
        self.useful = self.computed = 0
        self.losses: list[float] = []

    def stepped(self, record: StepRecord, work: Work, engine: Engine) -> None:
        self.useful += record.batch.tokens
        self.computed += record.computed
        self.losses.append(record.loss)


def main(path: str) -> None:
    recipe = load(path)
    corpus = Corpus.open(recipe.corpus)
    network, tokenizer = backbone.load(recipe.model.base, None, recipe.model.precision)
    words = tokenise(corpus.titles(), tokenizer)
    engine = Engine(
        adapter.attach(network, recipe.model, recipe.seed), recipe.train, recipe.model.precision
    )
    counts, todo = Counts(), list(bare.works(recipe, corpus, words))
    began = time.process_time()
    train(engine, todo, counts, cut_of(recipe.train), words.end, recipe.seed)
    seconds = time.process_time() - began
    # In the order of users, which is the same in every corpus of the same behaviours.
    test = (
        corpus.samples(f"downstream/{recipe.data.held_out[0]}", "test")
        .sort_by("user_id")
        .slice(0, recipe.evaluate.max_users)
    )
    engine.model.eval()
    scores = score(
        cast(PreTrainedModel, engine.model),
        Stitcher(words, recipe.model.max_tokens),
        test,
        recipe.evaluate.batch,
    )
    found = hits(ranks(scores, test["target"].to_numpy()), 1).tolist()
    samples = sum(work.share.batch.samples for work in todo)
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
