"""Scores all candidates of a sample in one forward pass. Pure torch; no Ray, no I/O.

A row of tokens is `[pad.. prompt | answer 1 | answer 2 | .. pad]`, with one answer per candidate.
The attention mask lets an answer see the prompt and itself, but no other answer. Positions restart
after the prompt in every answer. So each answer has the likelihood that it has alone, while the
prompt, which holds most of the tokens, is computed once.

The score of a candidate is the log-likelihood of its answer, **summed** over its tokens including
the end token: log p(this title, then the end | prompt). Training maximises this quantity.
Restricted to the candidates, it is the model's own distribution over them. A mean per token is
not. It favours long titles, whose later words follow almost surely from the first ones, and
drowns the tokens that tell the candidates apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel


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


@dataclass(frozen=True)
class Query:
    """A sample to be scored, as tokens.

    Attributes:
        prompt: Token ids of the prompt.
        answers: Token ids of each candidate's answer.
    """

    prompt: list[int]
    answers: list[list[int]]

    @property
    def token_count(self) -> int:
        """Tokens of the prompt and all answers."""
        return len(self.prompt) + sum(map(len, self.answers))


def score_samples(
    model: PreTrainedModel, encoder: PromptEncoder, samples: pa.Table, batch_size: int
) -> NDArray[np.float64]:
    """Scores the candidates of samples with a language model.

    Args:
        model: The model, in evaluation mode, on the device where it is to compute.
        encoder: Encodes items as the model reads them.
        samples: Samples with the columns `history` and `candidates` (item indices).
        batch_size: Samples in one forward pass.

    Returns:
        Scores [n, candidates] in the order of the samples; higher is better.
    """
    queries = [
        encode_query(encoder, history, candidates)
        for history, candidates in zip(
            samples["history"].to_pylist(), samples["candidates"].to_pylist(), strict=True
        )
    ]
    scores = np.empty((len(queries), len(queries[0].answers) if queries else 0))
    # Queries of similar length share a pass, so that rows need less padding.
    order = sorted(range(len(queries)), key=lambda i: queries[i].token_count)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        scores[rows] = score_batch(model, [queries[i] for i in rows])
    return scores


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


@torch.inference_mode()
def score_batch(model: PreTrainedModel, queries: Sequence[Query]) -> NDArray[np.float64]:
    """Scores the candidates of several queries in one forward pass.

    Args:
        model: The model. It must take a 4-dimensional attention mask (eager or sdpa attention).
        queries: The queries.

    Returns:
        Scores [queries, candidates]; higher is better.
    """
    # All prompts end in one column: those before it are padded on the left, answers on the right.
    prompt_columns = max(len(q.prompt) for q in queries)
    answer_columns = max(q.token_count - len(q.prompt) for q in queries)
    ids = np.zeros((len(queries), prompt_columns + answer_columns), dtype=np.int64)
    positions = np.zeros_like(ids)
    blocks = np.full_like(ids, -1)  # -1: padding, 0: the prompt, k: the k-th answer
    # For each answer token, the logits that predict it. Logits are computed for the last column of
    # the prompt, which is number 0 here, and for the answers' columns.
    predictors = np.zeros((len(queries), answer_columns), dtype=np.int64)
    for row, q in enumerate(queries):
        prompt_start = prompt_columns - len(q.prompt)
        _write_tokens(ids[row], positions[row], blocks[row], prompt_start, q.prompt, 0, 0)
        column = prompt_columns
        for k, answer in enumerate(q.answers, 1):
            _write_tokens(ids[row], positions[row], blocks[row], column, answer, len(q.prompt), k)
            offset = column - prompt_columns
            # The end of the prompt predicts the first token of every answer.
            predictors[row, offset : offset + len(answer)] = [
                0,
                *range(offset + 1, offset + len(answer)),
            ]
            column += len(answer)

    device = model.device
    tokens = torch.from_numpy(ids).to(device)
    logits = model(
        input_ids=tokens,
        position_ids=torch.from_numpy(positions).to(device),
        attention_mask=_attention_mask(torch.from_numpy(blocks).to(device), model.dtype),
        logits_to_keep=answer_columns + 1,
        use_cache=False,
    ).logits
    # Log-probabilities of the answers' tokens only: a full log-softmax would store as much as the
    # logits once more.
    normaliser = logits.float().logsumexp(dim=-1)
    columns = torch.from_numpy(predictors).to(device)
    rows = torch.arange(len(queries), device=device)[:, None]
    token_logits = logits[rows, columns, tokens[:, prompt_columns:]].float()
    log_probabilities = token_logits - normaliser.gather(1, columns)
    # Sum per answer. Slot 0 receives the padding and is dropped.
    answers = torch.from_numpy(blocks[:, prompt_columns:]).to(device)
    slots = max(len(q.answers) for q in queries) + 1
    sums = torch.zeros(len(queries), slots, dtype=torch.float64, device=device)
    sums.scatter_add_(
        1, answers.clamp(min=0), log_probabilities.double().masked_fill(answers < 0, 0.0)
    )
    return np.asarray(sums[:, 1:].cpu().numpy(), dtype=np.float64)


def _write_tokens(
    ids: NDArray[np.int64],
    positions: NDArray[np.int64],
    blocks: NDArray[np.int64],
    column: int,
    tokens: list[int],
    first_position: int,
    block: int,
) -> None:
    """Writes a prompt or an answer into a row, from a column on."""
    columns = slice(column, column + len(tokens))
    ids[columns] = tokens
    positions[columns] = np.arange(first_position, first_position + len(tokens))
    blocks[columns] = block


def _attention_mask(blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Builds the additive mask with which answers share a prompt but do not see each other.

    A token sees itself and the earlier tokens of its block. A token of an answer also sees the
    whole prompt. Padding is seen by no other token.

    Args:
        blocks: Block of each token [n, columns]: -1 padding, 0 the prompt, k the k-th answer.
        dtype: Data type of the mask.

    Returns:
        The mask [n, 1, columns, columns]: 0 where a token (third axis) sees another (fourth axis),
        else the lowest value of `dtype`.
    """
    columns = blocks.shape[1]
    queries = blocks[:, :, None]
    keys = blocks[:, None, :]
    causal = torch.ones(columns, columns, dtype=torch.bool, device=blocks.device).tril()
    visible = causal & (keys >= 0) & ((keys == queries) | (keys == 0))
    # Padding sees itself: a row that sees nothing would be NaN, and NaN times weight 0 is NaN.
    visible |= torch.eye(columns, dtype=torch.bool, device=blocks.device)
    return torch.zeros(visible.shape, dtype=dtype, device=blocks.device).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )[:, None]
