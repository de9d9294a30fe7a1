"""Streaming of a segment of the plan as one Ray Data execution.

Read tasks read corpus rows, encode them and divide them into worker batches. Each worker iterates
over its own batches, in the order of the plan.

The order rests on three things:

- each read task reads a contiguous piece of the segment;
- `preserve_order` keeps the pieces in sequence;
- each worker batch is one block, and equal blocks go to the workers in turn.

The last depends on Ray's internals. So every worker batch carries its position and rank, and
`read_worker_batches` checks both.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, DataIterator, Datasource, ReadTask
from ray.data.block import BlockMetadata

from cluster.errors import PlatformFault
from corpus.store.tables import Stream, read_rows
from cprec.encode.text_tasks import draw_objectives
from cprec.encode.text_windows import without_windows
from cprec.schedule.controller import Segment
from cprec.schedule.objectives import Objectives
from cprec.schedule.plan import Era, Plan, permute_rows
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
"""Samples that one read task encodes.

They outweigh the cost of starting a task, yet the first batch is ready soon.
"""

Streams = Mapping[tuple[str, int], Stream]
"""Streams of a corpus by source and corpus version."""


def configure_ray_data() -> None:
    """Sets the options of Ray Data that ordered streams need.

    They hold only in the calling process, so the process that starts segments has to call this.
    """
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def stream_segment(
    segment: Segment, streams: Streams, row_encoder: RowEncoder, world_size: int
) -> list[DataIterator]:
    """Starts streaming a segment.

    Args:
        segment: The segment.
        streams: Streams of the corpus.
        row_encoder: Encoder of its rows.
        world_size: Number of workers.

    Returns:
        An iterator over worker batches for each worker, to be passed to `read_worker_batches`.
    """
    source = SegmentDatasource(segment, streams, row_encoder, world_size)
    # Else Ray Data divides what a task reads into more blocks than there are tasks.
    dataset = ray.data.read_datasource(source, override_num_blocks=source.task_count())
    # A worker batch is one block, since no row fits into a byte. A repartition would do the same in
    # further tasks, for which each segment would start processes.
    dataset.context.target_max_block_size = 1
    return list(dataset.streaming_split(world_size, equal=True))


def read_worker_batches(
    iterator: DataIterator, segment: Segment, rank: int
) -> Iterator[WorkerBatch]:
    """Yields one worker's batches of a segment.

    Args:
        iterator: The worker's iterator from `stream_segment`.
        segment: The segment.
        rank: The worker.

    Raises:
        PlatformFault: A batch is not the one that the plan has at its place, or one is missing.
    """
    blocks = cast(
        Iterator[pa.Table],
        iter(iterator.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2)),
    )
    rows = (unbox_row(block, i) for block in blocks for i in range(block.num_rows))
    for start, stop in segment.global_batches():
        row = next(rows, None)
        if row is None or (row["start"], row["stop"], row["rank"]) != (start, stop, rank):
            actual = (
                "the end of the stream"
                if row is None
                else f"samples {row['start']}..{row['stop']} of rank {row['rank']}"
            )
            raise PlatformFault(
                f"the stream left the plan: rank {rank} expected samples {start}..{stop}, "
                f"got {actual}"
            )
        yield worker_batch_from_row(row)


class SegmentDatasource(Datasource):
    """Ray Data source of a segment, whose read tasks cover a few whole global batches each."""

    def __init__(
        self, segment: Segment, streams: Streams, row_encoder: RowEncoder, world_size: int
    ) -> None:
        """Sets what to read: see `stream_segment`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._segment = segment
        self._streams = streams
        self._row_encoder = row_encoder
        self._world_size = world_size

    def estimate_inmemory_data_size(self) -> int | None:
        """Returns None: the size is unknown before encoding."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """Returns the read tasks of the segment.

        The arguments are ignored: the number of tasks depends on the segment alone, not on workers
        or CPUs.
        """
        tasks = []
        for task_batches in self._batches_by_task():
            metadata = BlockMetadata(
                num_rows=len(task_batches) * self._world_size,
                size_bytes=None,
                input_files=None,
                exec_stats=None,
            )
            reader = _SegmentReader(
                task_batches, self._segment.era, self._streams, self._row_encoder, self._world_size
            )
            tasks.append(ReadTask(reader, metadata))
        return tasks

    def task_count(self) -> int:
        """Returns the number of read tasks."""
        return len(self._batches_by_task())

    def _batches_by_task(self) -> list[list[tuple[int, int]]]:
        """Returns the positions (start, stop) of the global batches that each task reads."""
        batches = list(self._segment.global_batches())
        per_task = max(SAMPLES_PER_READ_TASK // self._segment.global_batch_size, 1)
        return [batches[first : first + per_task] for first in range(0, len(batches), per_task)]


@dataclass(frozen=True)
class _SegmentReader:
    """Body of one read task: yields the rows of all workers for some global batches.

    Attributes:
        batches: Positions (start, stop) of each global batch; they are contiguous.
        era: The era that holds them.
        streams: Streams of the corpus.
        row_encoder: Encoder of its rows.
        world_size: Number of workers.
    """

    batches: list[tuple[int, int]]
    era: Era
    streams: Streams
    row_encoder: RowEncoder
    world_size: int

    def __call__(self) -> Iterable[pa.Table]:
        start, stop = self.batches[0][0], self.batches[-1][1]
        rows = read_plan_rows(self.era, self.streams, start, stop)
        samples = self.row_encoder.encode_rows(rows)
        ids = rows["sample_id"].to_numpy().view(np.uint64)
        sources = rows["source"].to_pylist()
        worker_rows: list[dict[str, Any]] = []
        for low, high in self.batches:
            batch = slice(low - start, high - start)
            batch_rows = rows.slice(low - start, high - low)
            groups = self.row_encoder.group_rows(batch_rows, samples[batch])
            worker_rows += to_worker_rows(
                low,
                high,
                samples[batch],
                ids[batch],
                sources[batch],
                self.world_size,
                groups,
                self.row_encoder.count_objectives(batch_rows),
            )
        # Either all global batches of a segment have groups, or none has.
        schema = WORKER_BATCH_SCHEMA if groups is None else SHARED_ROW_SCHEMA
        yield pa.Table.from_pylist(worker_rows, schema=schema)


def sample_id_reader(streams: Streams, plan: Plan) -> Callable[[int, int], list[int]]:
    """Returns a function that reads the sample ids (uint64) at positions start .. stop - 1."""

    def read_ids(start: int, stop: int) -> list[int]:
        rows = read_plan_rows(plan.find_era(start), streams, start, stop)
        # Delta has no unsigned integers: the column holds the bits of the ids.
        return [int(sample_id) for sample_id in rows["sample_id"].to_numpy().view("uint64")]

    return read_ids


def objective_counter(
    streams: Streams, plan: Plan, objectives: Objectives
) -> Callable[[int, int], dict[str, int]]:
    """Returns a function that counts the samples of each objective at positions start .. stop - 1.

    Windows of text have none.
    """

    def count(start: int, stop: int) -> dict[str, int]:
        rows = without_windows(read_plan_rows(plan.find_era(start), streams, start, stop))
        return Counter(draw_objectives(rows, objectives))

    return count


def read_plan_rows(era: Era, streams: Streams, start: int, stop: int) -> pa.Table:
    """Reads the corpus rows at positions start..stop of the plan, in the order of the plan.

    Args:
        era: The era that holds the positions.
        streams: Streams of the corpus.
        start: First position.
        stop: Position after the last one.

    Returns:
        The rows, with a column `text` if there are windows of text among them.

    Raises:
        ValueError: The positions are outside of the era.
        CorpusError: A file of the corpus is missing or damaged.
    """
    portion_indices, portion_rows = era.locate_rows(start, stop)
    tables, places = [], []
    for index in np.unique(portion_indices).tolist():
        places_of_portion = np.flatnonzero(portion_indices == index)
        portion = era.all_portions[index]
        stream = streams[portion.source, portion.version]
        table_rows = permute_rows(
            portion_rows[places_of_portion],
            stream.rows,
            era.seed,
            portion.source,
            portion.version,
        )
        # Read runs of neighbouring rows instead of single ones.
        run_starts = np.flatnonzero(np.diff(table_rows) != 1) + 1
        for run in np.split(np.arange(len(table_rows)), run_starts):
            first, last = int(table_rows[run[0]]), int(table_rows[run[-1]])
            tables.append(read_rows(stream, first, last + 1))
            places.append(places_of_portion[run])
    order = pa.array(np.argsort(np.concatenate(places)))
    return pa.concat_tables(tables, promote_options="default").take(order)
