"""Samples against an independent, slow implementation of the rules."""

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
from tests.unit.corpus.brute import samples_of as slow_samples
from tests.unit.corpus.worlds import Row, catalogue, frame, settings, worlds

ITEMS = 14
DOMAINS = ("A", "B", "C")

rules = st.builds(
    lambda min_history, extra_history, min_domains, min_target_domain: settings(
        min_history=min_history,
        max_history=min_history + extra_history,
        mixed_min_domains=min_domains,
        mixed_min_target_domain=min_target_domain,
    ),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(0, 2),
)


def name(index: int) -> str:
    return f"{DOMAINS[index // ITEMS]}{index % ITEMS:02d}"


def decoded_samples(table: pa.Table) -> Counter[tuple[str, str, tuple[str, ...], str, int]]:
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


def sorted_rows(samples: Samples) -> dict[tuple[str, str], list[dict[str, Any]]]:
    return {
        key: sorted(table.to_pylist(), key=lambda r: r["sample_id"])
        for key, table in samples.tables.items()
        if table.num_rows
    }


@given(worlds(DOMAINS, items=ITEMS), rules)
@hypothesis_settings(max_examples=60)
def test_samples_equal_those_of_the_slow_implementation(
    world: dict[str, list[Row]], data: DataSettings
) -> None:
    samples = build_samples(
        EncodedInteractions.from_frame(frame(world, ITEMS)), catalogue(DOMAINS, ITEMS), data, seed=3
    )
    expected, dropped = slow_samples(world, data)
    decoded = {
        key: decoded_samples(table) for key, table in samples.tables.items() if table.num_rows
    }
    assert decoded == expected
    assert +samples.dropped == dropped
    assert samples.mixed_users == len({row[0] for row in expected.get((MIXED, "train"), ())})


@given(worlds(DOMAINS, items=ITEMS), st.sampled_from([1, 2, 4]), st.integers(0, 1000))
@hypothesis_settings(max_examples=40)
def test_samples_do_not_depend_on_the_order_or_partition_of_interactions(
    world: dict[str, list[Row]], num_parts: int, order_seed: int
) -> None:
    interactions = frame(world, ITEMS)
    items = catalogue(DOMAINS, ITEMS)
    data = settings()
    whole = build_samples(EncodedInteractions.from_frame(interactions), items, data, seed=3)
    shuffled = interactions.sample(fraction=1.0, shuffle=True, seed=order_seed)
    encoded = EncodedInteractions.from_frame(shuffled)
    parts = [
        build_samples(encoded.select_hash_range(number, num_parts), items, data, seed=3)
        for number in range(num_parts)
    ]
    keys = {key for part in parts for key in part.tables}
    tables = {
        key: pa.concat_tables([part.tables[key] for part in parts if key in part.tables])
        for key in keys
    }
    new_interactions = pa.concat_tables(
        [part.new_interactions for part in parts] or [whole.new_interactions.slice(0, 0)]
    )
    by_user = [("user_hash", "ascending"), ("user_id", "ascending")]
    assert new_interactions.sort_by(by_user).num_rows == whole.new_interactions.num_rows
    joined = Samples(
        tables,
        new_interactions,
        sum(part.mixed_users for part in parts),
        sum((part.dropped for part in parts), Counter()),
    )
    assert sorted_rows(joined) == sorted_rows(whole)
    assert +joined.dropped == +whole.dropped
    assert joined.mixed_users == whole.mixed_users


@given(worlds(DOMAINS, items=ITEMS), rules)
@hypothesis_settings(max_examples=40)
def test_training_samples_have_no_item_of_validation_test_or_held_out_domains(
    world: dict[str, list[Row]], data: DataSettings
) -> None:
    """Every item of a training sample is a training interaction of its user."""
    samples = build_samples(
        EncodedInteractions.from_frame(frame(world, ITEMS)), catalogue(DOMAINS, ITEMS), data, seed=3
    )
    training: set[tuple[str, str]] = set()
    for domain in data.domains:
        for user in {row[0] for row in world[domain]}:
            sequence = sorted((time, item) for u, item, time in world[domain] if u == user)
            training |= {(user, item) for _, item in sequence[:-2]}
    for (source, split), table in samples.tables.items():
        if split != "train" or source.startswith("downstream/"):
            continue
        for user, _, history, target, _ in decoded_samples(table):
            assert {(user, item) for item in (*history, target)} <= training
            assert not any(item.startswith(data.held_out) for item in (*history, target))


