"""Samples that share tokens: each occurs once and sees what it may see, and nothing else.

Where the histories of a group begin with the same item, sharing a history is exact.

The tests' tokens name their fragments: token 4 f + j is the j-th token of fragment f. So the
fragments that a sample sees can be read from the tokens that it sees.
"""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DataError
from corpus.sampling import hashing
from cprec.encode import title_tokens
from cprec.encode.title_tokens import FIXED_FRAGMENTS, FORM_COUNT, CachedPromptEncoder, TitleTokens
from cprec.encode.tokens import EncodedSample
from cprec.model.kernels import attention
from cprec.model.layouts import strips
from cprec.stream.packing import MicroBatch, MicroBatchSpec, build_micro_batches, collate
from cprec.stream.sharing_groups import TokenSharing, hidden_items, list_sample_items
from cprec.stream.token_sharing import SharedRow, group_samples
from cprec.stream.worker_batches import WorkerBatch
from cprec.stream.worker_rows import (
    SHARED_ROW_SCHEMA,
    WORKER_BATCH_SCHEMA,
    to_worker_rows,
    unbox_row,
    worker_batch_from_row,
)
from tests.models import llama

ITEMS, BOUGHT, END = 40, 24, 0
"""Items 0..23 occur in histories and as answers; the others are negatives only."""

FRAGMENT_COUNT = len(FIXED_FRAGMENTS) + ITEMS * FORM_COUNT
FRAGMENT_LENGTHS = np.arange(FRAGMENT_COUNT) * 7 % 3 + 1
TITLES = TitleTokens(
    (
        np.repeat(np.arange(FRAGMENT_COUNT) * 4, FRAGMENT_LENGTHS)
        + np.concatenate([np.arange(n) for n in FRAGMENT_LENGTHS])
    ).astype(np.int32),
    np.concatenate([[0], np.cumsum(FRAGMENT_LENGTHS)]),
    title_tokens.EOS_FRAGMENT * 4,
)
VOCABULARY = FRAGMENT_COUNT * 4
ROUNDING = 3e-5
"""Largest difference by order of summation, as a fraction, in networks of such large weights."""
ROW_SCHEMA = pa.schema(
    {
        "sample_id": pa.int64(),
        "source": pa.string(),
        "domain": pa.string(),
        "history": pa.list_(pa.int64()),
        "candidates": pa.list_(pa.int64()),
        "target": pa.int8(),
    }
)


