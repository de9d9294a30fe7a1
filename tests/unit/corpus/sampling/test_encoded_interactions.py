import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from corpus.sampling import encoded_interactions, hashing
from corpus.sampling.encoded_interactions import (
    EncodedInteractions,
    encode_values,
    remove_unused_categories,
)
from tests.unit.corpus.worlds import Row, frame, worlds

ITEMS = 14
SEVERAL_VERSIONS = st.lists(
    st.tuples(st.integers(0, 2), st.none() | st.integers(0, 2)), min_size=1, max_size=200
)


def assert_same_rows(actual: pl.DataFrame, expected: pl.DataFrame) -> None:
    assert_frame_equal(actual.select(expected.columns), expected, check_row_order=False)


@given(worlds(items=ITEMS), SEVERAL_VERSIONS)
@hypothesis_settings(max_examples=40)
def test_decoded_interactions_equal_the_encoded_ones(
    world: dict[str, list[Row]], versions: list[tuple[int, int | None]]
) -> None:
    interactions = frame(world, ITEMS)
    chosen = [versions[row % len(versions)] for row in range(interactions.height)]
    interactions = interactions.with_columns(
        version=pl.Series([version for version, _ in chosen], dtype=pl.Int32),
        split=pl.Series([split for _, split in chosen], dtype=pl.Int8),
    )
    encoded = EncodedInteractions.from_frame(interactions)
    assert_same_rows(encoded.to_frame(), interactions)
    assert encoded.num_new == interactions["split"].null_count()
    assert encoded.rows["user"].is_sorted()
    assert encoded.items.select(pl.col("domain").cast(pl.String), "item_id").rows() == sorted(
        interactions.select("domain", "item_id").unique().rows()
    )


@given(worlds(items=ITEMS, users=20, most=3), st.sampled_from([1, 2, 4, 8]))
@hypothesis_settings(max_examples=40)
def test_hash_ranges_partition_the_interactions_by_user(
    world: dict[str, list[Row]], num_ranges: int
) -> None:
    interactions = frame(world, ITEMS)
    parts = [
        EncodedInteractions.from_frame(interactions).select_hash_range(number, num_ranges)
        for number in range(num_ranges)
    ]
    assert_same_rows(pl.concat([part.to_frame() for part in parts]), interactions)
    for number, part in enumerate(parts):
        hashes = hashing.hash_strings(part.users["user_id"])
        assert set(hashing.hash_range_indices(hashes, num_ranges)) <= {number}
        assert np.array_equal(hashes.view(np.int64), part.users["user_hash"].to_numpy())
        assert_same_rows(
            EncodedInteractions.from_frame(part.to_frame()).to_frame(), part.to_frame()
        )


@given(worlds(items=ITEMS), worlds(items=ITEMS), st.sets(st.integers(0, 7)))
@hypothesis_settings(max_examples=40)
def test_parts_with_their_own_codes_are_joined(
    one: dict[str, list[Row]], other: dict[str, list[Row]], users: set[int]
) -> None:
    user_ids = pl.Series([f"u{user}" for user in users], dtype=pl.String)
    first = frame(one, ITEMS)
    second = frame(other, ITEMS).with_columns(version=pl.lit(1, pl.Int32), split=pl.lit(2, pl.Int8))
    whole = EncodedInteractions.concat(
        [EncodedInteractions.from_frame(first), EncodedInteractions.from_frame(second)]
    )
    expected = pl.concat([first, second])
    assert_same_rows(whole.to_frame(), expected)
    assert whole.rows["user"].is_sorted()
    for name in ("users", "items"):
        assert getattr(whole, name).equals(getattr(EncodedInteractions.from_frame(expected), name))
    filtered = whole.filter_users(user_ids)
    assert_same_rows(
        filtered.to_frame(), expected.filter(pl.col("user_id").is_in(user_ids.implode()))
    )
    assert set(filtered.users["user_id"]) == set(filtered.to_frame()["user_id"])
    assert filtered.rows["user"].is_sorted()


@given(worlds(items=ITEMS), st.integers(1, 50))
@hypothesis_settings(max_examples=40)
def test_counts_do_not_depend_on_the_batch_size(
    world: dict[str, list[Row]], batch_rows: int
) -> None:
    interactions = frame(world, ITEMS).with_columns(
        split=pl.when(pl.col("timestamp") < 6).then(0).cast(pl.Int8)
    )
    encoded = EncodedInteractions.from_frame(interactions)
    before = encoded_interactions.COUNT_BATCH_ROWS
    encoded_interactions.COUNT_BATCH_ROWS = batch_rows
    try:
        counts = encoded.user_domain_counts
    finally:
        encoded_interactions.COUNT_BATCH_ROWS = before
    expected = interactions.group_by("user_id", "domain").agg(
        size=pl.len().cast(pl.Int64), new=pl.col("split").is_null().sum().cast(pl.Int64)
    )
    assert_same_rows(
        counts.with_columns(user_id=encoded.users["user_id"].gather(counts["user"])), expected
    )


@given(worlds(items=ITEMS))
@hypothesis_settings(max_examples=40)
def test_domains_with_their_own_user_codes_are_joined(world: dict[str, list[Row]]) -> None:
    interactions = frame(world, ITEMS)
    whole = EncodedInteractions.from_frame(interactions)
    domains = []
    for domain in world:
        rows = interactions.filter(pl.col("domain") == domain)
        user_ids = rows["user_id"].unique()
        items = encode_values(rows["item_id"], whole.items["item_id"])
        domains.append(
            (
                pl.DataFrame(
                    {
                        "user": encode_values(rows["user_id"], user_ids),
                        "item": items,
                        "timestamp": rows["timestamp"],
                    }
                ),
                user_ids,
            )
        )
    assert_same_rows(
        EncodedInteractions.from_domains(
            domains, whole.items.with_columns(pl.col("domain").cast(pl.String))
        ).to_frame(),
        interactions,
    )


def test_categories_without_a_code_are_removed() -> None:
    codes, categories = remove_unused_categories(
        pl.Series([3, 1, 3], dtype=pl.UInt32), pl.Series(["a", "b", "c", "d"])
    )
    assert categories.to_list() == ["b", "d"]
    assert codes.to_list() == [1, 0, 1]
    assert encode_values(pl.Series(["d", "x"]), categories).to_list() == [1, None]
