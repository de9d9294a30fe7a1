"""Samples that share tokens: each is there once, sees what it may see and nothing else, and is exact where its history begins as the others' do.

Tokens tell what they are: token 4 p + j is the j-th of piece p, so that what a sample sees can be read off.
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
from cprec.encode.title_tokens import FIXED_FRAGMENTS, TITLE_FORMS, CachedPromptEncoder, TitleTokens
from cprec.encode.tokens import EncodedSample
from cprec.model import attention
from cprec.stream.packing import MicroBatch, MicroBatchSpec, build_micro_batches, collate
from cprec.stream.token_sharing import (
    SharedRow,
    TokenSharing,
    group_samples,
    hidden_items,
    list_sample_items,
)
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
"""Items 0 .. 23 are bought, the others are nobody's: negatives."""

PIECES = len(FIXED_FRAGMENTS) + ITEMS * len(TITLE_FORMS)
LENGTHS = np.arange(PIECES) * 7 % 3 + 1
WORDS = TitleTokens(
    (
        np.repeat(np.arange(PIECES) * 4, LENGTHS) + np.concatenate([np.arange(n) for n in LENGTHS])
    ).astype(np.int32),
    np.concatenate([[0], np.cumsum(LENGTHS)]),
    title_tokens.EOS_FRAGMENT * 4,
)
VOCABULARY = PIECES * 4
ROWS = pa.schema(
    {
        "sample_id": pa.int64(),
        "source": pa.string(),
        "domain": pa.string(),
        "history": pa.list_(pa.int64()),
        "candidates": pa.list_(pa.int64()),
        "target": pa.int8(),
    }
)


def rows_of(
    sequences: list[tuple[str, int, list[int]]], longest: int, candidates: int, seed: int
) -> pa.Table:
    """Every target of some users' sequences (source, user, items) that has an item before it, in an order of chance."""
    rng = np.random.default_rng(seed)
    found = []
    for source, user, items in sequences:
        group = hashing.hash_integers(hashing.hash_strings([source]), user)
        for place in range(1, len(items)):
            negatives = rng.choice(np.arange(BOUGHT, ITEMS), candidates - 1, replace=False).tolist()
            target = int(rng.integers(candidates))
            identity = int(hashing.member_ids(group, np.array([place])).view(np.int64)[0])
            shown_at = [*negatives[:target], items[place], *negatives[target:]]
            history, domain = items[max(place - longest, 0) : place], "AB"[items[place] % 2]
            found.append(
                dict(
                    zip(
                        ROWS.names,
                        (identity, source, domain, history, shown_at, target),
                        strict=True,
                    )
                )
            )
    rng.shuffle(found)
    return pa.Table.from_pylist(found, schema=ROWS)


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
    return rows_of(sequences, longest, draw(st.integers(2, 8)), draw(st.integers(0, 99)))


SHARING = st.builds(
    TokenSharing,
    targets_per_pass=st.sampled_from([1, 2, 4, 20]),
    shared_candidates=st.sampled_from([0, 4, 7, 12]),
).filter(bool)


def laid(
    rows: pa.Table, sharing: TokenSharing, max_tokens: int = 1 << 20
) -> tuple[list[SharedRow], list[EncodedSample]]:
    tokens = CachedPromptEncoder(WORDS, max_tokens).encode_samples(rows)
    return group_samples(rows, tokens, WORDS, sharing, max_tokens), tokens


def sees(group: SharedRow) -> np.ndarray:
    """Which token (row) sees which (column), token by token. [T, T]"""
    found = np.zeros((len(group.ids), len(group.ids)), dtype=bool)
    for strip, (start, stop) in enumerate(itertools.pairwise(group.strip_bounds.tolist())):
        for token in range(start, stop):
            for place in [
                *group.visible[
                    group.visible_bounds[strip] : group.visible_bounds[strip + 1]
                ].tolist(),
                *range(start, token + 1),
            ]:
                found[token, place] = True
    return found