def build_rows(
    sequences: list[tuple[str, int, list[int]]], longest: int, candidates: int, seed: int
) -> pa.Table:
    """Returns a row for every item of a sequence but the first, in random order.

    Args:
        sequences: Each user's source, number and items.
        longest: Maximum length of a history.
        candidates: Number of candidates of a row.
        seed: Seed of negatives, places of answers and order.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for source, user, items in sequences:
        group = hashing.hash_integers(hashing.hash_strings([source]), user)
        for place in range(1, len(items)):
            negatives = rng.choice(np.arange(BOUGHT, ITEMS), candidates - 1, replace=False).tolist()
            target = int(rng.integers(candidates))
            rows.append(
                {
                    "sample_id": int(
                        hashing.member_ids(group, np.array([place])).view(np.int64)[0]
                    ),
                    "source": source,
                    "domain": "AB"[items[place] % 2],
                    "history": items[max(place - longest, 0) : place],
                    "candidates": [*negatives[:target], items[place], *negatives[target:]],
                    "target": target,
                }
            )
    rng.shuffle(rows)
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


@st.composite
def batches(draw: st.DrawFn, longest: int = 4) -> pa.Table:
    users = draw(st.integers(1, 4))
    sequences = [
        (
            draw(st.sampled_from(["domain/A", "mixed"])),
            user,
            draw(st.lists(st.integers(0, BOUGHT - 1), min_size=2, max_size=9)),
        )
        for user in range(users)
    ]
    return build_rows(sequences, longest, draw(st.integers(2, 8)), draw(st.integers(0, 99)))


SHARING = st.builds(
    TokenSharing,
    targets_per_pass=st.sampled_from([1, 2, 4, 20]),
    shared_candidates=st.sampled_from([0, 4, 7, 12]),
).filter(bool)


def encode_and_group(
    rows: pa.Table, sharing: TokenSharing, max_tokens: int = 1 << 20
) -> tuple[list[SharedRow], list[EncodedSample]]:
    """Returns the groups of a global batch and its samples, neither of them divided by worker."""
    samples = CachedPromptEncoder(TITLES, max_tokens).encode_samples(rows)
    return group_samples(rows, samples, TITLES, sharing, max_tokens), samples


def visibility(group: SharedRow) -> np.ndarray:
    """Returns which token (row) sees which (column), bool [T, T]."""
    mask = np.zeros((len(group.ids), len(group.ids)), dtype=bool)
    for strip, (start, stop) in enumerate(itertools.pairwise(group.strip_bounds.tolist())):
        for token in range(start, stop):
            for other in [
                *group.visible[
                    group.visible_bounds[strip] : group.visible_bounds[strip + 1]
                ].tolist(),
                *range(start, token + 1),
            ]:
                mask[token, other] = True
    return mask


def end_indices(group: SharedRow) -> list[int]:
    """Returns the indices of the end tokens, one for each sample."""
    return [
        index
        for index in (group.supervised_indices + 1).tolist()
        if group.ids[index] == TITLES.gather(np.array([title_tokens.EOS_FRAGMENT]))[-1]
    ]


def fragments_of(tokens: np.ndarray) -> list[int]:
    """Returns the fragments that tokens consist of, and asserts that all of them are whole."""
    fragments = [int(token) // 4 for token in tokens if token % 4 == 0]
    assert [int(t) for t in tokens] == [
        fragment * 4 + j for fragment in fragments for j in range(FRAGMENT_LENGTHS[fragment])
    ]
    return fragments


def item_of(fragment: int) -> int:
    return (fragment - len(FIXED_FRAGMENTS)) // FORM_COUNT


@given(batches(), SHARING)
def test_every_sample_is_in_one_group_with_its_answer_supervised_once(
    rows: pa.Table, sharing: TokenSharing
) -> None:
    groups, samples = encode_and_group(rows, sharing)
    assert sorted(int(i) for group in groups for i in group.sample_indices) == list(
        range(len(rows))
    )
    for group in groups:
        answers = [samples[i].ids[samples[i].answer_start :] for i in group.sample_indices]
        assert group.ids[group.supervised_indices + 1].tolist() == np.concatenate(answers).tolist()
        assert group.strip_bounds[-1] == len(group.ids) == len(group.position_ids)
        if not sharing.shared_candidates:
            assert len(group.sample_indices) <= sharing.targets_per_pass
        else:
            assert len(group.sample_indices) <= sharing.shared_candidates // 2


@given(batches(), SHARING)
def test_a_sample_sees_its_own_prompt_and_nothing_else(
    rows: pa.Table, sharing: TokenSharing
) -> None:
    row_values = rows.to_pylist()
    groups, samples = encode_and_group(rows, sharing)
    by_index = {sample.batch_index: sample for sample in list_sample_items(rows, samples, sharing)}
    for group in groups:
        mask = visibility(group)
        members = [by_index[int(i)] for i in group.sample_indices]
        assert not np.triu(mask, 1).any()
        for sample, end in zip(members, end_indices(group), strict=True):
            columns = np.flatnonzero(mask[end])
            columns = columns[np.argsort(group.position_ids[columns], kind="stable")]
            assert len(set(group.position_ids[columns].tolist())) == len(columns)
            head, *others, tail, answer, last = fragments_of(group.ids[columns])
            assert (head, tail, last) == (
                title_tokens.HEAD_FRAGMENT,
                title_tokens.TAIL_FRAGMENT,
                title_tokens.EOS_FRAGMENT,
            )
            assert answer == title_tokens.fragment_index(sample.answer, title_tokens.ANSWER_FORM)
            between = others.index(title_tokens.BETWEEN_LISTS_FRAGMENT)
            assert [item_of(fragment) for fragment in others[:between]] == row_values[
                sample.batch_index
            ]["history"]
            candidates = [item_of(fragment) for fragment in others[between + 1 :]]
            if not sharing.shared_candidates:
                assert candidates == sample.candidates
                continue
            assert candidates.count(sample.answer) == 1
            assert not set(candidates) & hidden_items(sample, members)
            assert len({row_values[other.batch_index]["domain"] for other in members}) == 1
            assert len(candidates) >= min(sharing.shared_candidates, len(sample.candidates))


@given(batches(), SHARING)
def test_no_other_strip_sees_an_answer(rows: pa.Table, sharing: TokenSharing) -> None:
    for group in encode_and_group(rows, sharing)[0]:
        mask = visibility(group)
        for index in (group.supervised_indices + 1).tolist():
            strip = int(np.searchsorted(group.strip_bounds, index, side="right"))
            assert not mask[group.strip_bounds[strip] :, index].any()


@given(batches(longest=20), st.integers(2, 20))
def test_sharing_histories_that_begin_together_is_exact(rows: pa.Table, targets: int) -> None:
    """Each token sees what it would see without sharing, at the same positions.

    So its hidden states are the same, layer by layer.
    """
    groups, samples = encode_and_group(rows, TokenSharing(targets))
    for group in groups:
        mask = visibility(group)
        for i, end in zip(group.sample_indices.tolist(), end_indices(group), strict=True):
            columns = np.flatnonzero(mask[end])
            assert group.ids[columns].tolist() == samples[i].ids.tolist()
            assert group.position_ids[columns].tolist() == list(range(len(columns)))
            assert np.array_equal(mask[columns].sum(axis=1), np.arange(len(columns)) + 1)


@given(batches(), SHARING, st.integers(0, 20))
def test_no_group_reaches_beyond_the_longest_prompt(
    rows: pa.Table, sharing: TokenSharing, extra: int
) -> None:
    longest = (
        max(len(t.ids) for t in CachedPromptEncoder(TITLES, 1 << 20).encode_samples(rows)) + extra
    )
    for group in encode_and_group(rows, sharing, longest)[0]:
        assert group.position_ids.max() < longest or len(group.sample_indices) == 1


def test_sharing_computes_fewer_tokens() -> None:
    rows = build_rows(
        [("domain/A", user, list(range(user, user + 10))) for user in range(4)],
        longest=10,
        candidates=8,
        seed=0,
    )
    alone = sum(len(t.ids) for t in CachedPromptEncoder(TITLES, 1 << 20).encode_samples(rows))
    by_user, pooled, both = (
        sum(len(group.ids) for group in encode_and_group(rows, sharing)[0])
        for sharing in (TokenSharing(9), TokenSharing(1, 16), TokenSharing(9, 16))
    )
    assert both < pooled < alone
    assert both < by_user < alone


def worker_batches(rows: pa.Table, sharing: TokenSharing, world: int) -> list[WorkerBatch]:
    """Returns a global batch as the workers get it, through Arrow."""
    samples = CachedPromptEncoder(TITLES, 1 << 20).encode_samples(rows)
    groups = group_samples(rows, samples, TITLES, sharing, 1 << 20) if sharing else None
    worker_rows = to_worker_rows(
        0,
        len(rows),
        samples,
        rows["sample_id"].to_numpy().view(np.uint64),
        rows["source"].to_pylist(),
        world,
        groups,
    )
    block = pa.Table.from_pylist(
        worker_rows, schema=SHARED_ROW_SCHEMA if sharing else WORKER_BATCH_SCHEMA
    )
    return [worker_batch_from_row(unbox_row(block, rank)) for rank in range(world)]


@given(batches(), SHARING, st.integers(1, 4), st.integers(1, 200))
def test_workers_hold_all_samples_once_and_make_the_same_number_of_passes(
    rows: pa.Table, sharing: TokenSharing, world: int, budget: int
) -> None:
    shared = worker_batches(rows, sharing, world)
    assert sorted(int(i) for batch in shared for i in batch.sample_ids) == sorted(
        rows["sample_id"].to_numpy().view(np.uint64).tolist()
    )
    passes = [
        build_micro_batches(batch, MicroBatchSpec(packed=True, size=budget), END)
        for batch in shared
    ]
    assert len({len(p) for p in passes}) == 1
    alone = worker_batches(rows, TokenSharing(), 1)[0]
    answers = sorted(
        int(i)
        for s in alone.samples
        if isinstance(s, EncodedSample)
        for i in s.ids[s.answer_start :]
    )
    assert sorted(int(i) for p in passes for m in p for i in m.targets) == answers
    assert shared[0].global_batch == alone.global_batch
    num_tokens = sum(len(group.ids) for group in encode_and_group(rows, sharing)[0])
    assert (
        shared[0].computed_tokens
        == num_tokens
        == sum(m.num_tokens for p in passes for m in p if len(m.targets))
    )
    assert alone.computed_tokens == alone.global_batch.num_tokens


@given(batches(), st.integers(1, 2))
def test_dropped_titles_are_counted_over_all_workers(rows: pa.Table, world: int) -> None:
    whole = CachedPromptEncoder(TITLES, 1 << 20).encode_samples(rows)
    limit = max(len(sample.ids) for sample in whole) - 1
    try:
        samples = CachedPromptEncoder(TITLES, limit).encode_samples(rows)
    except DataError:
        return  # the longest sample has no history that could be dropped
    worker_rows = to_worker_rows(
        0,
        len(rows),
        samples,
        rows["sample_id"].to_numpy().view(np.uint64),
        rows["source"].to_pylist(),
        world,
    )
    block = pa.Table.from_pylist(worker_rows, schema=WORKER_BATCH_SCHEMA)
    counts = {
        worker_batch_from_row(unbox_row(block, rank)).global_batch.dropped_titles
        for rank in range(world)
    }
    shorter = sum(len(a.ids) != len(b.ids) for a, b in zip(whole, samples, strict=True))
    assert counts == {sum(sample.dropped_titles for sample in samples)}
    assert min(counts) >= shorter > 0


@given(batches(), SHARING)
def test_groups_pass_through_arrow_unchanged(rows: pa.Table, sharing: TokenSharing) -> None:
    expected = {
        tuple(group.sample_indices.tolist()): group for group in encode_and_group(rows, sharing)[0]
    }
    for batch in worker_batches(rows, sharing, 2):
        for group in batch.samples:
            assert isinstance(group, SharedRow)
            same = expected.pop(tuple(group.sample_indices.tolist()))
            assert all(
                np.array_equal(a, b) and a.dtype == b.dtype
                for a, b in zip(vars(group).values(), vars(same).values(), strict=True)
            )
    assert not expected


def supervised_logits(network: Any, batch: MicroBatch) -> torch.Tensor:
    """Returns the logits at the supervised positions of a packed row, [N, vocabulary]."""
    assert batch.bounds is not None
    assert batch.position_ids is not None
    if batch.visible is None:
        layout = attention.packed_arguments(
            torch.from_numpy(batch.bounds), int(np.diff(batch.bounds).max())
        )
    else:
        layout = strips.strip_arguments(
            batch.bounds.tolist(),
            [torch.from_numpy(part) for part in batch.visible],
            int(batch.position_ids.max()) + 1,
        )
    logits: torch.Tensor = network(
        input_ids=torch.from_numpy(batch.input_ids),
        position_ids=torch.from_numpy(batch.position_ids),
        logits_to_keep=torch.from_numpy(np.flatnonzero(batch.supervised_mask[0])),
        use_cache=False,
        **layout,
    ).logits[0]
    return logits


def test_loss_and_gradients_equal_those_without_sharing_where_sharing_is_exact() -> None:
    rows = build_rows(
        [("domain/A", user, list(range(3 * user, 3 * user + 8))) for user in range(3)],
        longest=10,
        candidates=6,
        seed=1,
    )
    losses, gradients = [], []
    for units in (
        CachedPromptEncoder(TITLES, 1 << 20).encode_samples(rows),
        encode_and_group(rows, TokenSharing(20))[0],
    ):
        network = llama(VOCABULARY, spread=6)
        attention.enable_packing(network)
        batch = collate(units, MicroBatchSpec(packed=True, size=1 << 20), END)
        loss = F.cross_entropy(supervised_logits(network, batch), torch.from_numpy(batch.targets))
        losses.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    assert losses[0] == pytest.approx(losses[1], rel=ROUNDING)
    for expected, actual in zip(*gradients, strict=True):
        assert (expected - actual).abs().max() <= ROUNDING * max(1.0, float(actual.abs().max()))


@pytest.mark.parametrize("sharing", [TokenSharing(3), TokenSharing(1, 8), TokenSharing(3, 8)])
def test_strips_give_the_logits_and_gradients_of_a_dense_mask(sharing: TokenSharing) -> None:
    rows = build_rows(
        [("domain/A", user, list(range(user, user + 7))) for user in range(4)],
        longest=3,
        candidates=6,
        seed=2,
    )
    groups = encode_and_group(rows, sharing)[0]
    batch = collate(groups, MicroBatchSpec(packed=True, size=1 << 20), END)
    assert batch.position_ids is not None
    masks = [torch.from_numpy(visibility(group)).float() for group in groups]
    visible = torch.block_diag(*masks).bool()  # type: ignore[no-untyped-call]
    dense_mask = torch.zeros(visible.shape).masked_fill_(~visible, torch.finfo(torch.float32).min)
    by_strip = llama(VOCABULARY, spread=6)
    attention.enable_packing(by_strip)
    by_mask = llama(VOCABULARY, spread=6)
    expected = by_mask(
        input_ids=torch.from_numpy(batch.input_ids),
        position_ids=torch.from_numpy(batch.position_ids),
        attention_mask=dense_mask[None, None],
        use_cache=False,
    ).logits[0][torch.from_numpy(batch.supervised_mask[0])]
    actual = supervised_logits(by_strip, batch)
    assert (actual - expected).abs().max() <= ROUNDING * expected.abs().max()
    targets = torch.from_numpy(batch.targets)
    pairs = zip(
        *(
            torch.autograd.grad(F.cross_entropy(logits, targets), list(network.parameters()))
            for logits, network in ((actual, by_strip), (expected, by_mask))
        ),
        strict=True,
    )
    for a, b in pairs:
        assert (a - b).abs().max() <= ROUNDING * max(1.0, float(b.abs().max()))
