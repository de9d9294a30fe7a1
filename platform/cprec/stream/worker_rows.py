"""Arrow rows."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from cprec.encode.tokens import EncodedSample
from cprec.schedule.ledger import ids_digest
from cprec.stream.token_sharing import SharedRow
from cprec.stream.worker_batches import GlobalBatch, WorkerBatch, split_by_tokens

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
