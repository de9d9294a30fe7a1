"""Bad input: every error message names the file, the column and what to do."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import DataError
from tests.unit.corpus.worlds import Domain, domain, settings, write_parquet

Columns = Mapping[str, Sequence[object]]

GOOD: Columns = {"user_id": ["u", "u", "v"], "item_id": ["a", "b", "a"], "timestamp": [1, 2, 3]}
TITLES: Columns = {"item_id": ["a", "b"], "title": ["Soap &amp; Water", "Brush"]}


def ignore(line: str) -> None:
    """Takes a line of progress and drops it."""


def read(
    root: str, name: str, max_quarantined: float, say: Callable[[str], None], **changes: object
) -> Domain:
    return domain(settings(root, max_quarantined=max_quarantined, **changes), name, say)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "interactions" / "A.parquet", GOOD)
    write_parquet(tmp_path / "items" / "A.parquet", TITLES)
    return tmp_path


def test_a_good_domain(root: Path) -> None:
    good = read(str(root), "A", 0.0, ignore)
    assert good.rows() == [("u", "a", 1), ("u", "b", 2), ("v", "a", 3)]
    assert good.titles() == [("a", "Soap & Water"), ("b", "Brush")]
    assert not good.left_out()


def error_message(root: Path) -> str:
    """The message of the error that reading domain A raises."""
    with pytest.raises(DataError) as error:
        read(str(root), "A", 0.0, ignore)
    return str(error.value)


def test_no_root(tmp_path: Path) -> None:
    assert f"{tmp_path}/none: no such data root" in error_message(tmp_path / "none")


@pytest.mark.parametrize("kind", ["interactions", "items"])
def test_no_file(root: Path, kind: str) -> None:
    (root / kind / "A.parquet").rename(root / kind / "B.parquet")
    assert f"{root}/{kind}/A.parquet: no such file, nor with another suffix" in error_message(root)
    assert f"{root}/{kind} has B.parquet; correct data.domains" in error_message(root)


@pytest.mark.parametrize("kind", ["interactions", "items"])
@pytest.mark.parametrize(
    ("keep_bytes", "reason"),
    [
        (0, "the file is empty (0 bytes)"),
        (5, "not a whole parquet file"),
        (-7, "not a whole parquet file"),
    ],
)
def test_an_empty_or_truncated_file(root: Path, kind: str, keep_bytes: int, reason: str) -> None:
    file = root / kind / "A.parquet"
    file.write_bytes(file.read_bytes()[:keep_bytes])
    assert f"{file}: {reason}" in error_message(root)


def test_a_flipped_byte_under_a_page_checksum(root: Path) -> None:
    file = root / "interactions" / "A.parquet"
    pq.write_table(
        pa.table({**GOOD, "user_id": ["user-one", "user-one", "user-two"]}),
        file,
        write_page_checksum=True,
        compression="none",
    )
    content = bytearray(file.read_bytes())
    content[content.index(b"user-two") + 5] ^= 1
    file.write_bytes(content)
    assert f"{file}: not a whole parquet file" in error_message(root)


@pytest.mark.parametrize(
    ("kind", "column"),
    [("interactions", "user_id"), ("interactions", "timestamp"), ("items", "title")],
)
def test_a_missing_column(root: Path, kind: str, column: str) -> None:
    file = root / kind / "A.parquet"
    columns = dict(GOOD if kind == "interactions" else TITLES)
    del columns[column]
    write_parquet(file, columns)
    assert f"{file}: no column {column}; it has" in error_message(root)


@pytest.mark.parametrize(
    ("kind", "column", "values"),
    [
        ("interactions", "timestamp", [True, False, True]),
        ("interactions", "timestamp", [[1], [2], [3]]),
        ("items", "title", [["Soap"], ["Brush"]]),
        ("interactions", "user_id", [1.5, 2.5, 3.5]),
        ("interactions", "user_id", [True, False, True]),
        ("items", "title", [1, 2]),
    ],
)
def test_a_column_of_a_wrong_type(root: Path, kind: str, column: str, values: list[object]) -> None:
    file = root / kind / "A.parquet"
    write_parquet(file, {**(GOOD if kind == "interactions" else TITLES), column: values})
    assert f"{file}: column {column} is " in error_message(root)


def test_integer_ids_become_text_and_are_reported(root: Path) -> None:
    write_parquet(root / "interactions" / "A.parquet", {**GOOD, "user_id": [7, 7, 8]})
    lines: list[str] = []
    assert set(read(str(root), "A", 0.0, lines.append).named()["user_id"]) == {"7", "8"}
    assert lines == [f"{root}/interactions/A.parquet: integers of column user_id are read as text"]


@pytest.mark.parametrize("values", [["u", "u", "v"], [7, 7, 8]])
def test_a_dictionary_is_what_its_values_are(root: Path, values: list[object]) -> None:
    """As pandas writes a categorical column."""
    table = pa.table({**GOOD, "user_id": pa.array(values).dictionary_encode()})
    pq.write_table(table, root / "interactions" / "A.parquet")
    lines: list[str] = []
    read(str(root), "A", 0.0, lines.append)
    assert bool(lines) == isinstance(values[0], int)


def test_files_of_one_domain_must_agree_on_types(root: Path) -> None:
    (root / "interactions" / "A.parquet").unlink()
    write_parquet(root / "interactions" / "A.parquet" / "0.parquet", GOOD)
    write_parquet(root / "interactions" / "A.parquet" / "1.parquet", GOOD)
    assert read(str(root), "A", 0.0, ignore).usable.interactions.height == 3
    write_parquet(root / "interactions" / "A.parquet" / "1.parquet", {**GOOD, "item_id": [1, 2, 3]})
    assert (
        f"{root}/interactions/A.parquet/1.parquet: column item_id is int64, yet string in {root}"
        in error_message(root)
    )


def test_unusable_rows_are_counted_by_reason(root: Path) -> None:
    rows = [
        ("u", "a", 1),
        ("u", "a", 1),
        ("u", "a", 2),
        (None, "a", 1),
        (" ", "a", 1),
        ("u", None, 1),
        ("u", "a", None),
        ("u", "a", -1),
        ("u", "a", 1_700_000_000_000),
        ("u", "untitled", 1),
        ("u", "blank", 1),
    ]
    users, items, times = zip(*rows, strict=True)
    write_parquet(
        root / "interactions" / "A.parquet",
        {"user_id": users, "item_id": items, "timestamp": times},
    )
    write_parquet(
        root / "items" / "A.parquet",
        {"item_id": ["a", "a", "blank", None], "title": ["Soap", "Other", "\u200b ", "X"]},
    )
    result = read(str(root), "A", 1.0, ignore)
    assert result.rows() == [("u", "a", 1), ("u", "a", 2)]
    assert result.titles() == [("a", "Other")]
    assert result.left_out() == {
        "no_user_id": 2,
        "no_item_id": 1,
        "no_timestamp": 1,
        "timestamp_before_1970": 1,
        "timestamp_in_finer_unit": 1,
        "item_without_title": 2,
        "duplicate_interaction": 1,
        "item_without_id": 1,
        "duplicate_item": 1,
    }
    file = root / "interactions" / "A.parquet"
    assert result.quarantined() == [
        f"no_timestamp 1 in {file}, first in row 7: user_id 'u', item_id 'a', timestamp missing",
        f"timestamp_in_finer_unit 1 in {file}, first in row 9: user_id 'u', item_id 'a', "
        "timestamp 1700000000000",
        f"timestamp_before_1970 1 in {file}, first in row 8: user_id 'u', item_id 'a', "
        "timestamp -1",
        f"no_user_id 2 in {file}, first in row 4: user_id missing, item_id 'a', timestamp 1",
        f"no_item_id 1 in {file}, first in row 6: user_id 'u', item_id missing, timestamp 1",
        f"item_without_title 2 in {file}, first in row 10: user_id 'u', item_id 'untitled', "
        "timestamp 1",
        f"item_without_id 1 in {root}/items/A.parquet, first in row 4: item_id missing, title 'X'",
    ]
    message = error_message(root)
    assert (
        "A: 8 of 11 interactions cannot be used, which is more than data.max_quarantined (0%); "
        "correct the data, set data.time_unit" in message
    )
    assert (
        f"\n  item_without_title 2 in {file}, first in row 10: user_id 'u', "
        "item_id 'untitled', timestamp 1\n  no_item_id 1 in " in message
    )


def test_the_file_with_most_unusable_rows_is_named(root: Path) -> None:
    folder = root / "interactions" / "A.parquet"
    folder.unlink()
    for number, times in enumerate(([1, 2, 3], [-1, 2, -3], [1, -2, 3])):
        write_parquet(folder / f"{number}.parquet", {**GOOD, "timestamp": times})
    assert (
        f"timestamp_before_1970 2 in {folder}/1.parquet, first in row 1: user_id 'u', "
        "item_id 'a', timestamp -1; 1 in 1 other files" in error_message(root)
    )
