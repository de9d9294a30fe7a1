"""Cells: means, intervals and corrected tests, checked against definitions and scipy."""

import numpy as np
import pytest
from scipy import stats

from cprec.reproduction.cells import Cell, compare, correct, describe
from cprec.reproduction.paper import find_dataset, find_score

RNG = np.random.default_rng(0)
CELL = Cell("table3", "Games", "llara", "LLaRA", "HR@1", None)


def test_a_cell_has_mean_deviation_and_interval() -> None:
    values = RNG.random((4, 50))
    cell = describe(CELL, values)
    assert (cell.n, cell.seeds) == (50, 4)
    assert cell.value == pytest.approx(values.mean())
    assert cell.deviation == pytest.approx(np.std(values.mean(axis=1), ddof=1))
    assert cell.low is not None
    assert cell.high is not None
    assert cell.low < values.mean() < cell.high


def test_an_interval_never_leaves_0_to_1() -> None:
    none, all_of_them = describe(CELL, np.zeros((2, 8))), describe(CELL, np.ones((2, 8)))
    low, high = stats.binomtest(0, 8).proportion_ci(method="wilson")
    assert (none.low, none.high) == pytest.approx((low, high))
    assert (all_of_them.low, all_of_them.high) == pytest.approx((1 - high, 1 - low))


def test_one_seed_has_no_deviation_and_no_test_over_seeds() -> None:
    values = RNG.random((1, 20))
    cell = compare(describe(CELL, values), values, "cprec", RNG.random((1, 20)))
    assert (cell.deviation, cell.p_seeds) == (None, None)
    assert cell.p_users is not None


def test_a_slice_without_users_has_no_number() -> None:
    empty = np.zeros((2, 0))
    cell = compare(describe(CELL, empty), empty, "cprec", empty)
    assert (cell.n, cell.value, cell.p_users) == (0, None, None)


def test_tests_are_paired() -> None:
    values, against = RNG.random((3, 40)), RNG.random((3, 40))
    cell = compare(CELL, values, "cprec", against)
    users = stats.ttest_rel(values.mean(axis=0), against.mean(axis=0))
    seeds = stats.ttest_rel(values.mean(axis=1), against.mean(axis=1))
    assert (cell.p_users, cell.p_seeds) == pytest.approx((users.pvalue, seeds.pvalue))
    assert cell.difference == pytest.approx(values.mean() - against.mean())


def test_a_single_seed_is_compared_with_each_seed_of_the_other() -> None:
    single, several = RNG.random((1, 40)), RNG.random((4, 40))
    expected = stats.ttest_1samp(several.mean(axis=1), single.mean()).pvalue
    assert compare(CELL, single, "cprec", several).p_seeds == pytest.approx(expected)
    assert compare(CELL, several, "base", single).p_seeds == pytest.approx(expected)
    assert compare(CELL, RNG.random((3, 40)), "cprec", several).p_seeds is None


def test_seeds_without_spread_show_nothing() -> None:
    single, equal = RNG.random((1, 40)), np.tile(RNG.random(40), (4, 1))
    cell = compare(CELL, single, "cprec", equal)
    assert cell.p_seeds is None
    assert cell.p_users is not None


def test_holm_corrects_for_the_tests_that_there_are() -> None:
    cells = [
        Cell("table3", "Games", "a", "A", "HR@1", 0.1, p_users=0.01),
        Cell("table3", "Games", "b", "B", "HR@1", 0.1, p_users=0.04, p_seeds=0.02),
        Cell("table3", "Games", "c", "C", "HR@1", 0.1),
    ]
    corrected = correct(cells)
    assert [cell.p_users_holm for cell in corrected] == [0.02, 0.04, None]
    assert [cell.p_seeds_holm for cell in corrected] == [None, 0.02, None]


def test_the_papers_numbers_are_of_its_data_alone() -> None:
    assert find_dataset((4_564, 3_058, 30_302)) == "Game"
    assert find_dataset((4_564, 3_058, 30_303)) is None
    assert find_score("table3", "Game", "CPRec", "HR@1") == 0.4764
    assert find_score("table3", None, "CPRec", "HR@1") is None
    assert find_score("table5", "Bili_Cartoon", "LLaRA", "Medium") == 0.3034
    assert find_score("table6", "Industry", "CPRec", "NDCG@5") == 0.5108
    assert find_score("table6", "Bili_Movie", "CPRec", "NDCG@5") is None
    assert find_score("figure4", "Game", "CPRec", "HR@1") is None
