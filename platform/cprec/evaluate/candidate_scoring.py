"""One-pass scoring: all candidates of a sample as answers to its one prompt, in one forward pass. Pure torch; no Ray, no I/O.

A row of tokens is `[pad.. prompt | answer 1 | answer 2 | .. pad]`. The attention mask lets an answer see the prompt and itself but no other answer,
and positions start again after the prompt in each of them, so that each answer's likelihood is the one that it has alone, while the prompt (most of
the tokens) is computed once.

A candidate's score is the log-likelihood of its answer, **summed** over its tokens, the end token included: log p(this title, then the end | prompt).
That is the quantity which training maximises, and restricted to the candidates it is the model's own distribution over them. A mean per token is not:
it favours long titles, whose later words follow almost surely from the first ones, and drowns the tokens that tell the candidates apart.
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
    """What scoring needs of an encoder of items, by index (cprec.encode.title_tokens, cprec.downstream.hybrid)."""

    def encode_prompt(
        self, history: Sequence[int], candidates: Sequence[int], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Token ids of the prompt, with room for an answer; and how many of the oldest items were dropped for it."""

    def encode_answer(self, item: int) -> list[int]:
        """Token ids of an answer, its end token included."""


@dataclass(frozen=True)
class Query:
    """A sample to be scored, as tokens: its prompt and the answer of each candidate."""

    prompt: list[int]
    answers: list[list[int]]

    @property
    def token_count(self) -> int:
        """Tokens of the whole row."""
        return len(self.prompt) + sum(map(len, self.answers))


def score_samples(
    model: PreTrainedModel, encoder: PromptEncoder, samples: pa.Table, batch_size: int
) -> NDArray[np.float64]:
    """Scores [n, candidates] of the samples' candidates, in the samples' order; higher is better.

    samples: columns history and candidates (item indices); batch: samples in one forward pass.
    The model scores on the device where it is, in evaluation mode.
    """
    queries = [
        encode_query(encoder, *pair)
        for pair in zip(
            samples["history"].to_pylist(), samples["candidates"].to_pylist(), strict=True
        )
    ]
    scores = np.empty((len(queries), len(queries[0].answers) if queries else 0))
    # Rows of similar length share a pass: less padding.
    order = sorted(range(len(queries)), key=lambda i: queries[i].token_count)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        scores[rows] = score_batch(model, [queries[i] for i in rows])
    return scores


def encode_query(
    encoder: PromptEncoder, history: Sequence[int], candidates: Sequence[int]
) -> Query:
    """One sample as tokens. The prompt leaves room for the longest answer, so that it is one prompt for all of them."""
    answers = [encoder.encode_answer(item) for item in candidates]
    prompt, _ = encoder.encode_prompt(history, candidates, reserved_tokens=max(map(len, answers)))
    return Query(prompt, answers)


@torch.inference_mode()
def score_batch(model: PreTrainedModel, queries: Sequence[Query]) -> NDArray[np.float64]:
    """Scores [queries, candidates] from one forward pass. The model must take a 4-dimensional attention mask (eager or sdpa attention)."""
    prompts, tails = (
        max(len(q.prompt) for q in queries),
        max(q.token_count - len(q.prompt) for q in queries),
    )
    ids = np.zeros((len(queries), prompts + tails), dtype=np.int64)
    positions = np.zeros_like(ids)
    block = np.full_like(ids, -1)  # -1 padding, 0 the prompt, k the k-th answer
    before = np.zeros(
        (len(queries), tails), dtype=np.int64
    )  # the column, within what is kept, that predicts this token
    for row, q in enumerate(queries):
        _write_tokens(ids[row], positions[row], block[row], prompts - len(q.prompt), q.prompt, 0, 0)
        column = prompts
        for k, answer in enumerate(q.answers, 1):
            _write_tokens(ids[row], positions[row], block[row], column, answer, len(q.prompt), k)
            offset = column - prompts
            # Kept column 0 is the prompt's last, which predicts the first token of every answer.
            before[row, offset : offset + len(answer)] = [
                0,
                *range(offset + 1, offset + len(answer)),
            ]
            column += len(answer)

    device = model.device
    tokens = torch.from_numpy(ids).to(device)
    logits = model(
        input_ids=tokens,
        position_ids=torch.from_numpy(positions).to(device),
        attention_mask=_attention_mask(torch.from_numpy(block).to(device), model.dtype),
        logits_to_keep=tails + 1,
        use_cache=False,
    ).logits
    # Log-probabilities of the tokens at hand only: a full log-softmax would hold the logits twice.
    normaliser = logits.float().logsumexp(dim=-1)
    kept = torch.from_numpy(before).to(device)
    chosen = logits[
        torch.arange(len(queries), device=device)[:, None], kept, tokens[:, prompts:]
    ].float() - normaliser.gather(1, kept)
    answers = torch.from_numpy(block[:, prompts:]).to(device)
    sums = torch.zeros(
        len(queries), max(len(q.answers) for q in queries) + 1, dtype=torch.float64, device=device
    )
    # Slot 0 takes the padding and is thrown away.
    sums.scatter_add_(1, answers.clamp(min=0), chosen.double().masked_fill(answers < 0, 0.0))
    return np.asarray(sums[:, 1:].cpu().numpy(), dtype=np.float64)


def _write_tokens(
    ids: NDArray[np.int64],
    positions: NDArray[np.int64],
    block: NDArray[np.int64],
    column: int,
    tokens: list[int],
    position: int,
    number: int,
) -> None:
    here = slice(column, column + len(tokens))
    ids[here], positions[here], block[here] = (
        tokens,
        np.arange(position, position + len(tokens)),
        number,
    )


def _attention_mask(block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [n, 1, columns, columns]: a token sees what is before it in the prompt and in its own answer. block: [n, columns]."""
    columns = block.shape[1]
    queries, keys = block[:, :, None], block[:, None, :]
    causal = torch.ones(columns, columns, dtype=torch.bool, device=block.device).tril()
    seen = causal & (keys >= 0) & ((keys == queries) | (keys == 0))
    # Padding sees itself: a row that sees nothing would be NaN, and NaN times weight 0 is NaN everywhere.
    seen |= torch.eye(columns, dtype=torch.bool, device=block.device)
    return torch.zeros(seen.shape, dtype=dtype, device=block.device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )[:, None]
