import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from corpus.store.scratch import HashPartitions, open_scratch_file


def test_several_threads_write_and_read_tables_in_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tables = [
        pa.table(
            {
                "number": [number] * number,
                "items": pa.array([[number]] * number, pa.list_(pa.int64())),
            }
        )
        for number in range(200)
    ]
    with open_scratch_file() as scratch_file, ThreadPoolExecutor(4) as threads:
        locations = list(threads.map(scratch_file.write, tables))
        assert not any(tmp_path.iterdir())
        assert all(
            copy.equals(table)
            for copy, table in zip(threads.map(scratch_file.read, locations), tables, strict=True)
        )


def test_writing_a_slice_takes_space_for_its_own_rows_only() -> None:
    table = pa.table({"number": range(100_000)})
    with open_scratch_file() as scratch_file:
        location = scratch_file.write(table.slice(70_000, 10))
        assert location.size < 2_000
        assert scratch_file.read(location).equals(table.slice(70_000, 10))


def test_rows_of_a_key_are_in_one_partition_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("corpus.store.scratch.BATCH_ROWS", 100)
    rows = pl.DataFrame(
        {"user": [f"u{n % 97}" for n in range(5_000)], "item": range(5_000), "unused": 0}
    )
    with open_scratch_file() as scratch_file, ThreadPoolExecutor(4) as threads:
        partitions = HashPartitions(scratch_file, 8, {"user": pl.String, "item": pl.Int64})
        list(
            threads.map(
                partitions.append, [rows.slice(start, 250) for start in range(0, 5_000, 250)]
            )
        )
        parts = [partitions.read(index) for index in range(8)]
        batch_sizes = [batch.height for batch in partitions.read_batches(0)]
    assert pl.concat(parts).sort("item").equals(rows.drop("unused"))
    assert sum(part["user"].n_unique() for part in parts) == 97
    assert min(part.height for part in parts) > 0
    assert len(batch_sizes) > 1
    assert sum(batch_sizes) == parts[0].height
    assert max(batch_sizes) < 100 + 250
