"""Looks for prompts that are too long, before anything is trained."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from corpus.store.tables import Stream, read_rows
from cprec.encode.text_tasks import ObjectiveEncoder
from cprec.encode.text_windows import without_windows
from cprec.encode.title_tokens import CachedPromptEncoder
from cprec.encode.tokens import too_long_error
from cprec.schedule.plan import Plan
from cprec.stream.row_encoder import RowEncoder
from cprec.stream.segments import Streams, read_plan_rows

CHECKED_SAMPLES = 1 << 17
"""Samples that are looked at, at most: some seconds, where days are at stake."""
CHUNK_SAMPLES = 1 << 13


def require_prompts_fit(encoder: RowEncoder, plan: Plan, streams: Streams, start: int) -> None:
    """Checks that the next samples of a plan fit into `model.max_tokens` with shortest histories.

    Otherwise a run would end in the middle, at the first one that does not. Where the tokenizer has
    to be called on whole prompts, none is looked at, since that takes too long.

    Args:
        encoder: Encoder of the samples.
        plan: The plan.
        streams: Streams of the corpus.
        start: Position in the plan from which samples are looked at.

    Raises:
        DataError: A prompt does not fit.
    """
    _require_rows_fit(encoder, _iter_plan_rows(plan, streams, start))


def require_streams_fit(encoder: RowEncoder, streams: Iterable[Stream]) -> None:
    """Checks that the first samples of streams fit, as `require_prompts_fit` does for a plan's.

    Args:
        encoder: Encoder of the samples, with the titles of their items.
        streams: Streams that are to join a plan.

    Raises:
        DataError: A prompt does not fit.
    """
    _require_rows_fit(encoder, _iter_stream_rows(streams))


def _iter_plan_rows(plan: Plan, streams: Streams, start: int) -> Iterator[pa.Table]:
    stop = min(plan.total_samples, start + CHECKED_SAMPLES)
    for era in plan.eras:
        for first in range(max(era.start, start), min(era.stop, stop), CHUNK_SAMPLES):
            yield read_plan_rows(era, streams, first, min(first + CHUNK_SAMPLES, era.stop, stop))


def _iter_stream_rows(streams: Iterable[Stream]) -> Iterator[pa.Table]:
    left = CHECKED_SAMPLES
    for stream in streams:
        rows = min(stream.rows, left)
        left -= rows
        for first in range(0, rows, CHUNK_SAMPLES):
            yield read_rows(stream, first, min(first + CHUNK_SAMPLES, rows))


def _require_rows_fit(encoder: RowEncoder, tables: Iterable[pa.Table]) -> None:
    """Checks that the prompts of corpus rows fit; raises DataError if one does not."""
    prompts = encoder.load_prompt_encoder()
    if not isinstance(prompts, CachedPromptEncoder):
        return
    tasks = ObjectiveEncoder(prompts, encoder.objectives, encoder.max_tokens)
    num_too_long = longest = 0
    for table in tables:
        rows = without_windows(table)
        lengths = prompts.shortest_lengths(rows)
        if encoder.objectives:
            for row, length in tasks.shortest_task_lengths(rows).items():
                lengths[row] = length
        num_too_long += int((lengths > encoder.max_tokens).sum())
        longest = max(longest, int(lengths.max(initial=0)))
    if num_too_long:
        raise too_long_error(
            f"the longest of {num_too_long:,} prompts that are too long",
            longest,
            encoder.max_tokens,
            "with the shortest history" if encoder.objectives else "without a history",
        )
