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


def same(found: pl.DataFrame, wanted: pl.DataFrame) -> None:
    assert_frame_equal(found.select(wanted.columns), wanted, check_row_order=False)


@given(worlds(items=ITEMS), SEVERAL_VERSIONS)
@hypothesis_settings(max_examples=40)
def test_interactions_come_back_by_their_names(
    world: dict[str, list[Row]], versions: list[tuple[int, int | None]]
) -> None:
    found = frame(world, ITEMS)
    chosen = [versions[row % len(versions)] for row in range(found.height)]
    found = found.with_columns(
        version=pl.Series([version for version, _ in chosen], dtype=pl.Int32),
        split=pl.Series([split for _, split in chosen], dtype=pl.Int8),
    )
    numbers = EncodedInteractions.from_frame(found)
    same(numbers.to_frame(), found)
    assert numbers.num_new == found["split"].null_count()
    assert numbers.rows["user"].is_sorted()
    assert numbers.items.select(pl.col("domain").cast(pl.String), "item_id").rows() == sorted(
        found.select("domain", "item_id").unique().rows()
    )


@given(worlds(items=ITEMS, users=20, most=3), st.sampled_from([1, 2, 4, 8]))
@hypothesis_settings(max_examples=40)
def test_parts_are_the_whole_and_hold_the_users_of_a_range_of_hashes(
    world: dict[str, list[Row]], of: int
) -> None:
    found = frame(world, ITEMS)
    parts = [
        EncodedInteractions.from_frame(found).select_hash_range(number, of) for number in range(of)
    ]
    same(pl.concat([part.to_frame() for part in parts]), found)
    for number, part in enumerate(parts):
        hashes = hashing.hash_strings(part.users["user_id"])
        assert set(hashing.hash_range_indices(hashes, of)) <= {number}
        assert np.array_equal(hashes.view(np.int64), part.users["user_hash"].to_numpy())
        same(EncodedInteractions.from_frame(part.to_frame()).to_frame(), part.to_frame())


@given(worlds(items=ITEMS), worlds(items=ITEMS), st.sets(st.integers(0, 7)))
@hypothesis_settings(max_examples=40)
def test_parts_that_were_numbered_apart_are_merged(
    one: dict[str, list[Row]], other: dict[str, list[Row]], users: set[int]
) -> None:
    names = pl.Series([f"u{user}" for user in users], dtype=pl.String)
    first, second = (
        frame(one, ITEMS),
        frame(other, ITEMS).with_columns(version=pl.lit(1, pl.Int32), split=pl.lit(2, pl.Int8)),
    )
    whole = EncodedInteractions.concat(
        [EncodedInteractions.from_frame(first), EncodedInteractions.from_frame(second)]
    )
    wanted = pl.concat([first, second])
    same(whole.to_frame(), wanted)
    assert whole.rows["user"].is_sorted()
    for name in ("users", "items"):
        assert getattr(whole, name).equals(getattr(EncodedInteractions.from_frame(wanted), name))
    theirs = whole.filter_users(names)
    same(theirs.to_frame(), wanted.filter(pl.col("user_id").is_in(names.implode())))
    assert set(theirs.users["user_id"]) == set(theirs.to_frame()["user_id"])
    assert theirs.rows["user"].is_sorted()


@given(worlds(items=ITEMS), st.integers(1, 50))
@hypothesis_settings(max_examples=40)
def test_sizes_are_counted_over_slices(world: dict[str, list[Row]], at_a_time: int) -> None:
    found = frame(world, ITEMS).with_columns(
        split=pl.when(pl.col("timestamp") < 6).then(0).cast(pl.Int8)
    )
    numbers = EncodedInteractions.from_frame(found)
    before, encoded_interactions.COUNT_BATCH_ROWS = encoded_interactions.COUNT_BATCH_ROWS, at_a_time
    try:
        sizes = numbers.user_domain_counts
    finally:
        encoded_interactions.COUNT_BATCH_ROWS = before
    counted = found.group_by("user_id", "domain").agg(
        size=pl.len().cast(pl.Int64), new=pl.col("split").is_null().sum().cast(pl.Int64)
    )
    same(sizes.with_columns(user_id=numbers.users["user_id"].gather(sizes["user"])), counted)


@given(worlds(items=ITEMS))
@hypothesis_settings(max_examples=40)
def test_domains_that_were_numbered_apart_are_joined(world: dict[str, list[Row]]) -> None:
    found = frame(world, ITEMS)
    whole = EncodedInteractions.from_frame(found)
    domains = []
    for domain in world:
        rows = found.filter(pl.col("domain") == domain)
        names = rows["user_id"].unique()
        items = encode_values(rows["item_id"], whole.items["item_id"])
        domains.append(
            (
                pl.DataFrame(
                    {
                        "user": encode_values(rows["user_id"], names),
                        "item": items,
                        "timestamp": rows["timestamp"],
                    }
                ),
                names,
            )
        )
    same(
        EncodedInteractions.from_domains(
            domains, whole.items.with_columns(pl.col("domain").cast(pl.String))
        ).to_frame(),
        found,
    )


def test_names_that_nothing_stands_for_are_left_out() -> None:
    numbers, names = remove_unused_categories(
        pl.Series([3, 1, 3], dtype=pl.UInt32), pl.Series(["a", "b", "c", "d"])
    )
    assert names.to_list() == ["b", "d"]
    assert numbers.to_list() == [1, 0, 1]
    assert encode_values(pl.Series(["d", "x"]), names).to_list() == [1, None]
