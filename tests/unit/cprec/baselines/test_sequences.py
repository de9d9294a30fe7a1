"""Training sequences are rebuilt in full from the samples that were cut from them."""

from itertools import pairwise

import hypothesis
import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from corpus.sampling.encoded_interactions import EncodedInteractions
from corpus.sampling.samples import build_samples
from corpus.sampling.schemas import SAMPLE_SCHEMA
from cprec.baselines.sequences import input_target_windows, pad_histories, training_sequences
from tests.unit.corpus.worlds import Row, catalogue, frame, settings, worlds

ITEMS = 14


@hypothesis.settings(max_examples=30)
@given(worlds(domains=("A",), users=4, items=ITEMS, most=12), st.integers(2, 5), st.integers(1, 3))
def test_training_interactions_are_rebuilt_in_order(
    world: dict[str, list[Row]], min_history: int, more: int
) -> None:
    data = settings(
        domains=("A",),
        held_out=(),
        min_history=min_history,
        max_history=min_history + more,
        num_candidates=2,
    )
    rows = [row for row in world["A"] if sum(r[0] == row[0] for r in world["A"]) <= 10]
    built = build_samples(
        EncodedInteractions.from_frame(frame({"A": rows}, ITEMS)), catalogue(["A"], ITEMS), data, 0
    )
    tables = [
        built.tables.get(("domain/A", split), SAMPLE_SCHEMA.empty_table())
        for split in ("train", "validation", "test")
    ]
    expected = []
    for user in sorted({r[0] for r in rows}):
        ordered = [
            int(item[1:]) for _, item in sorted((time, item) for u, item, time in rows if u == user)
        ]
        # A user with fewer items before the test item than a history needs is in no sample.
        if len(ordered) > min_history:
            expected.append(ordered[:-2])
    assert training_sequences(*tables) == [sequence for sequence in expected if len(sequence) > 1]


def test_targets_held_out_before_an_append_are_not_trained_on() -> None:
    """A user bought 1, 2, 3 and 4, where 4 is a test target, and after an append 5 and 6."""

    def table(*rows: tuple[int, list[int], int]) -> pa.Table:
        columns = zip(*rows, strict=True) if rows else ([], [], [])
        times, histories, targets = (list(column) for column in columns)
        return pa.table(
            {
                "timestamp": pa.array(times, pa.int64()),
                "user_id": pa.array(["u"] * len(rows)),
                "history": pa.array(histories, pa.list_(pa.int64())),
                "candidates": pa.array([[target] for target in targets], pa.list_(pa.int64())),
                "target": pa.array([0] * len(rows), pa.int8()),
            }
        )

    validation = table((5, [1, 2, 3, 4], 5))
    test = table((4, [1, 2, 3], 4), (6, [1, 2, 3, 4, 5], 6))
    assert training_sequences(table(), validation, test) == [[1, 2]]


@given(
    st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=23), max_size=6), st.integers(1, 7)
)
def test_every_transition_is_in_one_row(sequences: list[list[int]], length: int) -> None:
    inputs, targets = input_target_windows(sequences, length)
    is_item = inputs > 0
    assert (is_item == (targets > 0)).all()
    assert (np.diff(is_item.astype(int), axis=1) >= 0).all()  # padding is on the left
    transitions = sorted(zip(inputs[is_item].tolist(), targets[is_item].tolist(), strict=True))
    assert transitions == sorted(pair for s in sequences for pair in pairwise(s))


def test_histories_are_padded_on_the_left_and_cut_to_the_most_recent() -> None:
    assert pad_histories([[1, 2, 3], [4], []], 2).tolist() == [[2, 3], [0, 4], [0, 0]]
