"""Rows hold every sample once, nearly equal, in few lengths, with little filling."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprec.stream.packing import MicroBatchSpec, divide, filled_tokens
from cprec.stream.rows import (
    SMALLEST_STEP,
    STEPS_OF_LONGEST_ROW,
    Row,
    balance,
    divide_into_rows,
    first_fit,
    grid_step,
)
from cprec.stream.worker_batches import split_by_tokens


@given(
    st.lists(st.integers(1, 900), max_size=60),
    st.integers(16, 3000),
    st.booleans(),
    st.integers(0, 9),
)
def test_rows_hold_every_sample_once_within_their_length(
    lengths: list[int], max_tokens: int, filled: bool, num_rows: int
) -> None:
    rows = divide_into_rows(lengths, max_tokens, filled, num_rows)
    assert rows == divide_into_rows(lengths, max_tokens, filled, num_rows)
    assert sorted(i for row in rows for i in row.indices) == list(range(len(lengths)))
    assert len(rows) >= num_rows
    for row in rows:
        tokens = sum(lengths[i] for i in row.indices)
        assert tokens <= row.length
        assert row.length <= max_tokens or len(row.indices) == 1
        if not filled:
            assert row.length == max(tokens, 1)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_first_fit_leaves_no_two_rows_that_would_fit_into_one(
    lengths: list[int], max_tokens: int
) -> None:
    rows = divide_into_rows(lengths, max_tokens, filled=False)
    assert all(a.length + b.length > max_tokens for a, b in itertools.combinations(rows, 2))


@given(st.lists(st.integers(1, 900), max_size=60), st.integers(900, 3000))
def test_equal_rows_are_no_more_than_first_fit_needs(lengths: list[int], max_tokens: int) -> None:
    equal = divide_into_rows(lengths, max_tokens, filled=True)
    assert len(equal) <= len(first_fit(lengths, max_tokens))


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 8))
def test_balanced_parts_differ_by_no_more_than_the_largest_number(
    sizes: list[int], count: int
) -> None:
    parts = balance(sizes, [0] * count)
    assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
    sums = [sum(sizes[i] for i in part) for part in parts]
    assert max(sums) - min(sums) <= max(sizes, default=0)


def test_parts_end_equal_whatever_they_begin_with() -> None:
    sizes = [3, 3, 3, 3, 3]
    assert sorted(map(len, balance(sizes, [0, 3]))) == [2, 3]
    assert sorted(map(len, balance(sizes, [0, 15]))) == [0, 5]


@given(st.integers(0, 200_000), st.integers(64, 65_536))
def test_a_step_is_a_small_power_of_two(tokens: int, max_tokens: int) -> None:
    step = grid_step(tokens, max_tokens)
    assert step & (step - 1) == 0
    assert step == SMALLEST_STEP or step * STEPS_OF_LONGEST_ROW <= max_tokens


def amazon_like_batches(count: int) -> list[list[int]]:
    lengths = 460 + np.random.default_rng(0).exponential(260, (count, 128))
    return [batch.tolist() for batch in np.minimum(lengths, 1880).astype(int)]


@pytest.mark.parametrize("pack_tokens", [8192, 16384, 32768])
@pytest.mark.parametrize("world_size", [1, 8])
def test_amazon_batches_are_hardly_filled_in_a_handful_of_lengths(
    world_size: int, pack_tokens: int
) -> None:
    spec = MicroBatchSpec(packed=True, size=pack_tokens, filled=True)
    seen: list[set[int]] = []  # by batch
    filled = tokens = 0
    for lengths in amazon_like_batches(200):
        parts = split_by_tokens(lengths, world_size)
        lengths_by_rank = tuple(tuple(lengths[i] for i in part) for part in parts)
        rows_by_rank = divide(lengths_by_rank, spec)
        assert len(set(map(len, rows_by_rank))) == 1
        for own in rows_by_rank:
            assert_nearly_equal(own)
        seen.append({row.length for rows in rows_by_rank for row in rows})
        filled += filled_tokens(lengths_by_rank, spec)
        tokens += sum(lengths)
    assert filled <= 0.02 * (tokens + filled)
    assert len(set().union(*seen)) <= 10
    # Most are seen soon: code is compiled and graphs are captured in the first steps.
    assert len(set().union(*seen) - set().union(*seen[:20])) <= 4


def assert_nearly_equal(rows: tuple[Row, ...]) -> None:
    lengths = [row.length for row in rows]
    assert max(lengths) - min(lengths) <= max(lengths) / 8


def test_rows_of_one_batch_have_at_most_two_neighbouring_lengths() -> None:
    for lengths in amazon_like_batches(20):
        rows = divide_into_rows(lengths, 8192, filled=True)
        step = grid_step(sum(lengths), 8192)
        seen = sorted({row.length for row in rows})
        assert all(b - a == step for a, b in itertools.pairwise(seen))
        assert len(seen) <= 2
