"""Pre-training without Ray, for tests of what the method is worth: the plan of a recipe in the bare loop, all by one worker in this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import torch

from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream.search import group_of_one
from cprec.encode.title_tokens import Stitcher, TitleTokens
from cprec.runs import run_plan
from cprec.schedule.plan import batches
from cprec.stream.segments import (
    SCHEMA,
    SHARED_SCHEMA,
    from_row,
    read_positions,
    streams_of,
    to_rows,
    unboxed,
)
from cprec.stream.token_sharing import Sharing, lay
from cprec.train.loop import Work


@contextmanager
def alone() -> Iterator[None]:
    """A process group of one on the CPU, and one thread."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    with group_of_one("gloo"):
        yield


def works(recipe: Recipe, corpus: Corpus, words: TitleTokens) -> Iterator[Work]:
    """All work of the recipe's plan for one worker, as the controller would hand it out."""
    plan, streams = run_plan.begin(recipe, corpus).plan, streams_of(corpus)
    sharing = Sharing(recipe.train.targets_per_pass, recipe.train.shared_candidates)
    for era in plan.eras:
        for start, stop in batches(era.start, era.stop, recipe.train.global_batch):
            rows = read_positions(era, streams, start, stop)
            tokens = Stitcher(words, recipe.model.max_tokens).samples(rows)
            groups = lay(rows, tokens, words, sharing, recipe.model.max_tokens) if sharing else None
            dealt = to_rows(
                start,
                stop,
                tokens,
                rows["sample_id"].to_numpy().view(np.uint64),
                rows["source"].to_pylist(),
                1,
                groups,
            )
            block = pa.Table.from_pylist(dealt, schema=SHARED_SCHEMA if sharing else SCHEMA)
            yield Work(
                from_row(unboxed(block, 0)),
                plan.wsa.rate(start),
                plan.wsa.phase(start),
                plan.wsa.stable_end,
                plan.samples,
            )
