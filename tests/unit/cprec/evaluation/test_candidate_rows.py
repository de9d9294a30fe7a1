"""Rows of many queries give every answer the score that it has alone, and build no mask."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from cprec.downstream.hybrid import HybridModel
from cprec.evaluation import candidate_rows, candidate_scoring
from cprec.evaluation.candidate_rows import ROW_STEP, PassKind, Query, pack_row
from cprec.evaluation.candidate_scoring import score_queries
from cprec.evaluation.scoring_check import choose_scoring
from cprec.model.kernels import attention, flash_attention
from cprec.model.layouts import branches
from cprec.train.forward import uncompiled
from tests.models import SHAPE, llama
from tests.unit.cprec.model.test_branches import attend_plainly

VOCABULARY = 64
WINDOW = 16


@torch.library.custom_op("tests::plain_attention", mutates_args=())
def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, sums = attend_plainly(
        query, key, value, query_bounds, key_bounds, len(query), len(key), causal=causal
    )
    return out.contiguous(), sums.contiguous()


@plain_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[1], query.shape[0])


def plain_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scaling: float | None = None,
    causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes the call of `flash_attention.attend_sequences`; one operation for the compiler."""
    found: tuple[torch.Tensor, torch.Tensor] = plain_attention(
        query, key, value, query_bounds, key_bounds, causal
    )
    return found


tokens = st.integers(3, VOCABULARY - 1)
answers = st.lists(st.lists(tokens, min_size=1, max_size=8), max_size=5)
queries = st.builds(Query, st.lists(tokens, min_size=1, max_size=40), answers)


def mistral() -> Any:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SHAPE, vocab_size=VOCABULARY, sliding_window=WINDOW))


