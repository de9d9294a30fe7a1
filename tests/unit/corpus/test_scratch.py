import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from corpus.scratch import scratch


def test_tables_come_back_from_several_threads_and_no_file_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tables = [pa.table({"number": [number] * number, "items": pa.array([[number]] * number, pa.list_(pa.int64()))}) for number in range(200)]
    with scratch() as aside, ThreadPoolExecutor(4) as threads:
        places = list(threads.map(aside.put, tables))
        assert not any(tmp_path.iterdir())
        assert all(found.equals(table) for found, table in zip(threads.map(aside.get, places), tables, strict=True))


def test_a_slice_takes_the_place_of_its_own_rows_only() -> None:
    table = pa.table({"number": range(100_000)})
    with scratch() as aside:
        place = aside.put(table.slice(70_000, 10))
        assert place.size < 2_000
        assert aside.get(place).equals(table.slice(70_000, 10))
