"""Shares and micro-batches hold every sample once, and the tokens that count are the answers'."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cprec.stream.shares import GlobalBatch, Share, collate, deal, micro_batches
from cprec.stream.tokens import Tokens

END = 0


@st.composite
def samples(draw: st.DrawFn) -> Tokens:
    length = draw(st.integers(2, 40))
    ids = draw(st.lists(st.integers(1, 99), min_size=length, max_size=length))
    return Tokens(np.array(ids, dtype=np.int32), draw(st.integers(1, length - 1)), 0)


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 8))
def test_dealing_is_a_partition_with_equal_sizes_and_balanced_tokens(lengths: list[int], world: int) -> None:
    dealt = deal(lengths, world)
    assert sorted(i for part in dealt for i in part) == list(range(len(lengths)))
    sizes = [len(part) for part in dealt]
    assert max(sizes) - min(sizes) <= 1
    tokens = [sum(lengths[i] for i in part) for part in dealt]
    assert max(tokens) - min(tokens) <= 2 * max(lengths, default=0)


@given(st.lists(samples(), max_size=12), st.integers(1, 4), st.integers(1, 5))
def test_all_workers_make_the_same_number_of_passes_over_all_samples(found: list[Tokens], world: int, size: int) -> None:
    dealt = deal([len(s.ids) for s in found], world)
    batch = GlobalBatch(0, len(found), 0, 0, 0, {})
    largest = max(map(len, dealt))
    shares = [Share(batch, rank, largest, np.array(part), tuple(found[i] for i in part)) for rank, part in enumerate(dealt)]
    passes = [micro_batches(share, size, END) for share in shares]
    assert len({len(p) for p in passes}) == 1
    targets = np.sort(np.concatenate([m.targets for p in passes for m in p] or [np.zeros(0, dtype=np.int64)]))
    assert np.array_equal(targets, np.sort(np.concatenate([s.ids[s.answer :] for s in found] or [np.zeros(0, dtype=np.int64)])))


@given(st.lists(samples(), max_size=6))
def test_a_supervised_position_is_followed_by_its_target(found: list[Tokens]) -> None:
    batch = collate(found, END)
    rows, columns = np.nonzero(batch.supervised)
    assert np.array_equal(batch.ids[rows, columns + 1] if len(rows) else np.zeros(0), batch.targets)
    assert batch.supervised.sum() == sum(len(s.ids) - s.answer for s in found)
