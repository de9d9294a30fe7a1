"""The corpus's rows against an independent, slow reading of the rules."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from corpus.sampling.encoded_interactions import EncodedInteractions
from corpus.sampling.hashing import group_bits, member_ids
from corpus.sampling.samples import Samples, build_samples, max_sample_counts
from corpus.sampling.source import MIXED
from corpus.settings import DataSettings
from tests.unit.corpus.brute import samples_of as slowly
from tests.unit.corpus.worlds import Row, catalogue, frame, settings, worlds

ITEMS = 14
DOMAINS = ("A", "B", "C")

rules = st.builds(
    lambda low, more, span, related: settings(
        min_history=low,
        max_history=low + more,
        mixed_min_domains=span,
        mixed_min_target_domain=related,
    ),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(0, 2),
)


def name(index: int) -> str:
    return f"{DOMAINS[index // ITEMS]}{index % ITEMS:02d}"


def seen(table: pa.Table) -> Counter[tuple[str, str, tuple[str, ...], str, int]]:
    return Counter(
        (
            r["user_id"],
            r["domain"],
            tuple(map(name, r["history"])),
            name(r["candidates"][r["target"]]),
            r["timestamp"],
        )
        for r in table.to_pylist()
    )


def rows(samples: Samples) -> dict[tuple[str, str], list[dict[str, Any]]]:
    return {
        key: sorted(table.to_pylist(), key=lambda r: r["sample_id"])
        for key, table in samples.tables.items()
        if table.num_rows
    }


@given(worlds(DOMAINS, items=ITEMS), rules)
@hypothesis_settings(max_examples=60)
def test_as_the_slow_reading_says(world: dict[str, list[Row]], data: DataSettings) -> None:
    made = build_samples(
        EncodedInteractions.from_frame(frame(world, ITEMS)), catalogue(DOMAINS, ITEMS), data, seed=3
    )
    found, dropped = slowly(world, data)
    assert {key: seen(table) for key, table in made.tables.items() if table.num_rows} == found
    assert +made.dropped == dropped
    assert made.mixed_users == len({sample[0] for sample in found.get((MIXED, "train"), ())})


@given(worlds(DOMAINS, items=ITEMS), st.sampled_from([1, 2, 4]), st.integers(0, 1000))
@hypothesis_settings(max_examples=40)
def test_the_same_rows_in_any_order_and_partition(
    world: dict[str, list[Row]], parts: int, order: int
) -> None:
    found, items, data = frame(world, ITEMS), catalogue(DOMAINS, ITEMS), settings()
    whole = build_samples(EncodedInteractions.from_frame(found), items, data, seed=3)
    coded = EncodedInteractions.from_frame(found.sample(fraction=1.0, shuffle=True, seed=order))
    pieces = [
        build_samples(coded.select_hash_range(number, parts), items, data, seed=3)
        for number in range(parts)
    ]
    keys = {key for piece in pieces for key in piece.tables}
    joined = {
        key: pa.concat_tables([piece.tables[key] for piece in pieces if key in piece.tables])
        for key in keys
    }
    kept = pa.concat_tables(
        [piece.new_interactions for piece in pieces] or [whole.new_interactions.slice(0, 0)]
    )
    assert (
        kept.sort_by([("user_hash", "ascending"), ("user_id", "ascending")]).num_rows
        == whole.new_interactions.num_rows
    )
    summed = Samples(
        joined,
        kept,
        sum(piece.mixed_users for piece in pieces),
        sum((piece.dropped for piece in pieces), Counter()),
    )
    assert rows(summed) == rows(whole)
    assert +summed.dropped == +whole.dropped
    assert summed.mixed_users == whole.mixed_users


@given(worlds(DOMAINS, items=ITEMS), rules)
@hypothesis_settings(max_examples=40)
def test_nothing_of_validation_test_or_held_out_domains_is_in_training(
    world: dict[str, list[Row]], data: DataSettings
) -> None:
    """Every item of a training sample was bought by its user in the training split of its domain."""
    made = build_samples(
        EncodedInteractions.from_frame(frame(world, ITEMS)), catalogue(DOMAINS, ITEMS), data, seed=3
    )
    training: set[tuple[str, str]] = set()
    for domain in data.domains:
        for user in {row[0] for row in world[domain]}:
            training |= {
                (user, item)
                for _, item in sorted((time, item) for u, item, time in world[domain] if u == user)[
                    :-2
                ]
            }
    for (source, split), table in made.tables.items():
        if split != "train" or source.startswith("downstream/"):
            continue
        for user, _, history, target, _ in seen(table):
            assert {(user, item) for item in (*history, target)} <= training
            assert not any(item.startswith(data.held_out) for item in (*history, target))


@given(worlds(DOMAINS, items=ITEMS), rules)
@hypothesis_settings(max_examples=40)
def test_every_row_is_well_formed(world: dict[str, list[Row]], data: DataSettings) -> None:
    items = catalogue(DOMAINS, ITEMS)
    had = {(user, domain, int(item[1:])) for domain, of in world.items() for user, item, _ in of}
    ids = []
    for table in build_samples(
        EncodedInteractions.from_frame(frame(world, ITEMS)), items, data, seed=3
    ).tables.values():
        for row in table.to_pylist():
            ids.append(row["sample_id"])
            target = row["candidates"][row["target"]]
            assert len(set(row["candidates"])) == data.num_candidates == len(row["candidates"])
            assert set(row["candidates"]) <= set(items[row["domain"]])
            assert not any(
                (row["user_id"], row["domain"], c % ITEMS) in had
                for c in row["candidates"]
                if c != target
            )
            assert data.min_history <= len(row["history"]) <= data.max_history
    assert len(set(ids)) == len(ids)


@given(worlds(DOMAINS, items=ITEMS), rules)
@hypothesis_settings(max_examples=40)
def test_bounds_are_exact_for_domains_and_hold_for_mixed(
    world: dict[str, list[Row]], data: DataSettings
) -> None:
    found = EncodedInteractions.from_frame(frame(world, ITEMS))
    bounds = max_sample_counts(found.user_domain_counts, data)
    for key, table in build_samples(found, catalogue(DOMAINS, ITEMS), data, seed=3).tables.items():
        assert table.num_rows <= bounds[key]
        assert key[0] == MIXED or table.num_rows == bounds[key]


def test_identities_do_not_depend_on_seed_or_rules_but_candidates_do() -> None:
    world: dict[str, list[Row]] = {"A": [("u", f"A{i:02d}", i) for i in range(8)], "B": [], "C": []}
    one, two = (
        build_samples(
            EncodedInteractions.from_frame(frame(world, ITEMS)),
            catalogue(DOMAINS, ITEMS),
            settings(),
            seed,
        ).tables["domain/A", "train"]
        for seed in (0, 1)
    )
    assert one["sample_id"].equals(two["sample_id"])
    assert not one["candidates"].equals(two["candidates"])


def test_ids_and_candidates_are_what_they_were() -> None:
    """Corpora in the world are made of them: they must not change without `corpus.build.RULES` going up."""
    world: dict[str, list[Row]] = {"A": [("u", f"A{i:02d}", i) for i in range(8)], "B": [], "C": []}
    table = build_samples(
        EncodedInteractions.from_frame(frame(world, ITEMS)),
        catalogue(DOMAINS, ITEMS),
        settings(),
        seed=0,
    ).tables["domain/A", "train"]
    found = table.select(["sample_id", "candidates", "target"]).slice(0, 2).to_pylist()
    assert found == PINNED


@given(worlds(DOMAINS, items=ITEMS), rules)
@hypothesis_settings(max_examples=40)
def test_users_together_are_the_same_samples_user_by_user_in_time_order(
    world: dict[str, list[Row]], data: DataSettings
) -> None:
    found, items = frame(world, ITEMS), catalogue(DOMAINS, ITEMS)
    apart = build_samples(EncodedInteractions.from_frame(found), items, data, seed=3).tables
    together = build_samples(
        EncodedInteractions.from_frame(found),
        items,
        data.model_copy(update={"users_together": True}),
        seed=3,
    ).tables
    assert apart.keys() == together.keys()
    for key, table in together.items():
        others = ("domain", "user_id", "history", "candidates", "target", "timestamp")
        assert sorted(map(str, table.select(others).to_pylist())) == sorted(
            map(str, apart[key].select(others).to_pylist())
        )
        ids, users = table["sample_id"].to_numpy().view(np.uint64), table["user_id"].to_pylist()
        assert np.all(ids[1:] > ids[:-1])
        assert _first_seen(users) == _first_seen(group_bits(ids).tolist())
        assert len({user for user, _ in itertools.groupby(users)}) == len(
            list(itertools.groupby(users))
        )
        by_time = [
            (user, time) for user, time in zip(users, table["timestamp"].to_pylist(), strict=True)
        ]
        assert all(a[1] <= b[1] for a, b in itertools.pairwise(by_time) if a[0] == b[0])


def _first_seen(names: Sequence[object]) -> list[int]:
    """Names by the order in which they come first."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 300)),
        min_size=1,
        max_size=8,
        unique_by=lambda g: g[0] >> 24,
    )
)
def test_members_of_a_group_have_ids_of_their_own_side_by_side(
    groups: list[tuple[int, int]],
) -> None:
    hashes = np.array([group for group, size in groups for _ in range(size)], np.uint64)
    ids = member_ids(hashes, np.concatenate([np.arange(size) for _, size in groups]))
    assert len(np.unique(ids)) == len(ids)
    assert np.array_equal(group_bits(ids), hashes >> np.uint64(24))


def test_members_of_two_groups_that_agree_in_40_bits_stay_apart() -> None:
    low, high = (
        member_ids(np.full(1000, 0xABCDEF << 40 | offset, np.uint64), np.arange(1000))
        for offset in (7, 2007)
    )
    assert len(np.unique([*low, *high])) == 2000


def test_an_empty_partition_makes_no_sample() -> None:
    empty = EncodedInteractions.from_frame(frame({"A": [], "B": [], "C": []}, ITEMS))
    made = build_samples(empty, catalogue(DOMAINS, ITEMS), settings(), seed=0)
    assert all(table.num_rows == 0 for table in made.tables.values())
    assert np.sum(list(max_sample_counts(empty.user_domain_counts, settings()).values())) == 0


PINNED = [
    {"sample_id": 293488305659027519, "candidates": [4, 13, 9, 11, 10], "target": 0},
    {"sample_id": 7692000238770396265, "candidates": [13, 3, 9, 11, 8], "target": 1},
]
