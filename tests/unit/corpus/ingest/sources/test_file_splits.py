from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from corpus.ingest.sources import file_splits, reader
from corpus.ingest.sources.file_splits import FileSplit
from tests.unit.corpus.worlds import write_parquet

COLUMNS = {name: name for name in ("user_id", "item_id", "timestamp")}


def table(cut: Sequence[FileSplit]) -> pl.DataFrame:
    return pl.concat(
        [
            pl.DataFrame(block.table)
            for piece in cut
            for block in reader.read_blocks(piece, COLUMNS, 1)
        ]
    )


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Row groups of 30 rows but the last, which has 10."""
    place = tmp_path / "A.parquet"
    write_parquet(
        place,
        {"user_id": [f"u{i}" for i in range(100)], "item_id": ["i"] * 100, "timestamp": range(100)},
    )
    pq.write_table(pq.read_table(place), place, row_group_size=30)
    return str(place)


def test_a_file_is_cut_between_row_groups_and_read_whole(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows, groups in (
        (1, [(0,), (1,), (2,), (3,)]),
        (60, [(0, 1), (2, 3)]),
        (99, [(0, 1, 2), (3,)]),
        (100, [(0, 1, 2, 3)]),
    ):
        monkeypatch.setattr(file_splits, "ROWS_PER_SPLIT", rows)
        found = file_splits.split_file(file)
        assert found == [FileSplit(file, of) for of in groups]
        assert table(found).equals(table([FileSplit(file)]))


def test_rows_are_told_by_footers_and_sizes(file: str, tmp_path: Path) -> None:
    text = tmp_path / "A.csv"
    text.write_text("x" * 5_000)
    packed = tmp_path / "A.csv.gz"
    packed.write_bytes(b"x" * 5_000)
    assert file_splits.estimate_rows(file) == 100
    assert (
        file_splits.estimate_rows(str(packed))
        == file_splits.COMPRESSION_RATIO * file_splits.estimate_rows(str(text))
        == file_splits.COMPRESSION_RATIO * 5_000 // file_splits.TEXT_BYTES_PER_ROW
    )
    assert file_splits.split_file(str(text)) == [FileSplit(str(text))]


def test_a_damaged_file_is_left_to_its_reader(tmp_path: Path) -> None:
    damaged = tmp_path / "A.parquet"
    damaged.write_bytes(b"PAR1 and no more")
    assert file_splits.estimate_rows(str(damaged)) == 0
    assert file_splits.split_file(str(damaged)) == [FileSplit(str(damaged))]
