"""A segment of the plan as a Ray Data execution: rows read, tokenised, cut into shares, split to the workers in the plan's order.

The order rests on three things: each read task reads a contiguous piece of the segment; `preserve_order` keeps the pieces in sequence; one
share is one block, and equal blocks go to the consumers in turn. The last leans on Ray's internals, so every share carries its position and
rank, and `shares` checks both.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, DataIterator, Datasource, ReadTask
from ray.data.block import BlockMetadata

from cluster.errors import PlatformFault
from corpus.store.tables import Corpus, Stream, read_rows
from cprec.encode import text_windows
from cprec.encode.title_tokens import (
    CachedPromptEncoder,
    TitleTokens,
    UncachedPromptEncoder,
    build_title_encoding,
)
from cprec.encode.tokens import EncodedSample, TitleEncoder, Tokenizer
from cprec.schedule.controller import Segment
from cprec.schedule.ledger import ids_digest
from cprec.schedule.plan import Era, permute_rows
from cprec.stream.token_sharing import NO_SHARING, SharedRow, TokenSharing, group_samples
from cprec.stream.worker_batches import GlobalBatch, WorkerBatch, split_by_tokens

SAMPLES_PER_READ_TASK = 512
"""Samples that one read task renders: enough to outweigh its start, few enough that the first share comes soon."""

Streams = Mapping[tuple[str, int], Stream]


@dataclass(frozen=True)
class RowEncoder:
    """What turns rows into tokens: the longest sample, and in the object store title tokens, or the titles themselves for the fall-back, whose
    tokenizer is that of base and revision. sharing: what samples of training share; nothing in the fall-back."""

    base: str
    revision: str | None
    max_tokens: int
    titles_ref: "ray.ObjectRef[TitleTokens | Sequence[str]]"
    sharing: TokenSharing = NO_SHARING

    @classmethod
    def from_corpus(
        cls,
        corpus: Corpus,
        base: str,
        revision: str | None,
        max_tokens: int,
        earlier: "RowEncoder | None" = None,
        sharing: TokenSharing = NO_SHARING,
    ) -> "RowEncoder":
        """The words of a corpus version, put into the object store once. before: of an earlier version, whose items need not be tokenised again."""
        from cprec.model.backbone import load_tokenizer

        known = None if earlier is None else ray.get(earlier.titles_ref)
        words = build_title_encoding(
            corpus.read_titles(),
            load_tokenizer(base, revision),
            known if isinstance(known, TitleTokens) else None,
        )
        return cls(
            base,
            revision,
            max_tokens,
            ray.put(words.titles if words.title_tokens is None else words.title_tokens),
            sharing,
        )

    def load_prompt_encoder(self) -> CachedPromptEncoder | UncachedPromptEncoder:
        """What a task encodes with. Title tokens need neither tokenizer nor transformers, and are read in place."""
        words = ray.get(self.titles_ref)
        if isinstance(words, TitleTokens):
            return CachedPromptEncoder(words, self.max_tokens)
        return UncachedPromptEncoder(words, TitleEncoder(self._load_tokenizer(), self.max_tokens))

    def encode_rows(self, rows: pa.Table) -> list[EncodedSample]:
        """Tokens of corpus rows, of prompts and windows of text alike."""
        return text_windows.encode_samples(
            rows, self.load_prompt_encoder(), self._load_tokenizer, self.max_tokens
        )

    def _load_tokenizer(self) -> Tokenizer:
        from cprec.model.backbone import load_tokenizer

        return load_tokenizer(self.base, self.revision)

    def group_rows(
        self, rows: pa.Table, samples: Sequence[EncodedSample]
    ) -> list[SharedRow] | None:
        """The samples of a global batch in groups that share tokens; None where samples share nothing. tokens: of the rows, from `encoder`."""
        words = ray.get(self.titles_ref) if self.sharing else None
        return (
            group_samples(rows, samples, words, self.sharing, self.max_tokens)
            if isinstance(words, TitleTokens)
            else None
        )


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


WORKER_BATCH_SCHEMA = pa.schema(
    {
        "start": pa.int64(),
        "stop": pa.int64(),
        "rank": pa.int32(),
        "supervised": pa.int64(),
        "tokens": pa.int64(),
        "dropped_titles": pa.int64(),
        "digest": pa.uint64(),
        "sources": pa.list_(pa.string()),
        "counts": pa.list_(pa.int64()),
        "lengths": pa.list_(pa.list_(pa.int32())),
        "ids": pa.list_(pa.uint64()),
        "input_ids": pa.list_(pa.int32()),
        "answers": pa.list_(pa.int32()),
        "dropped": pa.list_(pa.int32()),
    }
)


_SHARED_ROW_COLUMNS = {field.name: f"laid_{field.name}" for field in fields(SharedRow)}
_SAMPLE_COLUMNS = ("input_ids", "answers", "dropped")
SHARED_ROW_SCHEMA = pa.schema(
    [
        *(field for field in WORKER_BATCH_SCHEMA if field.name not in _SAMPLE_COLUMNS),
        *((name, pa.list_(pa.list_(pa.int32()))) for name in _SHARED_ROW_COLUMNS.values()),
    ]
)
"""Of rows whose samples share tokens: groups of samples in the place of samples."""


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


def to_worker_rows(
    start: int,
    stop: int,
    samples: list[EncodedSample],
    sample_ids: np.ndarray,
    sources: list[str],
    world_size: int,
    groups: list[SharedRow] | None = None,
) -> list[dict[str, Any]]:
    """A global batch as one row for each worker, in the order of the ranks; its tokens one sample after the other. ids: [stop - start] uint64.

    groups: the same samples where they share tokens; groups are dealt instead of samples.
    """
    names = sorted(set(sources))
    units: Sequence[EncodedSample | SharedRow] = samples if groups is None else groups
    dealt = split_by_tokens([len(unit.ids) for unit in units], world_size)
    whole = {
        "start": start,
        "stop": stop,
        "supervised": sum(len(t.ids) - t.answer_start for t in samples),
        "tokens": sum(len(t.ids) for t in samples),
        "dropped_titles": sum(t.dropped_titles for t in samples),
        "digest": ids_digest(sample_ids.tolist()),
        "sources": names,
        "counts": [sources.count(name) for name in names],
        "lengths": [[len(units[i].ids) for i in part] for part in dealt],
    }
    if groups is not None:
        parts = [[groups[i] for i in part] for part in dealt]
        return [
            {
                **whole,
                "rank": rank,
                "ids": sample_ids[[int(i) for group in part for i in group.sample_indices]],
                **{
                    column: [getattr(group, name) for group in part]
                    for name, column in _SHARED_ROW_COLUMNS.items()
                },
            }
            for rank, part in enumerate(parts)
        ]
    return [
        {
            **whole,
            "rank": rank,
            "ids": sample_ids[part],
            "input_ids": np.concatenate(
                [np.zeros(0, dtype=np.int32), *(samples[i].ids for i in part)]
            ),
            "answers": [samples[i].answer_start for i in part],
            "dropped": [samples[i].dropped_titles for i in part],
        }
        for rank, part in enumerate(dealt)
    ]


def unbox_row(block: pa.Table, index: int) -> dict[str, Any]:
    """One row of a block as plain values; what every sample or token has as arrays, which are views of the block."""
    row = {name: block.column(name)[index] for name in block.column_names}
    return {name: _unbox_value(name, value) for name, value in row.items()}


def _unbox_value(name: str, value: Any) -> Any:
    if name in _SHARED_ROW_COLUMNS.values():
        return [part.values.to_numpy() for part in value]
    return value.values.to_numpy() if name in ("ids", "input_ids") else value.as_py()


def worker_batch_from_row(row: Mapping[str, Any]) -> WorkerBatch:
    """The share of a row of `to_rows`."""
    sources = dict(zip(row["sources"], row["counts"], strict=True))
    batch = GlobalBatch(
        row["start"],
        row["stop"],
        row["supervised"],
        row["tokens"],
        row["digest"],
        sources,
        row["dropped_titles"],
    )
    lengths = tuple(tuple(part) for part in row["lengths"])
    if _SHARED_ROW_COLUMNS["ids"] in row:
        laid = tuple(
            SharedRow(*arrays)
            for arrays in zip(
                *(row[column] for column in _SHARED_ROW_COLUMNS.values()), strict=True
            )
        )
        return WorkerBatch(batch, row["rank"], lengths, row["ids"], laid)
    own = (
        np.split(row["input_ids"], np.cumsum(lengths[row["rank"]])[:-1])
        if lengths[row["rank"]]
        else []
    )
    samples = tuple(
        EncodedSample(*values) for values in zip(own, row["answers"], row["dropped"], strict=True)
    )
    return WorkerBatch(batch, row["rank"], lengths, row["ids"], samples)
