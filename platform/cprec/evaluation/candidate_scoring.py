"""Scores all candidates of samples, many samples in one forward pass. Pure torch; no Ray, no I/O.

A row of a pass holds prompts and one answer per candidate, and answers do not see each other
(`cprec.evaluation.candidate_rows`). So each answer has the likelihood that it has alone, while the
prompt, which holds most of the tokens, is computed once. Where a model does not keep answers apart,
which `cprec.evaluation.scoring_check` finds out, a slower kind of pass is taken.

The score of a candidate is the log-likelihood of its answer, **summed** over its tokens including
the end token: log p(this title, then the end | prompt). Training maximises this quantity.
Restricted to the candidates, it is the model's own distribution over them. A mean per token is
not. It favours long titles, whose later words follow almost surely from the first ones, and
drowns the tokens that tell the candidates apart.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from cluster.progress import Advance, unseen
from cprec.evaluation.candidate_rows import (
    PassKind,
    Query,
    compute_logits,
    log_probabilities,
    prepare_model,
)
from cprec.evaluation.scoring_check import ScoringMethod, choose_scoring
from cprec.model.self_check import text_config

PASS_TOKENS = {PassKind.PACKED: 1 << 15, PassKind.MASKED: 1 << 12, PassKind.ALONE: 1 << 15}
"""Tokens of a pass, at most, unless one query has more. A dense mask is quadratic in them."""
CPU_PASS_TOKENS = 1 << 11
"""The same on a CPU, which computes faster what its caches hold."""
PASS_LOGITS = 1 << 29
"""Logits of a pass, at most, unless one query has more."""


class PromptEncoder(Protocol):
    """Encodes items, given by item index, as tokens of prompts and answers.

    Implemented in cprec.encode.title_tokens and cprec.downstream.hybrid.
    """

    def encode_prompt(
        self, history: Sequence[int], candidates: Sequence[int], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Encodes a prompt.

        Args:
            history: Items of the history, oldest first.
            candidates: Candidate items.
            reserved_tokens: Tokens that the prompt leaves free for an answer.

        Returns:
            The token ids, and how many of the oldest items were dropped to make room.
        """

    def encode_answer(self, item: int) -> list[int]:
        """Encodes an answer; returns its token ids, the end token included."""


def score_samples(
    model: PreTrainedModel,
    encoder: PromptEncoder,
    samples: pa.Table,
    batch_size: int,
    method: ScoringMethod | None = None,
    advance: Advance = unseen,
) -> NDArray[np.float64]:
    """Scores the candidates of samples with a language model.

    Args:
        model: The model, in evaluation mode, on the device where it is to compute.
        encoder: Encodes items as the model reads them.
        samples: Samples with the columns `history` and `candidates` (item indices).
        batch_size: Samples of one forward pass, at most.
        method: How to score; None: as `choose_scoring` finds right for this model.
        advance: Is called with how many more samples are scored.

    Returns:
        Scores [n, candidates] in the order of the samples; higher is better.
    """
    if not len(samples):
        return np.empty((0, 0))
    queries: Iterable[Query] = _encode_samples(encoder, samples)
    if method is None:
        queries = list(queries)
        method = choose_scoring(model, max(query.longest for query in queries))
    return np.stack(score_queries(model, queries, batch_size, method.kind, advance))


def score_queries(
    model: PreTrainedModel,
    queries: Iterable[Query],
    batch_size: int,
    kind: PassKind,
    advance: Advance = unseen,
) -> list[NDArray[np.float64]]:
    """Scores the candidates of queries, of which there may be differently many.

    A GPU computes a pass while the next queries are taken; it is waited for once, at the end.

    Args:
        model: The model, in evaluation mode.
        queries: The queries.
        batch_size: Queries of one forward pass, at most: fewer where they are long.
        kind: Kind of the passes.
        advance: Is called with how many more queries are taken, after each pass.

    Returns:
        Scores of each query's candidates, in the order of the queries; higher is better.
    """
    counts: list[int] = []

    def parts() -> Iterator[Query]:
        for query in queries:
            counts.append(len(query.answers))
            if kind is PassKind.ALONE:
                yield from query.split()
            elif query.answers:
                yield query

    log_p: list[torch.Tensor] = []
    numbers: list[NDArray[np.int64]] = []
    answers = taken = 0
    with prepare_model(model, kind):
        max_tokens = PASS_TOKENS[kind]
        if model.device.type == "cpu":
            max_tokens = min(max_tokens, CPU_PASS_TOKENS)
        max_predictors = PASS_LOGITS // int(text_config(model).vocab_size)
        for group in _group(parts(), batch_size, max_tokens, max_predictors):
            logits, targets = compute_logits(model, group, kind)
            log_p.append(log_probabilities(logits, targets))
            numbers.append(targets.answers + answers)
            answers += sum(len(query.answers) for query in group)
            advance(len(counts) - taken)
            taken = len(counts)
    if not log_p:
        return [np.empty(0) for _ in counts]
    sums = np.bincount(np.concatenate(numbers), torch.cat(log_p).cpu().numpy())
    return np.split(sums, np.cumsum(counts)[:-1])


def _group(
    queries: Iterable[Query], batch_size: int, max_tokens: int, max_predictors: int
) -> Iterator[list[Query]]:
    """Yields groups of consecutive queries, one group for each forward pass.

    A query that exceeds a limit by itself has a group of its own.

    Args:
        queries: The queries.
        batch_size: Queries of a group, at most.
        max_tokens: Tokens of a group, at most, filling not counted.
        max_predictors: Tokens of a group for which logits are computed, at most.
    """
    group: list[Query] = []
    tokens = predictors = 0
    for query in queries:
        tokens += query.num_tokens
        predictors += query.num_predictors
        if group and (
            len(group) == batch_size or tokens > max_tokens or predictors > max_predictors
        ):
            yield group
            group, tokens, predictors = [], query.num_tokens, query.num_predictors
        group.append(query)
    if group:
        yield group


def _encode_samples(encoder: PromptEncoder, samples: pa.Table) -> Iterator[Query]:
    """Yields encoded samples, in their order."""
    answers: dict[int, list[int]] = {}
    for history, candidates in zip(
        samples["history"].to_pylist(), samples["candidates"].to_pylist(), strict=True
    ):
        yield encode_query(encoder, history, candidates, answers)


def encode_query(
    encoder: PromptEncoder,
    history: Sequence[int],
    candidates: Sequence[int],
    encoded: dict[int, list[int]] | None = None,
) -> Query:
    """Encodes a sample to be scored.

    The prompt leaves room for the longest answer, so that all answers share one prompt.

    Args:
        encoder: Encodes items as the model reads them.
        history: Items of the history, oldest first.
        candidates: Candidate items.
        encoded: Answers by item, which are not encoded again; those of other items are added.
    """
    encoded = {} if encoded is None else encoded
    for item in candidates:
        if item not in encoded:
            encoded[item] = encoder.encode_answer(item)
    answers = [encoded[item] for item in candidates]
    prompt, _ = encoder.encode_prompt(history, candidates, reserved_tokens=max(map(len, answers)))
    return Query(prompt, answers)
