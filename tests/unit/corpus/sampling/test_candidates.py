from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.sampling import candidates
from corpus.sampling.candidates import InteractedItems, draw_candidates
from corpus.sampling.hashing import hash_integers, hash_strings, splitmix64

NUM_ITEMS = 30
NUM_CANDIDATES = 20


@st.composite
def purchases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(user, item) of up to 5 users, who each bought at most 11 of 30 items and left 19."""
    pairs = [
        (user, item)
        for user in range(5)
        for item in draw(st.sets(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=11))
    ]
    user, item = np.array(pairs).T
    return user, item


@given(purchases(), st.integers(0, 2**63))
def test_candidates_are_distinct_items_that_the_user_never_bought_and_the_target(
    bought: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    user, item = bought
    drawn, position = draw_candidates(
        hash_integers(seed, user, item),
        user,
        item,
        InteractedItems.from_interactions(user, item, NUM_ITEMS),
        NUM_CANDIDATES,
    )
    bought_by = {u: set(item[user == u]) for u in user}
    for row, u in enumerate(user):
        assert len(set(drawn[row])) == NUM_CANDIDATES
        assert drawn[row, position[row]] == item[row]
        assert not (set(drawn[row]) - {item[row]}) & bought_by[u]
        assert set(drawn[row]) <= set(range(NUM_ITEMS))


@given(purchases())
def test_a_target_has_the_same_candidates_in_any_order_and_partition(
    bought: tuple[np.ndarray, np.ndarray],
) -> None:
    user, item = bought
    whole, positions = draw_candidates(
        hash_integers(7, user, item),
        user,
        item,
        InteractedItems.from_interactions(user, item, NUM_ITEMS),
        NUM_CANDIDATES,
    )
    for u in np.unique(user):
        rows = np.flatnonzero(user == u)[::-1]
        part, position = draw_candidates(
            hash_integers(7, user[rows], item[rows]),
            user[rows],
            item[rows],
            InteractedItems.from_interactions(user[rows], item[rows], NUM_ITEMS),
            NUM_CANDIDATES,
        )
        assert np.array_equal(part, whole[rows])
        assert np.array_equal(position, positions[rows])


@given(purchases(), st.integers(0, 2**63), st.integers(1, NUM_CANDIDATES))
def test_rows_drawn_at_once_equal_rows_drawn_item_by_item(
    bought: tuple[np.ndarray, np.ndarray], seed: int, count: int
) -> None:
    """With few candidates of 30 items, about half of the rows have no rejected draw."""
    user, item = bought
    drawn, position = draw_candidates(
        hash_integers(seed, user, item),
        user,
        item,
        InteractedItems.from_interactions(user, item, NUM_ITEMS),
        count,
    )
    for row, key in enumerate(hash_integers(seed, user, item)):
        chosen: list[int] = []
        number = 0
        while len(chosen) < count - 1:
            drawn_item = int(hash_integers(key, number)[0] % NUM_ITEMS)
            if drawn_item not in chosen and drawn_item not in item[user == user[row]]:
                chosen.append(drawn_item)
            number += 1
        chosen.append(chosen[position[row]] if position[row] < count - 1 else -1)
        chosen[position[row]] = item[row]
        assert drawn[row].tolist() == chosen


def test_an_item_that_shares_a_filter_slot_with_an_interaction_is_not_contained() -> None:
    """The filter has fewer slots than there are items here, so slots are shared."""
    user, item = np.zeros(1_000_000, np.int64), np.arange(0, 6_000_000, 6)
    bought = InteractedItems.from_interactions(user, item, 6_000_000)
    assert bought.contains(user, item).all()
    assert not bought.contains(user, item + 1).any()
    assert bought.min_remaining_items() == 5_000_000


def test_the_seed_changes_candidates_and_target_positions() -> None:
    user = np.zeros(200, np.int64)
    item = np.arange(200)
    one, two = (
        draw_candidates(
            hash_integers(seed, user, item),
            user,
            item,
            InteractedItems.from_interactions(user[:5], item[:5], 10_000),
            NUM_CANDIDATES,
        )
        for seed in (1, 2)
    )
    assert (one[0] == two[0]).mean() < 0.01
    assert (one[1] == two[1]).mean() < 0.15


def test_target_positions_and_negatives_are_uniform() -> None:
    targets = np.arange(100_000) % NUM_ITEMS
    user = np.arange(100_000)
    drawn, position = draw_candidates(
        hash_integers(3, user),
        user,
        targets,
        InteractedItems.from_interactions(user, targets, NUM_ITEMS),
        5,
    )
    assert np.abs(np.bincount(position, minlength=5) / 20_000 - 1).max() < 0.05
    assert (
        np.abs(
            np.bincount(drawn.reshape(-1), minlength=NUM_ITEMS) / (500_000 / NUM_ITEMS) - 1
        ).max()
        < 0.05
    )


def test_all_remaining_items_are_drawn_if_there_are_just_enough() -> None:
    user, item = np.zeros(11, np.int64), np.arange(11)
    drawn, _ = draw_candidates(
        hash_integers(0, item),
        user,
        item,
        InteractedItems.from_interactions(user, item, NUM_ITEMS),
        NUM_CANDIDATES,
    )
    assert all(set(row) - set(range(11)) == set(range(11, 30)) for row in drawn)


def test_too_few_remaining_items_raise_an_error_instead_of_drawing_for_ever() -> None:
    user, item = np.zeros(12, np.int64), np.arange(12)
    with pytest.raises(ValueError, match="18 items of 30; 19 negatives"):
        draw_candidates(
            hash_integers(0, item),
            user,
            item,
            InteractedItems.from_interactions(user, item, NUM_ITEMS),
            NUM_CANDIDATES,
        )


def test_hashes_never_change() -> None:
    """A published value of splitmix64, and a hash that existing corpora are built from."""
    assert splitmix64(np.zeros(1, np.uint64))[0] == 0xE220A8397B1DCDAF
    assert hash_strings(["mixed"])[0] == 0x12D0026340259D80


@pytest.mark.parametrize("left", [19, 25])
def test_who_bought_nearly_everything_gets_candidates_in_a_bounded_number_of_draws(
    left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_items = 10_040
    item = np.arange(num_items - left)
    interacted = InteractedItems.from_interactions(np.zeros_like(item), item, num_items)
    targets = item[::100]
    calls: list[int] = []
    draw_items = candidates._draw_items

    def count_draws(*arguments: Any) -> np.ndarray:
        calls.append(1)
        return draw_items(*arguments)

    monkeypatch.setattr(candidates, "_draw_items", count_draws)
    key = hash_integers(7, 0, targets)
    drawn, position = draw_candidates(key, np.zeros_like(targets), targets, interacted, 20)
    assert len(calls) <= candidates.MAX_DRAWS + 1
    rows = np.arange(len(targets))
    assert (drawn[rows, position] == targets).all()
    drawn[rows, position] = -1
    for row in drawn:
        negatives = set(row) - {-1}
        assert len(negatives) == 19
        assert negatives <= set(range(num_items - left, num_items))
    alone, _ = draw_candidates(key[3:4], np.zeros(1, int), targets[3:4], interacted, 20)
    assert set(alone[0]) - {targets[3]} == set(drawn[3]) - {-1}


def test_negatives_that_are_chosen_without_rejection_are_uniform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "MAX_DRAWS", 0)
    user = np.zeros(4000, np.int64)
    interacted = InteractedItems.from_interactions(user[:1], user[:1], 40)
    key = hash_integers(3, np.arange(4000))
    chosen = candidates._draw_with_rejection(key, user, interacted, 19)
    counts = np.bincount(chosen.ravel(), minlength=40)
    expected = 4000 * 19 / 39
    assert counts[0] == 0
    assert (abs(counts[1:] - expected) < 6 * expected**0.5).all()
    assert len(set(chosen[:, 0])) == 39
