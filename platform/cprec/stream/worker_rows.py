"""Arrow rows that carry global batches to workers: one row for each worker. Pure.

`to_worker_rows` divides a global batch into rows, and `worker_batch_from_row` rebuilds a worker's
batch from its row. A row holds samples (WORKER_BATCH_SCHEMA) or, where samples share tokens, groups
of samples (SHARED_ROW_SCHEMA).
"""

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
        # The global batch, which worker the row is for, and the lengths of all workers' samples.
        "start": pa.int64(),
        "stop": pa.int64(),
        "rank": pa.int32(),
        "supervised": pa.int64(),
        "tokens": pa.int64(),
        "dropped_titles": pa.int64(),
        "digest": pa.uint64(),
        "sources": pa.list_(pa.string()),
        "counts": pa.list_(pa.int64()),
        "objectives": pa.list_(pa.string()),
        "objective_counts": pa.list_(pa.int64()),
        "lengths": pa.list_(pa.list_(pa.int32())),
        # The worker's samples. `input_ids` holds their tokens, one sample after the other.
        "ids": pa.list_(pa.uint64()),
        "input_ids": pa.list_(pa.int32()),
        "answers": pa.list_(pa.int32()),
        "dropped": pa.list_(pa.int32()),
    }
)
"""Columns of a row that holds samples."""

_SHARED_ROW_COLUMNS = {field.name: f"laid_{field.name}" for field in fields(SharedRow)}
"""Column of each field of SharedRow; the prefix sets them apart from the columns of samples."""

_SAMPLE_COLUMNS = ("input_ids", "answers", "dropped")
SHARED_ROW_SCHEMA = pa.schema(
    [
        *(field for field in WORKER_BATCH_SCHEMA if field.name not in _SAMPLE_COLUMNS),
        *((name, pa.list_(pa.list_(pa.int32()))) for name in _SHARED_ROW_COLUMNS.values()),
    ]
)
"""Columns of a row that holds groups of samples, one list for each group."""


def to_worker_rows(
    start: int,
    stop: int,
    samples: list[EncodedSample],
    sample_ids: np.ndarray,
    sources: list[str],
    world_size: int,
    groups: list[SharedRow] | None = None,
    samples_by_objective: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Divides a global batch into one row for each worker, in the order of ranks.

    Args:
        start: Position in the plan of the first sample.
        stop: Position in the plan after the last sample.
        samples: The encoded samples, in the order of the plan.
        sample_ids: Their ids, uint64 [stop - start].
        sources: Their sources.
        world_size: Number of workers.
        groups: The samples in groups that share tokens. If given, groups are divided among workers
            instead of samples.
        samples_by_objective: Number of samples of each objective, if there are several.

    Returns:
        Rows of WORKER_BATCH_SCHEMA, or of SHARED_ROW_SCHEMA if groups are given.
    """
    source_names = sorted(set(sources))
    by_objective = samples_by_objective or {}
    units: Sequence[EncodedSample | SharedRow] = samples if groups is None else groups
    parts = split_by_tokens([len(unit.ids) for unit in units], world_size)
    common = {
        "start": start,
        "stop": stop,
        "supervised": sum(len(s.ids) - s.answer_start for s in samples),
        "tokens": sum(len(s.ids) for s in samples),
        "dropped_titles": sum(s.dropped_titles for s in samples),
        "digest": ids_digest(sample_ids.tolist()),
        "sources": source_names,
        "counts": [sources.count(name) for name in source_names],
        "objectives": list(by_objective),
        "objective_counts": list(by_objective.values()),
        "lengths": [[len(units[i].ids) for i in part] for part in parts],
    }
    if groups is not None:
        group_parts = [[groups[i] for i in part] for part in parts]
        return [
            {
                **common,
                "rank": rank,
                "ids": sample_ids[[int(i) for group in part for i in group.sample_indices]],
                **{
                    column: [getattr(group, name) for group in part]
                    for name, column in _SHARED_ROW_COLUMNS.items()
                },
            }
            for rank, part in enumerate(group_parts)
        ]
    return [
        {
            **common,
            "rank": rank,
            "ids": sample_ids[part],
            "input_ids": np.concatenate(
                [np.zeros(0, dtype=np.int32), *(samples[i].ids for i in part)]
            ),
            "answers": [samples[i].answer_start for i in part],
            "dropped": [samples[i].dropped_titles for i in part],
        }
        for rank, part in enumerate(parts)
    ]


def unbox_row(block: pa.Table, index: int) -> dict[str, Any]:
    """Returns one row of an Arrow table by column name.

    `ids` and `input_ids` become arrays. The columns of groups that share tokens become lists with
    an array for each group. Arrays are views of the table. The other columns become plain Python
    values.
    """
    row = {name: block.column(name)[index] for name in block.column_names}
    return {name: _unbox_value(name, value) for name, value in row.items()}


def _unbox_value(name: str, value: Any) -> Any:
    """Converts an Arrow scalar of the column `name` to what `unbox_row` returns for it."""
    if name in _SHARED_ROW_COLUMNS.values():
        return [group_values.values.to_numpy() for group_values in value]
    return value.values.to_numpy() if name in ("ids", "input_ids") else value.as_py()


def worker_batch_from_row(row: Mapping[str, Any]) -> WorkerBatch:
    """Rebuilds a worker's batch from its row.

    Args:
        row: A row of `to_worker_rows`, which may have passed through Arrow and `unbox_row`.
    """
    global_batch = GlobalBatch(
        start=row["start"],
        stop=row["stop"],
        supervised_tokens=row["supervised"],
        num_tokens=row["tokens"],
        ids_digest=row["digest"],
        samples_by_source=dict(zip(row["sources"], row["counts"], strict=True)),
        dropped_titles=row["dropped_titles"],
        samples_by_objective=dict(zip(row["objectives"], row["objective_counts"], strict=True)),
    )
    lengths = tuple(tuple(part) for part in row["lengths"])
    if _SHARED_ROW_COLUMNS["ids"] in row:
        columns = (row[column] for column in _SHARED_ROW_COLUMNS.values())
        groups = tuple(SharedRow(*arrays) for arrays in zip(*columns, strict=True))
        return WorkerBatch(global_batch, row["rank"], lengths, row["ids"], groups)
    own_lengths = lengths[row["rank"]]
    # Without lengths, `np.split` would return one empty array instead of none.
    ids_by_sample = np.split(row["input_ids"], np.cumsum(own_lengths)[:-1]) if own_lengths else []
    samples = tuple(
        EncodedSample(*values)
        for values in zip(ids_by_sample, row["answers"], row["dropped"], strict=True)
    )
    return WorkerBatch(global_batch, row["rank"], lengths, row["ids"], samples)
