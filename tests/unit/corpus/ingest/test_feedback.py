"""Served rankings and purchases: what is counted, read, refused, and appended."""

import random
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DataError
from corpus.append import append, preview
from corpus.append_text import append_text
from corpus.build import build
from corpus.ingest.feedback import FeedbackCounts, count_feedback
from corpus.settings import DataSettings
from corpus.store.tables import Corpus
from tests.unit.corpus.worlds import all_kept, settings, shop, write_parquet, write_root

Served = tuple[str, int, list[str]]
"""user_id, timestamp, items."""


def slow_counts(
    purchases: Sequence[tuple[str, str, int]], served: Sequence[Served]
) -> FeedbackCounts:
    """Counts purchase by purchase."""
    after = inside = first = 0
    bought = set(purchases)
    for user, item, time in bought:
        shown = [row for row in served if row[0] == user and row[1] <= time]
        if not shown:
            continue
        newest = max(row[1] for row in shown)
        items = next(row[2] for row in reversed(shown) if row[1] == newest)
        after += 1
        inside += item in items
        first += items[:1] == [item]
    return FeedbackCounts(len(served), len(bought), after, inside, first)


USERS = st.sampled_from(["u0", "u1", "u2"])
ITEMS = st.sampled_from(["a", "b", "c", "d"])
TIMES = st.integers(0, 8)


@given(
    purchases=st.lists(st.tuples(USERS, ITEMS, TIMES), max_size=12),
    served=st.lists(st.tuples(USERS, TIMES, st.lists(ITEMS, max_size=4)), max_size=8),
)
def test_a_purchase_counts_for_the_ranking_that_was_last_served_before_it(
    purchases: list[tuple[str, str, int]], served: list[Served]
) -> None:
    counted = count_feedback(
        pl.DataFrame(
            purchases,
            schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64},
            orient="row",
        ),
        pl.DataFrame(
            served,
            schema={"user_id": pl.String, "timestamp": pl.Int64, "items": pl.List(pl.String)},
            orient="row",
        ),
    )
    assert counted == slow_counts(purchases, served)


PURCHASES: dict[str, Sequence[object]] = {
    "user_id": ["u001"] * 4 + ["u002"] * 3 + ["u003"],
    "item_id": ["A03", "A04", "A05", "A06", "A07", "A08", "A09", "A10"],
    "timestamp": [2_000, 2_010, 2_020, 2_030, 2_000, 2_001, 2_002, 2_000],
}
SERVED: dict[str, Sequence[object]] = {
    "user_id": ["u001", "u002", "u001"],
    "timestamp": [1_999, 1_999, 2_015],
    "items": [["A03", "A04"], ["A11", "A07"], ["A06", "A12"]],
}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    root = write_root(tmp_path / "root", shop(("A", "B", "C")))
    return build(settings(root), 0, str(tmp_path / "corpus"), print)


def feedback(folder: Path) -> DataSettings:
    """Settings of a feedback in domain A."""
    return settings(folder, format="feedback", domains=("A",), held_out=())


def write_feedback(folder: Path, **served: Sequence[object]) -> Path:
    write_parquet(folder / "purchases" / "A.parquet", PURCHASES)
    write_parquet(folder / "served" / "A.parquet", {**SERVED, **served})
    return folder


def test_purchases_are_appended_as_newer_rows_and_need_no_items(
    corpus: Corpus, tmp_path: Path
) -> None:
    """A data root of the same interactions gives the same version, but for what was counted."""
    told: list[str] = []
    folder = write_feedback(tmp_path / "feedback")
    preview(feedback(folder), 0, corpus.uri, told.append)
    said = (
        "A: 3 rankings served, 8 purchases, of which 7 after a ranking: "
        "4 (57.1%) of an item in it, 2 (28.6%) of its first"
    )
    assert said in told
    before = all_kept(corpus)
    appended = append(feedback(folder), 0, corpus.uri, told.append)
    assert told.count(said) == 2
    assert appended.version == 1
    assert appended.commits[1].metadata["feedback"] == {
        "A": {
            "rankings": 3,
            "purchases": 8,
            "after_ranking": 7,
            "in_ranking": 4,
            "first_in_ranking": 2,
        }
    }
    rows = all_kept(appended).join(before, on=["user_id", "item_id", "timestamp"], how="anti")
    assert set(rows.select("user_id", "item_id", "timestamp").rows()) == set(
        zip(*PURCHASES.values(), strict=True)
    )
    again = append(feedback(folder), 0, corpus.uri, told.append)
    assert again.version == 1
    (tmp_path / "plain.txt").write_text("Some words. " * 50)
    assert (
        "feedback"
        not in append_text(str(tmp_path / "plain.txt"), corpus.uri, print).commits[2].metadata
    )


def test_new_items_are_given_beside_the_purchases(corpus: Corpus, tmp_path: Path) -> None:
    folder = write_feedback(tmp_path / "feedback")
    bought = ["N1"] * 4 + ["A01"] * 3 + ["N1"]
    write_parquet(folder / "purchases" / "A.parquet", {**PURCHASES, "item_id": bought})
    with pytest.raises(DataError, match="5 of 8 interactions cannot be used"):
        append(feedback(folder), 0, corpus.uri, print)
    write_parquet(folder / "items" / "A.parquet", {"item_id": ["N1"], "title": ["A new thing"]})
    appended = append(feedback(folder), 0, corpus.uri, print)
    assert "A new thing" in appended.read_titles()


def test_ids_that_are_numbers_are_read_as_text(tmp_path: Path, corpus: Corpus) -> None:
    folder = write_feedback(tmp_path / "feedback", items=[[3, 4], [11, 7], [6, 12]])
    numbers = [int(str(item)[1:]) for item in PURCHASES["item_id"]]
    write_parquet(folder / "purchases" / "A.parquet", {**PURCHASES, "item_id": numbers})
    told: list[str] = []
    with pytest.raises(DataError, match="cannot be used"):  # the corpus has no such ids
        preview(feedback(folder), 0, corpus.uri, told.append)
    assert any("7 after a ranking: 4 (57.1%)" in line for line in told)


def test_what_is_no_feedback_is_refused_by_name(tmp_path: Path, corpus: Corpus) -> None:
    folder = write_feedback(tmp_path / "feedback", items=["A03", "A04", "A05"])
    with pytest.raises(DataError, match=r"served/A\.parquet: column items is string, lists of"):
        append(feedback(folder), 0, corpus.uri, print)
    (folder / "served" / "A.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"served/A\.parquet: not a whole parquet file"):
        append(feedback(folder), 0, corpus.uri, print)
    (folder / "served" / "A.parquet").unlink()
    with pytest.raises(DataError, match=r"served/A\.parquet: no such file"):
        append(feedback(folder), 0, corpus.uri, print)
    assert Corpus.open(corpus.uri).version == 0


def test_the_order_of_rows_does_not_matter() -> None:
    purchases, served = pl.DataFrame(PURCHASES), pl.DataFrame(SERVED)
    rng = random.Random(0)
    expected = count_feedback(purchases, served)
    for _ in range(5):
        shuffled = purchases.sample(fraction=1, shuffle=True, seed=rng.randrange(100))
        assert count_feedback(shuffled, served.reverse()) == expected
