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
from cprec.encode.title_tokens import ByTokenizer, Stitcher, TitleTokens, words_of
from cprec.encode.tokens import Encoder, Tokenizer, Tokens
from cprec.schedule.controller import Segment
from cprec.schedule.ledger import ids_digest
from cprec.schedule.plan import Era, permuted
from cprec.stream.token_sharing import NOTHING, Laid, Sharing, lay
from cprec.stream.worker_batches import GlobalBatch, Share, deal

SAMPLES_PER_TASK = 512
"""Samples that one read task renders: enough to outweigh its start, few enough that the first share comes soon."""

Streams = Mapping[tuple[str, int], Stream]


@dataclass(frozen=True)
class Text:
    """What turns rows into tokens: the longest sample, and in the object store title tokens, or the titles themselves for the fall-back, whose
    tokenizer is that of base and revision. sharing: what samples of training share; nothing in the fall-back."""

    base: str
    revision: str | None
    max_tokens: int
    words: "ray.ObjectRef[TitleTokens | Sequence[str]]"
    sharing: Sharing = NOTHING

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        base: str,
        revision: str | None,
        max_tokens: int,
        before: "Text | None" = None,
        sharing: Sharing = NOTHING,
    ) -> "Text":
        """The words of a corpus version, put into the object store once. before: of an earlier version, whose items need not be tokenised again."""
        from cprec.model.backbone import tokenizer

        known = None if before is None else ray.get(before.words)
        words = words_of(
            corpus.titles(),
            tokenizer(base, revision),
            known if isinstance(known, TitleTokens) else None,
        )
        return cls(
            base,
            revision,
            max_tokens,
            ray.put(words.titles if words.tokens is None else words.tokens),
            sharing,
        )

    def encoder(self) -> Stitcher | ByTokenizer:
        """What a task encodes with. Title tokens need neither tokenizer nor transformers, and are read in place."""
        words = ray.get(self.words)
        if isinstance(words, TitleTokens):
            return Stitcher(words, self.max_tokens)
        return ByTokenizer(words, Encoder(self._tokenizer(), self.max_tokens))

    def tokens(self, rows: pa.Table) -> list[Tokens]:
        """Tokens of corpus rows, of prompts and windows of text alike."""
        return text_windows.samples(rows, self.encoder(), self._tokenizer, self.max_tokens)

    def _tokenizer(self) -> Tokenizer:
        from cprec.model.backbone import tokenizer

        return tokenizer(self.base, self.revision)

    def groups(self, rows: pa.Table, tokens: Sequence[Tokens]) -> list[Laid] | None:
        """The samples of a global batch in groups that share tokens; None where samples share nothing. tokens: of the rows, from `encoder`."""
        words = ray.get(self.words) if self.sharing else None
        return (
            lay(rows, tokens, words, self.sharing, self.max_tokens)
            if isinstance(words, TitleTokens)
            else None
        )


def streams_of(corpus: Corpus) -> Streams:
    """The training streams of a corpus by (source, version)."""
    return {(s.source, s.version): s for s in corpus.streams()}


def configure() -> None:
    """Settings of Ray Data for ordered streams; they hold in the calling process alone, so the controller's actor calls this itself."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def split(segment: Segment, streams: Streams, text: Text, world: int) -> list[DataIterator]:
    """Start a segment: one iterator of shares for each worker."""
    source = SegmentSource(segment, streams, text, world)
    dataset = ray.data.read_datasource(source).repartition(target_num_rows_per_block=1, strict=True)
    return list(dataset.streaming_split(world, equal=True))


def shares(iterator: DataIterator, segment: Segment, rank: int) -> Iterator[Share]:
    """One worker's shares of a segment. Raises PlatformFault when a share is not the one that the plan puts here."""
    blocks = cast(
        Iterator[pa.Table],
        iter(iterator.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2)),
    )
    rows = (unboxed(block, i) for block in blocks for i in range(block.num_rows))
    for start, stop in segment.batches():
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
        yield from_row(row)