def gemma2() -> Any:
    """Builds a model with caps on scores and logits, every other layer with a window."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            **SHAPE,
            vocab_size=VOCABULARY,
            head_dim=8,
            sliding_window=WINDOW,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    )


def gpt_oss() -> Any:
    """Builds a model with sinks, experts, and a window in every other layer."""
    torch.manual_seed(0)
    return GptOssForCausalLM(
        GptOssConfig(
            **SHAPE,
            vocab_size=VOCABULARY,
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=WINDOW,
        )
    )


def hybrid() -> Any:
    return HybridModel(llama(VOCABULARY), torch.randn(9, 4), 0)


MODELS = {
    "grouped heads": lambda: llama(VOCABULARY, spread=4),
    "sliding window": mistral,
    "softcap": gemma2,
    "sinks": gpt_oss,
    "hybrid": hybrid,
}


def draw(seed: int, longest: int = 60, behaviour_tokens: int = 0) -> list[Query]:
    """Draws queries of all sizes: no answers, one, answers of one token, many."""
    rng = np.random.default_rng(seed)

    def ids(count: int, end: int = VOCABULARY) -> list[int]:
        return [int(number) for number in rng.integers(3, end, count)]

    return [
        Query(
            ids(int(rng.integers(1, longest)), VOCABULARY + behaviour_tokens),
            [ids(int(n)) for n in rng.integers(1, 9, count)],
        )
        for count in (3, 1, 0, 20, 2, 1, 7)
    ] + [Query(ids(9), [ids(1), ids(1)]), Query(ids(1), [ids(1)])]


@torch.inference_mode()
def score_alone(model: Any, query: Query) -> np.ndarray:
    """Scores each candidate by a plain pass over the prompt and its answer, nothing else."""
    found = []
    for answer in query.answers:
        logits = model(input_ids=torch.tensor([query.prompt + answer]), use_cache=False).logits[0]
        rows = torch.arange(len(query.prompt) - 1, len(logits) - 1)
        found.append(float(logits.float().log_softmax(-1)[rows, torch.tensor(answer)].sum()))
    return np.array(found)


@pytest.mark.parametrize("kind", [PassKind.PACKED, PassKind.MASKED])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_each_candidate_alone(name: str, kind: PassKind) -> None:
    model = MODELS[name]().eval()
    assert choose_scoring(model, 128).kind is PassKind.PACKED
    batch = draw(0, behaviour_tokens=9 if name == "hybrid" else 0)
    scores = score_queries(model, batch, 4, kind)
    assert [len(found) for found in scores] == [len(query.answers) for query in batch]
    for query, found in zip(batch, scores, strict=True):
        if query.answers:
            expected = score_alone(model, query)
            assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", ["grouped heads", "sliding window", "softcap"])
def test_in_half_precision_scores_differ_by_rounding(name: str) -> None:
    model = MODELS[name]().eval().bfloat16()
    batch = draw(1)
    for query, found in zip(batch, score_queries(model, batch, 9, PassKind.PACKED), strict=True):
        if query.answers:
            expected = score_alone(model, query)
            assert np.abs(found - expected).max() <= 2e-3 * max(1, np.abs(expected).max())


@given(st.lists(queries, max_size=6), st.integers(1, 4), st.sampled_from(PassKind))
@settings(deadline=None, max_examples=50)
def test_any_queries_have_the_scores_that_they_have_alone(
    batch: list[Query], batch_size: int, kind: PassKind
) -> None:
    model = llama(VOCABULARY).eval()
    scores = score_queries(model, iter(batch), batch_size, kind)
    assert len(scores) == len(batch)
    for query, found in zip(batch, scores, strict=True):
        assert len(found) == len(query.answers)
        if query.answers:
            assert np.abs(found - score_alone(model, query)).max() <= 1e-5


@given(st.lists(queries, min_size=1, max_size=6))
def test_a_row_holds_every_token_once_and_is_hardly_filled(batch: list[Query]) -> None:
    row = pack_row(batch)
    needed = sum(
        len(query.prompt) + sum(len(answer) - 1 for answer in query.answers) for query in batch
    )
    assert len(row.ids) == len(row.positions) == -(-needed // ROW_STEP) * ROW_STEP
    assert row.prompt_sizes.sum() + row.branch_sizes.sum() == len(row.ids)
    assert row.branch_counts.sum() == len(row.branch_sizes)
    assert len(row.predictors) == sum(query.num_predictors for query in batch)
    assert (np.diff(row.targets.rows) >= 0).all()
    all_answers = [(query, answer) for query in batch for answer in query.answers]
    for number, (query, answer) in enumerate(all_answers):
        mine = row.targets.answers == number
        assert row.targets.ids[mine].tolist() == answer
        # What predicts a token is the one before it: the end of the prompt, or of the answer.
        before = row.predictors[row.targets.of_answer(number)]
        assert row.ids[before].tolist() == [query.prompt[-1], *answer[:-1]]
        last = len(query.prompt) - 1
        assert row.positions[before].tolist() == list(range(last, last + len(answer)))


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("name", ["grouped heads", "sliding window"])
def test_nothing_is_as_large_as_a_mask_over_the_row(name: str) -> None:
    """24 queries: a mask over their row would be 24 times as large as the masks of each."""
    model = MODELS[name]().eval()
    query = Query([3] * 100, [[4] * 5] * 4)
    row = len(pack_row([query] * 24).ids)
    row_only = max(model.config.intermediate_size, VOCABULARY) * row
    for kind, limit in ((PassKind.PACKED, row_only), (PassKind.MASKED, None)):
        with (
            LargestTensor() as largest,
            torch.inference_mode(),
            candidate_rows.prepare_model(model, kind),
        ):
            candidate_rows.compute_logits(model, [query] * 24, kind)
        if limit is None:
            assert largest.elements >= row**2  # the test can fail
        else:
            assert largest.elements <= limit < row**2 / 10


def test_log_probabilities_are_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = llama(VOCABULARY).eval(), draw(2)
    whole = score_queries(model, batch, 9, PassKind.PACKED)
    monkeypatch.setattr(candidate_rows, "CHUNK_ELEMENTS", 7 * VOCABULARY)
    in_chunks = score_queries(model, batch, 9, PassKind.PACKED)
    assert np.abs(np.concatenate(whole) - np.concatenate(in_chunks)).max() <= 1e-6
    logits, targets = candidate_rows.compute_logits(
        model, [part for query in batch for part in query.split()], PassKind.ALONE
    )
    with LargestTensor() as largest:
        candidate_rows.log_probabilities(logits, targets)
    assert largest.elements <= 7 * VOCABULARY


def test_a_pass_has_no_more_queries_tokens_and_logits_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = llama(VOCABULARY).eval()
    passes: list[tuple[int, int, int]] = []
    original = candidate_rows.compute_logits

    def note(model: Any, group: list[Query], kind: PassKind) -> Any:
        logits, targets = original(model, group, kind)
        passes.append((len(group), sum(query.num_tokens for query in group), len(logits)))
        return logits, targets

    monkeypatch.setattr(candidate_scoring, "compute_logits", note)
    batch = [Query([3] * 10, [[4, 1]] * 5)] * 6  # 20 tokens, of which 6 predict
    score_queries(model, batch, 4, PassKind.PACKED)
    assert [count for count, _, _ in passes] == [4, 2]
    passes.clear()
    monkeypatch.setattr(candidate_scoring, "CPU_PASS_TOKENS", 47)
    score_queries(model, batch, 4, PassKind.PACKED)
    assert passes == [(2, 40, 12)] * 3
    passes.clear()
    monkeypatch.setattr(candidate_scoring, "PASS_LOGITS", 11 * VOCABULARY)
    score_queries(model, batch, 4, PassKind.PACKED)
    assert passes == [(1, 20, 6)] * 6


def test_scoring_leaves_the_attention_as_it_was() -> None:
    model = llama(VOCABULARY).eval()
    before = model.config._attn_implementation
    score_queries(model, draw(3), 4, PassKind.PACKED)
    assert model.config._attn_implementation == before
    with pytest.raises(IndexError):
        score_queries(model, [Query([VOCABULARY + 1], [[3]])], 4, PassKind.PACKED)
    assert model.config._attn_implementation == before


def test_layers_that_are_compiled_for_training_are_not_compiled_for_scoring() -> None:
    model, batch = llama(VOCABULARY).eval(), draw(4)
    with uncompiled(model):
        expected = score_queries(model, batch, 4, PassKind.PACKED)

    def refuse(graph: Any, inputs: Any) -> Any:
        raise AssertionError("compiled")

    for layer in model.model.layers:
        layer.compile(backend=refuse)
    with uncompiled(model):
        scores = score_queries(model, batch, 4, PassKind.PACKED)
    assert np.abs(np.concatenate(scores) - np.concatenate(expected)).max() <= 1e-6


def test_layers_that_are_compiled_for_scoring_are_compiled_once_for_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The flash call, which a CPU does not have, is computed plainly; the rest is the GPU's way."""
    model, calls = llama(VOCABULARY, num_hidden_layers=3).eval(), []
    batches = [draw(seed)[: 9 - seed] for seed in range(4)]
    expected = [score_queries(model, batch, 9, PassKind.PACKED) for batch in batches]

    def attend(layer: Any, query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
        layout = others["packed_branches"]
        return branches.attend_branches(query, key, value, layout, others["scaling"]), None

    def count(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph

    monkeypatch.setattr(attention, "packed_attention", attend)
    monkeypatch.setattr(flash_attention, "attend_sequences", plain_kernel)
    torch.compiler.reset()
    for layer in model.model.layers:
        layer.compile(dynamic=True, backend=count)
    for batch, scores in zip(batches, expected, strict=True):
        found = score_queries(model, batch, 9, PassKind.PACKED)
        assert np.abs(np.concatenate(found) - np.concatenate(scores)).max() <= 1e-5
    assert len(calls) == 1
