import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.sampling.candidates import InteractedItems, draw_candidates
from corpus.sampling.hashing import hash_integers, hash_strings, splitmix64

ITEMS, COUNT = 30, 20


@st.composite
def purchases(draw_: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(user, item) of up to 5 users that each bought at most 11 of 30 items: 19 are left."""
    pairs = [
        (user, item)
        for user in range(5)
        for item in draw_(st.sets(st.integers(0, ITEMS - 1), min_size=1, max_size=11))
    ]
    user, item = np.array(pairs).T
    return user, item


@given(purchases(), st.integers(0, 2**63))
def test_distinct_with_the_target_in_its_place_and_never_interacted(
    bought: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    user, item = bought
    drawn, place = draw_candidates(
        hash_integers(seed, user, item),
        user,
        item,
        InteractedItems.from_interactions(user, item, ITEMS),
        COUNT,
    )
    had = {u: set(item[user == u]) for u in user}
    for row, u in enumerate(user):
        assert len(set(drawn[row])) == COUNT
        assert drawn[row, place[row]] == item[row]
        assert not (set(drawn[row]) - {item[row]}) & had[u]
        assert set(drawn[row]) <= set(range(ITEMS))


@given(purchases())
def test_a_target_has_the_same_candidates_in_any_order_and_partition(
    bought: tuple[np.ndarray, np.ndarray],
) -> None:
    user, item = bought
    whole, places = draw_candidates(
        hash_integers(7, user, item),
        user,
        item,
        InteractedItems.from_interactions(user, item, ITEMS),
        COUNT,
    )
    for u in np.unique(user):
        rows = np.flatnonzero(user == u)[::-1]
        part, place = draw_candidates(
            hash_integers(7, user[rows], item[rows]),
            user[rows],
            item[rows],
            InteractedItems.from_interactions(user[rows], item[rows], ITEMS),
            COUNT,
        )
        assert np.array_equal(part, whole[rows])
        assert np.array_equal(place, places[rows])


@given(purchases(), st.integers(0, 2**63), st.integers(1, COUNT))
def test_rows_that_are_drawn_at_once_are_as_those_drawn_one_by_one(
    bought: tuple[np.ndarray, np.ndarray], seed: int, count: int
) -> None:
    """With few candidates of 30 items about half of the rows have nothing refused."""
    user, item = bought
    drawn, place = draw_candidates(
        hash_integers(seed, user, item),
        user,
        item,
        InteractedItems.from_interactions(user, item, ITEMS),
        count,
    )
    for row, key in enumerate(hash_integers(seed, user, item)):
        chosen: list[int] = []
        number = 0
        while len(chosen) < count - 1:
            one = int(hash_integers(key, number)[0] % ITEMS)
            if one not in chosen and one not in item[user == user[row]]:
                chosen.append(one)
            number += 1
        chosen.append(chosen[place[row]] if place[row] < count - 1 else -1)
        chosen[place[row]] = item[row]
        assert drawn[row].tolist() == chosen


def test_an_item_that_shares_a_mark_with_an_interaction_is_none() -> None:
    """Marks are fewer than keys here, so some are shared."""
    user, item = np.zeros(1_000_000, np.int64), np.arange(0, 6_000_000, 6)
    bought = InteractedItems.from_interactions(user, item, 6_000_000)
    assert bought.contains(user, item).all()
    assert not bought.contains(user, item + 1).any()
    assert bought.min_remaining_items() == 5_000_000


def test_the_seed_changes_candidates_and_places() -> None:
    user = np.zeros(200, np.int64)
    item = np.arange(200)
    one, two = (
        draw_candidates(
            hash_integers(seed, user, item),
            user,
            item,
            InteractedItems.from_interactions(user[:5], item[:5], 10_000),
            COUNT,
        )
        for seed in (1, 2)
    )
    assert (one[0] == two[0]).mean() < 0.01
    assert (one[1] == two[1]).mean() < 0.15


def test_places_and_negatives_are_uniform() -> None:
    targets = np.arange(100_000) % ITEMS
    user = np.arange(100_000)
    drawn, place = draw_candidates(
        hash_integers(3, user),
        user,
        targets,
        InteractedItems.from_interactions(user, targets, ITEMS),
        5,
    )
    assert np.abs(np.bincount(place, minlength=5) / 20_000 - 1).max() < 0.05
    assert (
        np.abs(np.bincount(drawn.reshape(-1), minlength=ITEMS) / (500_000 / ITEMS) - 1).max() < 0.05
    )


def test_exactly_as_many_left_as_wanted_are_all_drawn() -> None:
    user, item = np.zeros(11, np.int64), np.arange(11)
    drawn, _ = draw_candidates(
        hash_integers(0, item),
        user,
        item,
        InteractedItems.from_interactions(user, item, ITEMS),
        COUNT,
    )
    assert all(set(row) - set(range(11)) == set(range(11, 30)) for row in drawn)


def test_too_few_left_is_refused_rather_than_drawn_for_ever() -> None:
    user, item = np.zeros(12, np.int64), np.arange(12)
    with pytest.raises(ValueError, match="18 items of 30; 19 negatives"):
        draw_candidates(
            hash_integers(0, item),
            user,
            item,
            InteractedItems.from_interactions(user, item, ITEMS),
            COUNT,
        )


def test_hashes_are_what_they_were() -> None:
    """Published values of splitmix64; and ids that corpora in the world are made of."""
    assert splitmix64(np.zeros(1, np.uint64))[0] == 0xE220A8397B1DCDAF
    assert hash_strings(["mixed"])[0] == 0x12D0026340259D80