class SegmentSource(Datasource):
    """Read tasks over a segment, each a few whole global batches."""

    def __init__(self, segment: Segment, streams: Streams, text: Text, world: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._segment, self._streams, self._text, self._world = segment, streams, text, world

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
        batches = list(self._segment.batches())
        size = max(SAMPLES_PER_TASK // self._segment.batch, 1)
        tasks = []
        for first in range(0, len(batches), size):
            piece = batches[first : first + size]
            metadata = BlockMetadata(
                num_rows=len(piece) * self._world,
                size_bytes=None,
                input_files=None,
                exec_stats=None,
            )
            tasks.append(
                ReadTask(
                    _Reader(piece, self._segment.era, self._streams, self._text, self._world),
                    metadata,
                )
            )
        return tasks


@dataclass(frozen=True)
class _Reader:
    """The body of one read task."""

    batches: list[tuple[int, int]]
    era: Era
    streams: Streams
    text: Text
    world: int

    def __call__(self) -> Iterable[pa.Table]:
        start, stop = self.batches[0][0], self.batches[-1][1]
        rows = read_positions(self.era, self.streams, start, stop)
        tokens = self.text.tokens(rows)
        ids = rows["sample_id"].to_numpy().view(np.uint64)
        sources = rows["source"].to_pylist()
        out: list[dict[str, Any]] = []
        for low, high in self.batches:
            piece = slice(low - start, high - start)
            groups = self.text.groups(rows.slice(low - start, high - low), tokens[piece])
            out += to_rows(low, high, tokens[piece], ids[piece], sources[piece], self.world, groups)
        yield pa.Table.from_pylist(out, schema=SCHEMA if groups is None else SHARED_SCHEMA)


SCHEMA = pa.schema(
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


_LAID = {field.name: f"laid_{field.name}" for field in fields(Laid)}
_BY_SAMPLE = ("input_ids", "answers", "dropped")
SHARED_SCHEMA = pa.schema(
    [
        *(field for field in SCHEMA if field.name not in _BY_SAMPLE),
        *((name, pa.list_(pa.list_(pa.int32()))) for name in _LAID.values()),
    ]
)
"""Of rows whose samples share tokens: groups of samples in the place of samples."""


def read_positions(era: Era, streams: Streams, start: int, stop: int) -> pa.Table:
    """The corpus rows at positions start..stop of the plan, in its order, with a column `text` if there are windows of text among them.

    Reads runs of neighbouring rows, not single ones.
    """
    portion, row = era.order(start, stop)
    tables, places = [], []
    for index in np.unique(portion).tolist():
        at = np.flatnonzero(portion == index)
        key = (era.members[index].source, era.members[index].version)
        stream = streams[key]
        wanted = permuted(row[at], stream.rows, era.seed, *key)
        for run in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(wanted) != 1) + 1):
            tables.append(read_rows(stream, int(wanted[run[0]]), int(wanted[run[-1]]) + 1))
            places.append(at[run])
    return pa.concat_tables(tables, promote_options="default").take(
        pa.array(np.argsort(np.concatenate(places)))
    )


def to_rows(
    start: int,
    stop: int,
    tokens: list[Tokens],
    ids: np.ndarray,
    sources: list[str],
    world: int,
    groups: list[Laid] | None = None,
) -> list[dict[str, Any]]:
    """A global batch as one row for each worker, in the order of the ranks; its tokens one sample after the other. ids: [stop - start] uint64.

    groups: the same samples where they share tokens; groups are dealt instead of samples.
    """
    names = sorted(set(sources))
    units: Sequence[Tokens | Laid] = tokens if groups is None else groups
    dealt = deal([len(unit.ids) for unit in units], world)
    whole = {
        "start": start,
        "stop": stop,
        "supervised": sum(len(t.ids) - t.answer for t in tokens),
        "tokens": sum(len(t.ids) for t in tokens),
        "dropped_titles": sum(t.dropped for t in tokens),
        "digest": ids_digest(ids.tolist()),
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
                "ids": ids[[int(i) for group in part for i in group.members]],
                **{
                    column: [getattr(group, name) for group in part]
                    for name, column in _LAID.items()
                },
            }
            for rank, part in enumerate(parts)
        ]
    return [
        {
            **whole,
            "rank": rank,
            "ids": ids[part],
            "input_ids": np.concatenate(
                [np.zeros(0, dtype=np.int32), *(tokens[i].ids for i in part)]
            ),
            "answers": [tokens[i].answer for i in part],
            "dropped": [tokens[i].dropped for i in part],
        }
        for rank, part in enumerate(dealt)
    ]


def unboxed(block: pa.Table, index: int) -> dict[str, Any]:
    """One row of a block as plain values; what every sample or token has as arrays, which are views of the block."""
    row = {name: block.column(name)[index] for name in block.column_names}
    return {name: _plain(name, value) for name, value in row.items()}


def _plain(name: str, value: Any) -> Any:
    if name in _LAID.values():
        return [part.values.to_numpy() for part in value]
    return value.values.to_numpy() if name in ("ids", "input_ids") else value.as_py()


def from_row(row: Mapping[str, Any]) -> Share:
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
    if _LAID["ids"] in row:
        laid = tuple(
            Laid(*arrays)
            for arrays in zip(*(row[column] for column in _LAID.values()), strict=True)
        )
        return Share(batch, row["rank"], lengths, row["ids"], laid)
    own = (
        np.split(row["input_ids"], np.cumsum(lengths[row["rank"]])[:-1])
        if lengths[row["rank"]]
        else []
    )
    samples = tuple(
        Tokens(*values) for values in zip(own, row["answers"], row["dropped"], strict=True)
    )
    return Share(batch, row["rank"], lengths, row["ids"], samples)
