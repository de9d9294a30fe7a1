from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from corpus.ingest.sources import file_splits, reader
from corpus.ingest.sources.file_splits import FileSplit
from tests.unit.corpus.worlds import write_parquet

COLUMNS = {name: name for name in ("user_id", "item_id", "timestamp")}


def read(splits: Sequence[FileSplit]) -> pl.DataFrame:
    """The rows of some splits, one after the other."""
    return pl.concat(
        [
            pl.DataFrame(block.table)
            for split in splits
            for block in reader.read_blocks(split, COLUMNS, 1)
        ]
    )


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A parquet file of 100 rows, in row groups of 30, 30, 30 and 10."""
    path = tmp_path / "A.parquet"
    write_parquet(
        path,
        {"user_id": [f"u{i}" for i in range(100)], "item_id": ["i"] * 100, "timestamp": range(100)},
    )
    pq.write_table(pq.read_table(path), path, row_group_size=30)
    return str(path)


def test_parquet_is_split_between_row_groups_and_loses_no_row(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows, groups in (
        (1, [(0,), (1,), (2,), (3,)]),
        (60, [(0, 1), (2, 3)]),
        (99, [(0, 1, 2), (3,)]),
        (100, [(0, 1, 2, 3)]),
    ):
        monkeypatch.setattr(file_splits, "ROWS_PER_SPLIT", rows)
        splits = file_splits.split_file(file)
        assert splits == [FileSplit(file, row_groups) for row_groups in groups]
        assert read(splits).equals(read([FileSplit(file)]))


def test_a_parquet_file_may_begin_with_an_empty_row_group(tmp_path: Path) -> None:
    path = tmp_path / "A.parquet"
    columns: dict[str, Sequence[object]] = {"user_id": ["u"], "item_id": ["i"], "timestamp": [1]}
    write_parquet(path, columns)
    rows = pq.read_table(path)
    with pq.ParquetWriter(path, rows.schema) as writer:
        writer.write_table(rows.slice(0, 0))
        writer.write_table(rows)
    splits = file_splits.split_file(str(path))
    assert splits == [FileSplit(str(path), (0, 1))]
    assert read(splits).height == 1


def test_rows_are_estimated_from_footers_and_sizes(file: str, tmp_path: Path) -> None:
    text = tmp_path / "A.csv"
    text.write_text("x" * 5_000)
    compressed = tmp_path / "A.csv.gz"
    compressed.write_bytes(b"x" * 5_000)
    assert file_splits.estimate_rows(file) == 100
    assert (
        file_splits.estimate_rows(str(compressed))
        == file_splits.COMPRESSION_RATIO * file_splits.estimate_rows(str(text))
        == file_splits.COMPRESSION_RATIO * 5_000 // file_splits.TEXT_BYTES_PER_ROW
    )
    assert file_splits.split_file(str(text)) == [FileSplit(str(text))]


def test_a_damaged_file_is_left_to_its_reader(tmp_path: Path) -> None:
    damaged = tmp_path / "A.parquet"
    damaged.write_bytes(b"PAR1 and no more")
    assert file_splits.estimate_rows(str(damaged)) == 0
    assert file_splits.split_file(str(damaged)) == [FileSplit(str(damaged))]