def ends(group: SharedRow) -> list[int]:
    """The places of the end tokens, one for each sample."""
    return [
        place
        for place in (group.supervised_indices + 1).tolist()
        if group.ids[place] == WORDS.gather(np.array([title_tokens.EOS_FRAGMENT]))[-1]
    ]


def pieces(tokens: np.ndarray) -> list[int]:
    """The pieces that tokens are of, each of which must be whole."""
    found = [int(token) // 4 for token in tokens if token % 4 == 0]
    assert [int(t) for t in tokens] == [
        piece * 4 + j for piece in found for j in range(LENGTHS[piece])
    ]
    return found


@given(batches(), SHARING)
def test_every_sample_is_in_one_group_and_its_answer_counts_once(
    rows: pa.Table, sharing: TokenSharing
) -> None:
    groups, tokens = laid(rows, sharing)
    assert sorted(int(i) for group in groups for i in group.sample_indices) == list(
        range(len(rows))
    )
    for group in groups:
        answers = [tokens[i].ids[tokens[i].answer_start :] for i in group.sample_indices]
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
    found = rows.to_pylist()
    groups, tokens = laid(rows, sharing)
    by_place = {one.batch_index: one for one in list_sample_items(rows, tokens, sharing)}
    for group in groups:
        seen, members = sees(group), [by_place[int(i)] for i in group.sample_indices]
        assert not np.triu(seen, 1).any()
        for sample, end in zip(members, ends(group), strict=True):
            columns = np.flatnonzero(seen[end])
            columns = columns[np.argsort(group.position_ids[columns], kind="stable")]
            assert len(set(group.position_ids[columns].tolist())) == len(columns)
            head, *others, tail, answer, last = pieces(group.ids[columns])
            assert (head, tail, last) == (
                title_tokens.HEAD_FRAGMENT,
                title_tokens.TAIL_FRAGMENT,
                title_tokens.EOS_FRAGMENT,
            )
            assert answer == title_tokens.fragment_index(sample.answer, title_tokens.ANSWER_FORM)
            between = others.index(title_tokens.BETWEEN_LISTS_FRAGMENT)
            assert [
                (piece - len(FIXED_FRAGMENTS)) // len(TITLE_FORMS) for piece in others[:between]
            ] == found[sample.batch_index]["history"]
            candidates = [
                (piece - len(FIXED_FRAGMENTS)) // len(TITLE_FORMS)
                for piece in others[between + 1 :]
            ]
            if not sharing.shared_candidates:
                assert candidates == sample.candidates
                continue
            assert candidates.count(sample.answer) == 1
            assert not set(candidates) & hidden_items(sample, members)
            assert len({found[other.batch_index]["domain"] for other in members}) == 1
            assert len(candidates) >= min(sharing.shared_candidates, len(sample.candidates))


@given(batches(), SHARING)
def test_nobody_sees_an_answer(rows: pa.Table, sharing: TokenSharing) -> None:
    for group in laid(rows, sharing)[0]:
        seen = sees(group)
        for place in (group.supervised_indices + 1).tolist():
            strip = int(np.searchsorted(group.strip_bounds, place, side="right"))
            assert not seen[group.strip_bounds[strip] :, place].any()


@given(batches(longest=20), st.integers(2, 20))
def test_histories_that_begin_together_are_laid_exactly(rows: pa.Table, targets: int) -> None:
    """Each token of a sample sees what it sees alone, at the same positions: then hidden states are the same, layer by layer."""
    groups, tokens = laid(rows, TokenSharing(targets))
    for group in groups:
        seen = sees(group)
        for i, end in zip(group.sample_indices.tolist(), ends(group), strict=True):
            columns = np.flatnonzero(seen[end])
            assert group.ids[columns].tolist() == tokens[i].ids.tolist()
            assert group.position_ids[columns].tolist() == list(range(len(columns)))
            assert np.array_equal(seen[columns].sum(axis=1), np.arange(len(columns)) + 1)


@given(batches(), SHARING, st.integers(0, 20))
def test_no_group_reaches_beyond_the_longest_prompt(
    rows: pa.Table, sharing: TokenSharing, more: int
) -> None:
    longest = (
        max(len(t.ids) for t in CachedPromptEncoder(WORDS, 1 << 20).encode_samples(rows)) + more
    )
    for group in laid(rows, sharing, longest)[0]:
        assert group.position_ids.max() < longest or len(group.sample_indices) == 1


def test_tokens_are_spared() -> None:
    rows = rows_of(
        [("domain/A", user, list(range(user, user + 10))) for user in range(4)],
        longest=10,
        candidates=8,
        seed=0,
    )
    alone = sum(len(t.ids) for t in CachedPromptEncoder(WORDS, 1 << 20).encode_samples(rows))
    by_user, pooled, both = (
        sum(len(g.ids) for g in laid(rows, s)[0])
        for s in (TokenSharing(9), TokenSharing(1, 16), TokenSharing(9, 16))
    )
    assert both < pooled < alone
    assert both < by_user < alone


def shares(rows: pa.Table, sharing: TokenSharing, world: int) -> list[WorkerBatch]:
    """A global batch as the workers get it, through Arrow."""
    tokens = CachedPromptEncoder(WORDS, 1 << 20).encode_samples(rows)
    groups = group_samples(rows, tokens, WORDS, sharing, 1 << 20) if sharing else None
    found = to_worker_rows(
        0,
        len(rows),
        tokens,
        rows["sample_id"].to_numpy().view(np.uint64),
        rows["source"].to_pylist(),
        world,
        groups,
    )
    block = pa.Table.from_pylist(
        found, schema=SHARED_ROW_SCHEMA if sharing else WORKER_BATCH_SCHEMA
    )
    return [worker_batch_from_row(unbox_row(block, rank)) for rank in range(world)]


@given(batches(), SHARING, st.integers(1, 4), st.integers(1, 200))
def test_workers_hold_all_samples_once_and_make_the_same_number_of_passes(
    rows: pa.Table, sharing: TokenSharing, world: int, budget: int
) -> None:
    found = shares(rows, sharing, world)
    assert sorted(int(i) for share in found for i in share.sample_ids) == sorted(
        rows["sample_id"].to_numpy().view(np.uint64).tolist()
    )
    passes = [
        build_micro_batches(share, MicroBatchSpec(packed=True, size=budget), END) for share in found
    ]
    assert len({len(p) for p in passes}) == 1
    alone = shares(rows, TokenSharing(), 1)[0]
    answers = sorted(
        int(i)
        for s in alone.samples
        if isinstance(s, EncodedSample)
        for i in s.ids[s.answer_start :]
    )
    assert sorted(int(i) for p in passes for m in p for i in m.targets) == answers
    assert found[0].global_batch == alone.global_batch
    tokens = sum(len(group.ids) for group in laid(rows, sharing)[0])
    assert (
        found[0].computed_tokens
        == tokens
        == sum(m.token_count for p in passes for m in p if len(m.targets))
    )
    assert alone.computed_tokens == alone.global_batch.token_count


@given(batches(), st.integers(1, 2))
def test_titles_that_did_not_fit_are_counted_over_all_workers(rows: pa.Table, world: int) -> None:
    whole = CachedPromptEncoder(WORDS, 1 << 20).encode_samples(rows)
    limit = max(len(sample.ids) for sample in whole) - 1
    try:
        tokens = CachedPromptEncoder(WORDS, limit).encode_samples(rows)
    except DataError:
        return  # one without history does not fit at all
    found = to_worker_rows(
        0,
        len(rows),
        tokens,
        rows["sample_id"].to_numpy().view(np.uint64),
        rows["source"].to_pylist(),
        world,
    )
    batches = {
        worker_batch_from_row(
            unbox_row(pa.Table.from_pylist(found, schema=WORKER_BATCH_SCHEMA), rank)
        ).global_batch.dropped_titles
        for rank in range(world)
    }
    shorter = sum(len(a.ids) != len(b.ids) for a, b in zip(whole, tokens, strict=True))
    assert batches == {sum(sample.dropped_titles for sample in tokens)}
    assert min(batches) >= shorter > 0


@given(batches(), SHARING)
def test_groups_come_through_arrow_as_they_were(rows: pa.Table, sharing: TokenSharing) -> None:
    wanted = {tuple(g.sample_indices.tolist()): g for g in laid(rows, sharing)[0]}
    for one in shares(rows, sharing, 2):
        for group in one.samples:
            assert isinstance(group, SharedRow)
            same = wanted.pop(tuple(group.sample_indices.tolist()))
            assert all(
                np.array_equal(a, b) and a.dtype == b.dtype
                for a, b in zip(vars(group).values(), vars(same).values(), strict=True)
            )
    assert not wanted


def logits(network: Any, batch: MicroBatch) -> torch.Tensor:
    assert batch.bounds is not None
    assert batch.position_ids is not None
    if batch.visible is None:
        apart = attention.packed_arguments(
            torch.from_numpy(batch.bounds), int(np.diff(batch.bounds).max())
        )
    else:
        apart = attention.strip_arguments(
            batch.bounds.tolist(),
            [torch.from_numpy(part) for part in batch.visible],
            int(batch.position_ids.max()) + 1,
        )
    ids, kept = (
        torch.from_numpy(batch.input_ids),
        torch.from_numpy(np.flatnonzero(batch.supervised_mask[0])),
    )
    seen: torch.Tensor = network(
        input_ids=ids,
        position_ids=torch.from_numpy(batch.position_ids),
        logits_to_keep=kept,
        use_cache=False,
        **apart,
    ).logits[0]
    return seen


def test_loss_and_gradients_are_those_of_packed_samples_where_sharing_is_exact() -> None:
    rows = rows_of(
        [("domain/A", user, list(range(3 * user, 3 * user + 8))) for user in range(3)],
        longest=10,
        candidates=6,
        seed=1,
    )
    losses, gradients = [], []
    for units in (
        CachedPromptEncoder(WORDS, 1 << 20).encode_samples(rows),
        laid(rows, TokenSharing(20))[0],
    ):
        network = llama(VOCABULARY, spread=6)
        attention.enable_packing(network)
        batch = collate(units, MicroBatchSpec(packed=True, size=1 << 20), END)
        loss = F.cross_entropy(logits(network, batch), torch.from_numpy(batch.targets))
        losses.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for seen, wanted in zip(*gradients, strict=True):
        assert (seen - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("sharing", [TokenSharing(3), TokenSharing(1, 8), TokenSharing(3, 8)])
def test_strips_give_the_logits_and_gradients_of_a_dense_mask(sharing: TokenSharing) -> None:
    rows = rows_of(
        [("domain/A", user, list(range(user, user + 7))) for user in range(4)],
        longest=3,
        candidates=6,
        seed=2,
    )
    groups = laid(rows, sharing)[0]
    batch = collate(groups, MicroBatchSpec(packed=True, size=1 << 20), END)
    assert batch.position_ids is not None
    seen = torch.block_diag(*(torch.from_numpy(sees(group)).float() for group in groups)).bool()  # type: ignore[no-untyped-call]
    mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)[None, None]
    stripped, dense = llama(VOCABULARY, spread=6), llama(VOCABULARY, spread=6)
    attention.enable_packing(stripped)
    ids, positions = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.position_ids)
    wanted = dense(
        input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
    ).logits[0][torch.from_numpy(batch.supervised_mask[0])]
    found = logits(stripped, batch)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    targets = torch.from_numpy(batch.targets)
    pairs = zip(
        *(
            torch.autograd.grad(F.cross_entropy(x, targets), list(n.parameters()))
            for x, n in ((found, stripped), (wanted, dense))
        ),
        strict=True,
    )
    for a, b in pairs:
        assert (a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max()))
