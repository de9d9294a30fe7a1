"""Every row of a batch's input is ranked or rejected with a reason, and every user once."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import DataError
from cprec.ranking.batch_input import BatchInput, RowRules, list_parquet, read_files, uses_titles
from cprec.ranking.items import ItemLookup
from tests.unit.cprec.ranking.stored_models import Place

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

Row = dict[str, Any]


@pytest.fixture(scope="module")
def items(place: Place) -> ItemLookup:
    return ItemLookup.from_corpus(place.corpus, "A")


def read(folder: Path, items: ItemLookup | None, rows: list[Row], **rules: Any) -> BatchInput:
    """Writes rows as a file of a folder, and reads the folder."""
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
    settings: dict[str, Any] = {"with_candidates": True, "max_history": 4, "exclude_history": True}
    are_titles = uses_titles(str(folder))
    return read_files(str(folder), RowRules(items, **settings | rules), are_titles)


def test_a_text_that_is_no_utf8_costs_its_row_alone(tmp_path: Path, items: ItemLookup) -> None:
    users = pa.array([b"u1", b"u\xff", b"u3"]).view(pa.string())  # Arrow does not check
    given = pa.array([["A03", "A04"]] * 3)
    table = pa.table({"user_id": users, "history": pa.array([["A00"]] * 3), "candidates": given})
    pq.write_table(table, tmp_path / "part.parquet")
    found = read_files(str(tmp_path), RowRules(items, True, 4, True), False)
    assert found.rows["user_id"].to_pylist() == ["u1", "u3"]
    assert [(r.row, r.user_id, r.reason) for r in found.rejected] == [(2, "", "not_utf8")]


def test_a_damaged_page_is_an_error_that_names_the_file(tmp_path: Path, items: ItemLookup) -> None:
    rows = {"user_id": ["u1"], "history": [["A00"]], "candidates": [["A03", "A04"]]}
    pq.write_table(pa.table(rows), tmp_path / "part.parquet", write_page_checksum=True)
    content = bytearray((tmp_path / "part.parquet").read_bytes())
    content[content.index(b"u1")] ^= 1
    (tmp_path / "part.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"part\.parquet: no parquet file, or a damaged one"):
        read_files(str(tmp_path), RowRules(items, True, 4, True), False)


def test_each_fault_is_named_and_the_others_are_ranked(tmp_path: Path, items: ItemLookup) -> None:
    def row(user: str | None, history: Any, candidates: Any = ("A03", "A04")) -> Row:
        return {
            "user_id": user,
            "history": None if history is None else list(history),
            "candidates": None if candidates is None else list(candidates),
        }

    rows = [
        row("u2", ["A00", "A01"]),
        row(None, ["A00"]),
        row("u3", []),
        row("u4", None),
        row("u5", ["A00", "X"]),
        row("u6", ["A00", None]),
        row("u7", ["A00"], None),
        row("u8", ["A00"], ["A00", "A01", "A01"]),
        row("u9", ["A00"], ["A01", "B01"]),
        row("u2", ["A05"]),
        # The first usable row of a user counts.
        row("u1", []),
        row("u1", [f"A{n:02d}" for n in range(9)], ["A20", "A08", "A21", "A20"]),
    ]
    found = read(tmp_path / "in", items, rows)
    assert [(r.row, r.user_id, r.reason) for r in found.rejected] == [
        (2, "", "missing_user"),
        (3, "u3", "empty_history"),
        (4, "u4", "empty_history"),
        (5, "u5", "unknown_item"),
        (6, "u6", "missing_item"),
        (7, "u7", "no_candidates"),
        (8, "u8", "too_few_candidates"),
        (9, "u9", "unknown_item"),
        (10, "u2", "duplicate_user"),
        (11, "u1", "empty_history"),
    ]
    ids = [
        (r["user_id"], items.ids(r["history"]), items.ids(r["candidates"]))
        for r in found.rows.to_pylist()
    ]
    assert ids == [
        ("u1", ["A05", "A06", "A07", "A08"], ["A20", "A21"]),
        ("u2", ["A00", "A01"], ["A03", "A04"]),
    ]
    kept = read(tmp_path / "in", items, rows[-1:], exclude_history=False)
    assert items.ids(kept.rows["candidates"][0].as_py()) == ["A20", "A08", "A21"]
    assert read(tmp_path / "in", items, rows[:1], with_candidates=False).rows.column_names == [
        "user_id",
        "history",
    ]


def test_titles_are_cleaned_and_numbers_are_ids(tmp_path: Path, items: ItemLookup) -> None:
    rows = [{"user_id": 7, "history_titles": [" oak  lamp"], "candidates_titles": ["a", "b", "a "]}]
    found = read(tmp_path / "titles", None, rows)
    assert found.are_titles
    assert found.rows.to_pylist() == [
        {"user_id": "7", "history": ["oak lamp"], "candidates": ["a", "b"]}
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"user_id": "u", "items": ["A00"]}], "has the columns user_id, items; it needs user_id"),
        ([{"user_id": 1.5, "history": ["A00"]}], "column user_id is double, not strings or"),
        ([{"user_id": "u", "history": "A00"}], "column history is string, not lists of"),
        ([{"user_id": "u", "history": ["X"]}], "no row can be ranked, of 1; first: .*unknown_item"),
    ],
)
def test_a_file_of_another_shape_is_refused(
    tmp_path: Path, items: ItemLookup, rows: list[Row], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "bad", items, rows)


def test_a_folder_without_parquet_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no parquet file here"):
        list_parquet(str(tmp_path / "absent"))
    (tmp_path / "day" / "day=1").mkdir(parents=True)
    (tmp_path / "day" / "_SUCCESS").touch()
    (tmp_path / "day" / "day=1" / "part.parquet").touch()
    assert list_parquet(str(tmp_path / "day")) == [f"{tmp_path}/day/day=1/part.parquet"]
    (tmp_path / "day" / "old").mkdir()
    with pytest.raises(DataError, match=r"histories: .*day/old: a folder among data files"):
        list_parquet(str(tmp_path / "day"))
    (tmp_path / "x.parquet").write_text("nothing")
    with pytest.raises(DataError, match="no parquet file"):
        uses_titles(str(tmp_path / "x.parquet"))


item_ids = st.one_of(st.none(), st.sampled_from(["A00", "A01", "A02", "A03", "B00", "", "?"]))
lists = st.one_of(st.none(), st.lists(item_ids, max_size=4))
any_rows = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.one_of(st.none(), st.sampled_from(["", "u1", "u2", "u3"])),
            "history": lists,
            "candidates": lists,
        }
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(any_rows)
def test_no_row_is_lost_and_no_user_stands_twice(
    tmp_path: Path, items: ItemLookup, rows: list[Row]
) -> None:
    rows = [*rows, {"user_id": "last", "history": ["A00"], "candidates": ["A01", "A02"]}]
    found = read(tmp_path / "drawn", items, rows)
    users = found.rows["user_id"].to_pylist()
    assert users == sorted(set(users))
    assert len(users) + len(found.rejected) == len(rows)
    for row in found.rows.to_pylist():
        assert row["history"]
        assert len(set(row["candidates"]) - set(row["history"])) >= 2
    assert found.digest == read(tmp_path / "drawn", items, rows).digest