@given(worlds(DOMAINS, items=ITEMS), rules)
@hypothesis_settings(max_examples=40)
def test_every_row_is_well_formed(world: dict[str, list[Row]], data: DataSettings) -> None:
    items = catalogue(DOMAINS, ITEMS)
    bought = {
        (user, domain, int(item[1:])) for domain, rows in world.items() for user, item, _ in rows
    }
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
                (row["user_id"], row["domain"], c % ITEMS) in bought
                for c in row["candidates"]
                if c != target
            )
            assert data.min_history <= len(row["history"]) <= data.max_history
    assert len(set(ids)) == len(ids)


@given(worlds(DOMAINS, items=ITEMS), rules)
@hypothesis_settings(max_examples=40)
def test_max_sample_counts_are_exact_for_domains_and_upper_bounds_for_mixed(
    world: dict[str, list[Row]], data: DataSettings
) -> None:
    encoded = EncodedInteractions.from_frame(frame(world, ITEMS))
    bounds = max_sample_counts(encoded.user_domain_counts, data)
    samples = build_samples(encoded, catalogue(DOMAINS, ITEMS), data, seed=3)
    for key, table in samples.tables.items():
        assert table.num_rows <= bounds[key]
        assert key[0] == MIXED or table.num_rows == bounds[key]


def test_the_seed_changes_candidates_but_not_ids() -> None:
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


def test_ids_and_candidates_never_change() -> None:
    """Existing corpora depend on them; a change must raise `corpus.fingerprints.RULES_VERSION`."""
    world: dict[str, list[Row]] = {"A": [("u", f"A{i:02d}", i) for i in range(8)], "B": [], "C": []}
    table = build_samples(
        EncodedInteractions.from_frame(frame(world, ITEMS)),
        catalogue(DOMAINS, ITEMS),
        settings(),
        seed=0,
    ).tables["domain/A", "train"]
    assert table.select(["sample_id", "candidates", "target"]).slice(0, 2).to_pylist() == PINNED


@given(worlds(DOMAINS, items=ITEMS), rules)
@hypothesis_settings(max_examples=40)
def test_users_together_gives_the_same_samples_by_user_and_time(
    world: dict[str, list[Row]], data: DataSettings
) -> None:
    interactions = frame(world, ITEMS)
    items = catalogue(DOMAINS, ITEMS)
    apart = build_samples(EncodedInteractions.from_frame(interactions), items, data, seed=3).tables
    together = build_samples(
        EncodedInteractions.from_frame(interactions),
        items,
        data.model_copy(update={"users_together": True}),
        seed=3,
    ).tables
    assert apart.keys() == together.keys()
    for key, table in together.items():
        columns = ("domain", "user_id", "history", "candidates", "target", "timestamp")
        assert sorted(map(str, table.select(columns).to_pylist())) == sorted(
            map(str, apart[key].select(columns).to_pylist())
        )
        ids = table["sample_id"].to_numpy().view(np.uint64)
        users = table["user_id"].to_pylist()
        assert np.all(ids[1:] > ids[:-1])
        assert _first_occurrence_numbers(users) == _first_occurrence_numbers(
            group_bits(ids).tolist()
        )
        assert len({user for user, _ in itertools.groupby(users)}) == len(
            list(itertools.groupby(users))
        )
        by_time = [
            (user, time) for user, time in zip(users, table["timestamp"].to_pylist(), strict=True)
        ]
        assert all(a[1] <= b[1] for a, b in itertools.pairwise(by_time) if a[0] == b[0])


def _first_occurrence_numbers(names: Sequence[object]) -> list[int]:
    """Numbers names in the order of their first occurrence."""
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
def test_member_ids_are_unique_and_share_the_bits_of_their_group(
    groups: list[tuple[int, int]],
) -> None:
    hashes = np.array([group for group, size in groups for _ in range(size)], np.uint64)
    ids = member_ids(hashes, np.concatenate([np.arange(size) for _, size in groups]))
    assert len(np.unique(ids)) == len(ids)
    assert np.array_equal(group_bits(ids), hashes >> np.uint64(24))


def test_member_ids_of_groups_that_share_40_bits_are_unique() -> None:
    low, high = (
        member_ids(np.full(1000, 0xABCDEF << 40 | offset, np.uint64), np.arange(1000))
        for offset in (7, 2007)
    )
    assert len(np.unique([*low, *high])) == 2000


def test_an_empty_partition_has_no_samples() -> None:
    empty = EncodedInteractions.from_frame(frame({"A": [], "B": [], "C": []}, ITEMS))
    samples = build_samples(empty, catalogue(DOMAINS, ITEMS), settings(), seed=0)
    assert all(table.num_rows == 0 for table in samples.tables.values())
    assert np.sum(list(max_sample_counts(empty.user_domain_counts, settings()).values())) == 0


PINNED = [
    {"sample_id": 293488305659027519, "candidates": [4, 13, 9, 11, 10], "target": 0},
    {"sample_id": 7692000238770396265, "candidates": [13, 3, 9, 11, 8], "target": 1},
]
