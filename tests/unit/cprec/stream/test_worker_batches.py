"""Dividing a global batch among workers: every sample once, sizes equal, tokens balanced."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cprec.stream.worker_batches import imbalance, split_by_tokens


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 8))
def test_split_is_a_partition_with_equal_sizes_and_balanced_tokens(
    lengths: list[int], world: int
) -> None:
    parts = split_by_tokens(lengths, world)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    tokens = [sum(lengths[i] for i in part) for part in parts]
    assert max(tokens) - min(tokens) <= 2 * max(lengths, default=0)
    assert all(lengths[a] >= lengths[b] for part in parts for a, b in itertools.pairwise(part))


@given(st.lists(st.lists(st.integers(1, 100), min_size=1), min_size=1, max_size=6))
def test_imbalance_is_the_excess_of_the_busiest_worker_over_the_mean(
    lengths: list[list[int]],
) -> None:
    excess = imbalance(lengths)
    assert excess >= -1e-12
    mean = sum(map(sum, lengths)) / len(lengths)
    assert abs(max(map(sum, lengths)) - (1 + excess) * mean) < 1e-6


def test_balanced_workers_and_an_empty_batch_have_no_imbalance() -> None:
    assert imbalance([[3, 4], [7]]) == 0
    assert imbalance([[], []]) == 0
