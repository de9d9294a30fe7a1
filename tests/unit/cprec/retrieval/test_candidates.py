"""Tests how candidates of several sources are blended."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cprec.retrieval.candidates import NO_ITEM, FusedSource, Items, take_first

ITEMS = 12
FLOOR = np.arange(ITEMS)[::-1].copy()

histories = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=5), min_size=1, max_size=4)
rankings = st.lists(st.permutations(range(ITEMS)), max_size=3)


@dataclass(frozen=True)
class Fixed:
    """A source with one ranking for everybody, of which it knows the first `known`."""

    ranking: Sequence[int]
    known: int = ITEMS

    def find(self, histories: Sequence[Sequence[int]], k: int) -> Items:
        row = [*self.ranking[: self.known][:k]]
        row += [NO_ITEM] * (k - len(row))
        return np.array([row] * len(histories)).reshape(len(histories), k)


def brute(sources: Sequence[Fixed], history: Sequence[int], k: int) -> list[int]:
    """The blend, one item at a time."""
    scores: dict[int, float] = {}
    for source in sources:
        for rank, item in enumerate(source.ranking[: source.known], 1):
            scores[item] = scores.get(item, 0) + 1 / (60 + rank)
    fused = sorted(scores, key=lambda item: (-round(scores[item], 12), item))
    order = list(dict.fromkeys([*fused, *FLOOR.tolist()]))
    return [item for item in order if item not in history][:k]


@given(rankings, st.integers(0, ITEMS), histories, st.integers(1, ITEMS + 3))
def test_a_blend_fuses_without_repeats_and_the_fallback_fills_it(
    orders: list[list[int]], known: int, histories: list[list[int]], k: int
) -> None:
    sources = [Fixed(order, known) for order in orders]
    found = FusedSource(sources, FLOOR).find(histories, k)
    assert found.shape == (len(histories), min(k, ITEMS))
    for row, history in zip(found.tolist(), histories, strict=True):
        assert len(set(row)) == len(row)
        assert NO_ITEM not in row
        new = [item for item in row if item not in history]
        # Items of the history come only when no other is left, and then last.
        assert len(new) == min(k, ITEMS, ITEMS - len(set(history)))
        assert row[: len(new)] == new
        assert new == brute(sources, history, min(k, ITEMS))[: len(new)]


@given(rankings, histories, st.integers(1, ITEMS))
def test_more_candidates_contain_the_fewer(
    orders: list[list[int]], histories: list[list[int]], k: int
) -> None:
    """So recall@k never falls with k."""
    blend = FusedSource([Fixed(order) for order in orders], FLOOR)
    fewer, more = (blend.find(histories, size) for size in (k, ITEMS))
    np.testing.assert_array_equal(fewer, more[:, :k])


def test_histories_may_be_kept() -> None:
    blend = FusedSource([Fixed([3, 4, 5])], FLOOR, exclude_history=False)
    assert blend.find([[3]], 2).tolist() == [[3, 4]]


def test_what_is_missing_is_no_item() -> None:
    rows = np.array([[7, 7, NO_ITEM, 2]])
    assert take_first(rows, [[]], 3).tolist() == [[7, 2, NO_ITEM]]
    assert take_first(rows, [[7]], 5).tolist() == [[2, 7, *[NO_ITEM] * 3]]
