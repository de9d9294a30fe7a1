"""Micro-batches hold every sample of a worker batch once, with the answers supervised."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cprec.encode.tokens import EncodedSample
from cprec.stream.packing import (
    MicroBatch,
    MicroBatchSpec,
    build_micro_batches,
    collate,
    filled_tokens,
)
from cprec.stream.worker_batches import GlobalBatch, WorkerBatch, split_by_tokens

END = 0
SPECS = st.builds(
    MicroBatchSpec, packed=st.booleans(), size=st.integers(1, 90), filled=st.booleans()
)


@st.composite
def encoded_samples(draw: st.DrawFn) -> EncodedSample:
    length = draw(st.integers(2, 40))
    ids = draw(st.lists(st.integers(1, 99), min_size=length, max_size=length))
    return EncodedSample(np.array(ids, dtype=np.int32), draw(st.integers(1, length - 1)), 0)


def worker_batches(samples: list[EncodedSample], world: int) -> list[WorkerBatch]:
    parts = split_by_tokens([len(s.ids) for s in samples], world)
    lengths = tuple(tuple(len(samples[i].ids) for i in part) for part in parts)
    batch = GlobalBatch(0, len(samples), 0, 0, 0, {})
    return [
        WorkerBatch(batch, rank, lengths, np.array(part), tuple(samples[i] for i in part))
        for rank, part in enumerate(parts)
    ]


def answer_tokens(samples: list[EncodedSample]) -> list[int]:
    return sorted(i for s in samples for i in s.ids[s.answer_start :].tolist())


@given(st.lists(encoded_samples(), max_size=12), st.integers(1, 4), SPECS)
def test_all_workers_make_the_same_number_of_passes_over_all_samples(
    samples: list[EncodedSample], world: int, spec: MicroBatchSpec
) -> None:
    passes = [build_micro_batches(batch, spec, END) for batch in worker_batches(samples, world)]
    assert len({len(p) for p in passes}) == 1
    assert sorted(int(i) for p in passes for m in p for i in m.targets) == answer_tokens(samples)
    num_tokens = sum(len(s.ids) for s in samples)
    assert sum(m.num_tokens for p in passes for m in p) == num_tokens
    lengths = worker_batches(samples, world)[0].lengths_by_rank
    computed = sum(m.input_ids.size for p in passes for m in p)
    assert computed - num_tokens == filled_tokens(lengths, spec)


@given(st.lists(encoded_samples(), max_size=6), SPECS)
def test_a_supervised_position_is_followed_by_its_target(
    samples: list[EncodedSample], spec: MicroBatchSpec
) -> None:
    batch = collate(samples, spec, END)
    rows, columns = np.nonzero(batch.supervised_mask)
    assert np.array_equal(
        batch.input_ids[rows, columns + 1] if len(rows) else np.zeros(0), batch.targets
    )
    assert batch.supervised_mask.sum() == sum(len(s.ids) - s.answer_start for s in samples)


def unpack(batch: MicroBatch) -> list[list[int]]:
    assert batch.bounds is not None
    bounds = batch.bounds.tolist()
    return [batch.input_ids[0, a:b].tolist() for a, b in itertools.pairwise(bounds)]


@given(st.lists(encoded_samples(), min_size=1, max_size=6), st.integers(1, 300))
def test_a_packed_row_is_its_samples_each_from_position_0(
    samples: list[EncodedSample], length: int
) -> None:
    batch = collate(samples, MicroBatchSpec(packed=True, size=300), END, length)
    rows = unpack(batch)
    assert rows[: len(samples)] == [s.ids.tolist() for s in samples]
    assert batch.position_ids is not None
    assert batch.position_ids[0].tolist() == [i for row in rows for i in range(len(row))]
    assert batch.computed_tokens == max(length, batch.num_tokens)
