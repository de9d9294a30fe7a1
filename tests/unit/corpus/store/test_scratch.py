import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from corpus.store.scratch import HashPartitions, open_scratch_file


def test_tables_come_back_from_several_threads_and_no_file_has_a_name(
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
    with open_scratch_file() as aside, ThreadPoolExecutor(4) as threads:
        places = list(threads.map(aside.write, tables))
        assert not any(tmp_path.iterdir())
        assert all(
            found.equals(table)
            for found, table in zip(threads.map(aside.read, places), tables, strict=True)
        )


def test_a_slice_takes_the_place_of_its_own_rows_only() -> None:
    table = pa.table({"number": range(100_000)})
    with open_scratch_file() as aside:
        place = aside.write(table.slice(70_000, 10))
        assert place.size < 2_000
        assert aside.read(place).equals(table.slice(70_000, 10))


def test_rows_with_one_key_lie_in_one_part_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("corpus.store.scratch.BATCH_ROWS", 100)
    rows = pl.DataFrame(
        {"user": [f"u{n % 97}" for n in range(5_000)], "item": range(5_000), "left_out": 0}
    )
    with open_scratch_file() as aside, ThreadPoolExecutor(4) as threads:
        parts = HashPartitions(aside, 8, {"user": pl.String, "item": pl.Int64})
        list(threads.map(parts.append, [rows.slice(start, 250) for start in range(0, 5_000, 250)]))
        whole = [parts.read(number) for number in range(8)]
        pieces = [piece.height for piece in parts.read_batches(0)]
    assert pl.concat(whole).sort("item").equals(rows.drop("left_out"))
    assert sum(part["user"].n_unique() for part in whole) == 97
    assert min(part.height for part in whole) > 0
    assert len(pieces) > 1
    assert sum(pieces) == whole[0].height
    assert max(pieces) < 100 + 250
