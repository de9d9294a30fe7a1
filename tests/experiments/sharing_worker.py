"""One training of tests/experiments/test_sharing.py in a process of its own: the demo's plan in the bare loop, then HR@1 on the held-out domain.

python tests/experiments/sharing_worker.py RECIPE.yaml
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import cast

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from corpus.table import Corpus
from cprec.evaluate.metrics import hits, ranks
from cprec.evaluate.rank import score
from cprec.model import adapter, backbone
from cprec.recipe import Recipe
from cprec.resolve import load
from cprec.schedule.plan import batches
from cprec.stream.segments import SCHEMA, SHARED_SCHEMA, from_row, read_positions, streams_of, to_rows, unboxed
from cprec.stream.sharing import Sharing, lay
from cprec.stream.titles import Stitcher, TitleTokens, tokenise
from cprec.train import trunk
from cprec.train.engine import Engine, cut_of
from cprec.train.loop import Observer, StepRecord, Work, train


class Counts(Observer):
    """Tokens of all steps: of samples, and computed; and the losses."""

    def __init__(self) -> None:
        self.useful = self.computed = 0
        self.losses: list[float] = []

    def stepped(self, record: StepRecord, work: Work, engine: Engine) -> None:
        self.useful += record.batch.tokens
        self.computed += record.computed
        self.losses.append(record.loss)


def works(recipe: Recipe, corpus: Corpus, words: TitleTokens) -> Iterator[Work]:
    """All work of the recipe's plan for one worker, as the controller would hand it out."""
    plan, streams = trunk.begin(recipe, corpus).plan, streams_of(corpus)
    sharing = Sharing(recipe.train.targets_per_pass, recipe.train.shared_candidates)
    for era in plan.eras:
        for start, stop in batches(era.start, era.stop, recipe.train.global_batch):
            rows = read_positions(era, streams, start, stop)
            tokens = Stitcher(words, recipe.model.max_tokens).samples(rows)
            groups = lay(rows, tokens, words, sharing, recipe.model.max_tokens) if sharing else None
            dealt = to_rows(start, stop, tokens, rows["sample_id"].to_numpy().view(np.uint64), rows["source"].to_pylist(), 1, groups)
            block = pa.Table.from_pylist(dealt, schema=SHARED_SCHEMA if sharing else SCHEMA)
            yield Work(from_row(unboxed(block, 0)), plan.wsa.rate(start), plan.wsa.phase(start), plan.wsa.stable_end, plan.samples)


def main(path: str) -> None:
    recipe = load(path)
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}.meeting", rank=0, world_size=1)
    corpus = Corpus.open(recipe.corpus)
    network, tokenizer = backbone.load(recipe.model.base, None, recipe.model.precision)
    words = tokenise(corpus.titles(), tokenizer)
    engine = Engine(adapter.attach(network, recipe.model, recipe.seed), recipe.train, recipe.model.precision)
    counts, todo = Counts(), list(works(recipe, corpus, words))
    began = time.process_time()
    train(engine, todo, counts, cut_of(recipe.train), words.end, recipe.seed)
    seconds = time.process_time() - began
    # In the order of users, which is the same in every corpus of the same behaviours.
    test = corpus.samples(f"downstream/{recipe.data.held_out[0]}", "test").sort_by("user_id").slice(0, recipe.evaluate.max_users)
    engine.model.eval()
    scores = score(cast(PreTrainedModel, engine.model), Stitcher(words, recipe.model.max_tokens), test, recipe.evaluate.batch)
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
    main(sys.argv[1])
