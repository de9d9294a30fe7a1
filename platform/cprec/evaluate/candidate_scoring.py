"""Scores all candidates of a sample in one forward pass. Pure torch; no Ray, no I/O.

A row holds the prompt and one answer per candidate, and answers do not see each other
(`cprec.evaluate.candidate_rows`). So each answer has the likelihood that it has alone, while the
prompt, which holds most of the tokens, is computed once. Where the model does not keep answers
apart, which `cprec.evaluate.scoring_check` finds out, each candidate has a row of its own.

The score of a candidate is the log-likelihood of its answer, **summed** over its tokens including
the end token: log p(this title, then the end | prompt). Training maximises this quantity.
Restricted to the candidates, it is the model's own distribution over them. A mean per token is
not. It favours long titles, whose later words follow almost surely from the first ones, and
drowns the tokens that tell the candidates apart.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import PreTrainedModel

from cprec.evaluate.candidate_rows import Query, compute_logits, lay_out, sum_log_probabilities
from cprec.evaluate.scoring_check import Way, choose_scoring

MASK_ELEMENTS = 1 << 26
"""Elements of the attention mask of a pass, at most, unless a single row has more."""


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
    way: Way | None = None,
) -> NDArray[np.float64]:
    """Scores the candidates of samples with a language model.

    Args:
        model: The model, in evaluation mode, on the device where it is to compute.
        encoder: Encodes items as the model reads them.
        samples: Samples with the columns `history` and `candidates` (item indices).
        batch_size: Rows of one forward pass.
        way: How to score; None: as `choose_scoring` finds right for this model and these samples.

    Returns:
        Scores [n, candidates] in the order of the samples; higher is better.
    """
    queries = [
        encode_query(encoder, history, candidates)
        for history, candidates in zip(
            samples["history"].to_pylist(), samples["candidates"].to_pylist(), strict=True
        )
    ]
    if not queries:
        return np.empty((0, 0))
    if way is None:
        way = choose_scoring(model, max(query.longest for query in queries))
    return np.stack(score_queries(model, queries, batch_size, way.fast))


def score_queries(
    model: PreTrainedModel, queries: Sequence[Query], batch_size: int, one_pass: bool
) -> list[NDArray[np.float64]]:
    """Scores the candidates of queries, of which there may be differently many.

    Args:
        model: The model, in evaluation mode.
        queries: The queries.
        batch_size: Queries of one forward pass, at most: fewer where rows are long.
        one_pass: See `score_batch`.

    Returns:
        Scores of each query's candidates, in the order of the queries; higher is better.
    """
    scores: list[NDArray[np.float64]] = [np.empty(0)] * len(queries)
    for rows in _group_by_length(queries, batch_size):
        for row, found in zip(
            rows, score_batch(model, [queries[i] for i in rows], one_pass), strict=True
        ):
            scores[row] = found
    return scores


def _group_by_length(queries: Sequence[Query], batch_size: int) -> Iterator[list[int]]:
    """Yields the numbers of the queries of each pass: those of similar length, to pad less."""
    group: list[int] = []
    for number in sorted(range(len(queries)), key=lambda i: queries[i].token_count):
        columns = queries[number].token_count
        if len(group) == batch_size or (group and (len(group) + 1) * columns**2 > MASK_ELEMENTS):
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def encode_query(
    encoder: PromptEncoder, history: Sequence[int], candidates: Sequence[int]
) -> Query:
    """Encodes a sample to be scored.

    The prompt leaves room for the longest answer, so that all answers share one prompt.

    Args:
        encoder: Encodes items as the model reads them.
        history: Items of the history, oldest first.
        candidates: Candidate items.
    """
    answers = [encoder.encode_answer(item) for item in candidates]
    prompt, _ = encoder.encode_prompt(history, candidates, reserved_tokens=max(map(len, answers)))
    return Query(prompt, answers)


def score_batch(
    model: PreTrainedModel, queries: Sequence[Query], one_pass: bool
) -> list[NDArray[np.float64]]:
    """Scores the candidates of several queries.

    Args:
        model: The model, in evaluation mode.
        queries: The queries.
        one_pass: Whether all candidates share one forward pass; then the model must take an
            attention mask of four dimensions. Otherwise each has a row of its own, and a pass has
            as many rows as there are queries.

    Returns:
        Scores of each query's candidates; higher is better.
    """
    counts = [len(query.answers) for query in queries]
    if one_pass:
        rows = lay_out(queries)
        sums = sum_log_probabilities(compute_logits(model, rows, one_pass=True), rows)
        return [row[:count] for row, count in zip(sums, counts, strict=True)]
    single = [part for query in queries for part in query.split()]
    scores = []
    for start in range(0, len(single), len(queries)):
        rows = lay_out(single[start : start + len(queries)])
        scores.append(sum_log_probabilities(compute_logits(model, rows, one_pass=False), rows))
    return np.split(np.concatenate(scores)[:, 0], np.cumsum(counts)[:-1])
