"""Objectives are drawn from ids alone, in the fractions that the recipe gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprec.schedule.objectives import NEXT_ITEM_ONLY, Objective, Objectives

IDS = st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=30)
WEIGHTS = st.dictionaries(st.sampled_from(list(Objective)), st.floats(0, 10), min_size=1).filter(
    lambda weights: any(weights.values())
)


def draw(objectives: Objectives, ids: list[int], source: str = "domain/A") -> list[Objective]:
    return objectives.draw([source] * len(ids), np.array(ids, np.uint64), [5] * len(ids))


@given(WEIGHTS, IDS, st.integers(0, 9), st.randoms(use_true_random=False))
def test_an_objective_depends_on_id_source_and_seed_alone(
    weights: dict[str, float], ids: list[int], seed: int, random: object
) -> None:
    objectives = Objectives(seed, {"domain": weights})
    by_id = dict(zip(ids, draw(objectives, ids), strict=True))
    shuffled = list(by_id)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert draw(objectives, shuffled) == [by_id[i] for i in shuffled]
    assert [draw(objectives, [i])[0] for i in ids] == [by_id[i] for i in ids]
    assert all(weights.get(objective, 0) > 0 for objective in by_id.values())


@pytest.mark.parametrize("seed", range(3))
def test_each_objective_has_its_fraction(seed: int) -> None:
    count = 20_000
    weights = {"next_item": 5, "masked_item": 2, "replaced_item": 0, "next_history": 1}
    # Ids of one user differ in their low bits only.
    drawn = draw(Objectives(seed, {"mixed": weights}), list(range(count)), "mixed")
    for name, weight in weights.items():
        expected = count * weight / 8
        assert abs(drawn.count(Objective(name)) - expected) <= 4 * np.sqrt(expected)


def test_two_seeds_draw_differently_and_a_task_is_unrelated_to_its_objective() -> None:
    ids = np.arange(1000, dtype=np.uint64)
    halves = {"domain": {"masked_item": 1, "next_history": 1}}
    one, two = (draw(Objectives(seed, halves), ids.tolist()) for seed in (1, 2))
    assert 400 < sum(a == b for a, b in zip(one, two, strict=True)) < 600
    is_odd = [bool(number % 2) for number in Objectives(1, halves).task_draws(ids)]
    masked = [objective == Objective.MASKED_ITEM for objective in one]
    assert 400 < sum(a == b for a, b in zip(is_odd, masked, strict=True)) < 600


def test_a_source_has_its_own_weights_else_those_of_its_kind_else_the_next_item() -> None:
    objectives = Objectives(0, {"domain/A": {"masked_item": 1}, "domain": {"next_history": 2}})
    assert draw(objectives, [1, 2]) == [Objective.MASKED_ITEM] * 2
    assert draw(objectives, [1, 2], "domain/B") == [Objective.NEXT_HISTORY] * 2
    assert draw(objectives, [1, 2], "mixed") == [Objective.NEXT_ITEM] * 2
    assert objectives.fractions("domain/B") == {Objective.NEXT_HISTORY: 1}
    assert draw(NEXT_ITEM_ONLY, [1, 2]) == [Objective.NEXT_ITEM] * 2
    assert not NEXT_ITEM_ONLY
    assert NEXT_ITEM_ONLY.draw([], np.array([], np.uint64), []) == []


def test_a_history_of_one_title_has_the_next_item() -> None:
    drawn = Objectives(0, {"mixed": {"masked_item": 1}}).draw(
        ["mixed"] * 3, np.arange(3, dtype=np.uint64), [0, 1, 2]
    )
    assert drawn == [Objective.NEXT_ITEM, Objective.NEXT_ITEM, Objective.MASKED_ITEM]
