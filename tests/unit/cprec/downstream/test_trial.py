"""Results of trials are read as they were written, by this release and by earlier ones."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cprec.downstream.domain import rows_of_rank
from cprec.downstream.trial_records import RESULT_FILE, TrialResult, find_result

RESULT = TrialResult(
    lr=3e-4,
    seed=1,
    hr1=0.5,
    epoch=2,
    checkpoint="runs/x/checkpoints/000000000040-0",
    history=(0.25, 0.5),
    stopped=True,
)


def write(folder: Path, values: dict[str, Any]) -> None:
    (folder / RESULT_FILE).write_text(json.dumps(values))


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = asdict(RESULT)
    assert "lr" in values
    assert "rate" not in values
    write(tmp_path, values)
    assert find_result(str(tmp_path)) == RESULT


def test_a_result_of_an_earlier_release_calls_the_lr_rate(tmp_path: Path) -> None:
    values = asdict(RESULT)
    write(tmp_path, {"rate": values.pop("lr"), **values})
    assert find_result(str(tmp_path)) == RESULT


@pytest.mark.parametrize("key", ["lr", "seed", "history"])
def test_a_result_without_a_field_is_not_read(tmp_path: Path, key: str) -> None:
    values = asdict(RESULT)
    del values[key]
    write(tmp_path, values)
    with pytest.raises((KeyError, TypeError), match=key):
        find_result(str(tmp_path))


def test_a_trial_without_a_file_has_not_ended(tmp_path: Path) -> None:
    assert find_result(str(tmp_path)) is None


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_every_row_is_scored_by_one_worker_also_where_there_are_too_few(size: int) -> None:
    rows = pa.table({"row": pa.array(range(size), pa.int64())})
    shares = [rows_of_rank(rows, rank, 3) for rank in range(3)]
    assert sorted(pa.concat_tables(shares)["row"].to_pylist()) == list(range(size))
    assert all(share.schema == rows.schema for share in shares)
