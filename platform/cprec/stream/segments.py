"""A segment of the plan as a Ray Data execution: rows read, tokenised, cut into shares, split to the workers in the plan's order.

The order rests on three things: each read task reads a contiguous piece of the segment; `preserve_order` keeps the pieces in sequence; one
share is one block, and equal blocks go to the consumers in turn. The last leans on Ray's internals, so every share carries its position and
rank, and `shares` checks both.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, DataIterator, Datasource, ReadTask
from ray.data.block import BlockMetadata

from cluster.errors import PlatformFault
from corpus.store.tables import Corpus, Stream, read_rows
from cprec.schedule.controller import Segment
from cprec.schedule.plan import Era, permute_rows
from cprec.stream.row_encoder import RowEncoder
from cprec.stream.worker_batches import WorkerBatch
from cprec.stream.worker_rows import (
    SHARED_ROW_SCHEMA,
    WORKER_BATCH_SCHEMA,
    to_worker_rows,
    unbox_row,
    worker_batch_from_row,
)

SAMPLES_PER_READ_TASK = 512
"""Samples that one read task renders: enough to outweigh its start, few enough that the first share comes soon."""

Streams = Mapping[tuple[str, int], Stream]


def streams_by_key(corpus: Corpus) -> Streams:
    """The training streams of a corpus by (source, version)."""
    return {(s.source, s.version): s for s in corpus.streams()}


def configure_ray_data() -> None:
    """Settings of Ray Data for ordered streams; they hold in the calling process alone, so the controller's actor calls this itself."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def stream_segment(
    segment: Segment, streams: Streams, row_encoder: RowEncoder, world_size: int
) -> list[DataIterator]:
    """Start a segment: one iterator of shares for each worker."""
    source = SegmentDatasource(segment, streams, row_encoder, world_size)
    dataset = ray.data.read_datasource(source).repartition(target_num_rows_per_block=1, strict=True)
    return list(dataset.streaming_split(world_size, equal=True))


def read_worker_batches(
    iterator: DataIterator, segment: Segment, rank: int
) -> Iterator[WorkerBatch]:
    """One worker's shares of a segment. Raises PlatformFault when a share is not the one that the plan puts here."""
    blocks = cast(
        Iterator[pa.Table],
        iter(iterator.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2)),
    )
    rows = (unbox_row(block, i) for block in blocks for i in range(block.num_rows))
    for start, stop in segment.global_batches():
        row = next(rows, None)
        if row is None or (row["start"], row["stop"], row["rank"]) != (start, stop, rank):
            seen = (
                "the end of the stream"
                if row is None
                else f"samples {row['start']}..{row['stop']} of rank {row['rank']}"
            )
            raise PlatformFault(
                f"the stream left the plan: rank {rank} expected samples {start}..{stop}, got {seen}"
            )
        yield worker_batch_from_row(row)


class SegmentDatasource(Datasource):
    """Read tasks over a segment, each a few whole global batches."""

    def __init__(
        self, segment: Segment, streams: Streams, row_encoder: RowEncoder, world_size: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._segment, self._streams, self._row_encoder, self._world_size = (
            segment,
            streams,
            row_encoder,
            world_size,
        )

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before tokenising."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """As many tasks as the segment needs; the number of workers and CPUs plays no part."""
        batches = list(self._segment.global_batches())
        size = max(SAMPLES_PER_READ_TASK // self._segment.global_batch_size, 1)
        tasks = []
        for first in range(0, len(batches), size):
            piece = batches[first : first + size]
            metadata = BlockMetadata(
                num_rows=len(piece) * self._world_size,
                size_bytes=None,
                input_files=None,
                exec_stats=None,
            )
            tasks.append(
                ReadTask(
                    _SegmentReader(
                        piece, self._segment.era, self._streams, self._row_encoder, self._world_size
                    ),
                    metadata,
                )
            )
        return tasks


@dataclass(frozen=True)
class _SegmentReader:
    """The body of one read task."""

    batches: list[tuple[int, int]]
    era: Era
    streams: Streams
    row_encoder: RowEncoder
    world_size: int

    def __call__(self) -> Iterable[pa.Table]:
        start, stop = self.batches[0][0], self.batches[-1][1]
        rows = read_plan_rows(self.era, self.streams, start, stop)
        tokens = self.row_encoder.encode_rows(rows)
        ids = rows["sample_id"].to_numpy().view(np.uint64)
        sources = rows["source"].to_pylist()
        out: list[dict[str, Any]] = []
        for low, high in self.batches:
            piece = slice(low - start, high - start)
            groups = self.row_encoder.group_rows(rows.slice(low - start, high - low), tokens[piece])
            out += to_worker_rows(
                low, high, tokens[piece], ids[piece], sources[piece], self.world_size, groups
            )
        yield pa.Table.from_pylist(
            out, schema=WORKER_BATCH_SCHEMA if groups is None else SHARED_ROW_SCHEMA
        )


def read_plan_rows(era: Era, streams: Streams, start: int, stop: int) -> pa.Table:
    """The corpus rows at positions start..stop of the plan, in its order, with a column `text` if there are windows of text among them.

    Reads runs of neighbouring rows, not single ones.
    """
    portion, row = era.locate_rows(start, stop)
    tables, places = [], []
    for index in np.unique(portion).tolist():
        at = np.flatnonzero(portion == index)
        key = (era.all_portions[index].source, era.all_portions[index].version)
        stream = streams[key]
        wanted = permute_rows(row[at], stream.rows, era.seed, *key)
        for run in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(wanted) != 1) + 1):
            tables.append(read_rows(stream, int(wanted[run[0]]), int(wanted[run[-1]]) + 1))
            places.append(at[run])
    return pa.concat_tables(tables, promote_options="default").take(
        pa.array(np.argsort(np.concatenate(places)))
    )
