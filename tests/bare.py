"""Pre-training without Ray, for tests of what the method achieves.

One worker in this process trains the whole plan of a recipe in the bare loop.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import torch

from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.encode.title_tokens import CachedPromptEncoder, TitleTokens
from cprec.runs.run_planning import create_run_plan
from cprec.schedule.plan import global_batches
from cprec.stream.segments import read_plan_rows
from cprec.stream.sharing_groups import TokenSharing
from cprec.stream.token_sharing import group_samples
from cprec.stream.worker_rows import (
    SHARED_ROW_SCHEMA,
    WORKER_BATCH_SCHEMA,
    to_worker_rows,
    unbox_row,
    worker_batch_from_row,
)
from cprec.train.device import single_process_group
from cprec.train.loop import TrainingStep


@contextmanager
def alone() -> Iterator[None]:
    """Provides a process group of this process alone, on the CPU and with one thread."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    with single_process_group("gloo"):
        yield


def works(recipe: Recipe, corpus: Corpus, words: TitleTokens) -> Iterator[TrainingStep]:
    """Yields all steps of the recipe's plan for one worker, as the controller would hand them out.

    Args:
        recipe: The recipe.
        corpus: Its corpus.
        words: The titles of the corpus, tokenised.
    """
    plan = create_run_plan(recipe, corpus).plan
    streams = corpus.streams_by_key()
    sharing = TokenSharing(recipe.train.targets_per_pass, recipe.train.shared_candidates)
    for era in plan.eras:
        for start, stop in global_batches(era.start, era.stop, recipe.train.global_batch):
            rows = read_plan_rows(era, streams, start, stop)
            tokens = CachedPromptEncoder(words, recipe.model.max_tokens).encode_samples(rows)
            groups = (
                group_samples(rows, tokens, words, sharing, recipe.model.max_tokens)
                if sharing
                else None
            )
            worker_rows = to_worker_rows(
                start,
                stop,
                tokens,
                rows["sample_id"].to_numpy().view(np.uint64),
                rows["source"].to_pylist(),
                1,
                groups,
            )
            # Through Arrow and back, as a batch travels on Ray.
            block = pa.Table.from_pylist(
                worker_rows, schema=SHARED_ROW_SCHEMA if sharing else WORKER_BATCH_SCHEMA
            )
            yield TrainingStep(
                worker_batch_from_row(unbox_row(block, 0)),
                plan.wsa.lr(start),
                plan.wsa.phase(start),
                plan.wsa.stable_end,
                plan.total_samples,
            )
