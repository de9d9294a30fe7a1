"""Rows of tokens that hold prompts and answers, and the forward pass over them. Pure torch.

A row of several answers is `[pad.. prompt | answer 1 | answer 2 | .. pad]`. Its attention mask lets
an answer see the prompt and itself, but no other answer, and positions restart after the prompt in
every answer. A row of one answer is `[prompt | answer | pad..]`, as padded training has it: without
a mask, because a causal model does not see what follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cprec.model.self_check import text_config


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

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest answer."""
        return len(self.prompt) + max(map(len, self.answers))

    def split(self) -> "list[Query]":
        """Returns one query for each answer."""
        return [Query(self.prompt, [answer]) for answer in self.answers]


@dataclass(frozen=True)
class Rows:
    """Queries as rows of tokens.

    Shapes: B rows, T columns, K columns from `first_kept` on.

    Attributes:
        ids: Token ids [B, T].
        positions: Position of each token in its prompt and answer [B, T].
        blocks: What each token belongs to [B, T]: -1 padding, 0 the prompt, k the k-th answer.
        predictors: Of the columns from `first_kept` on, the one whose logits predict the token [B,
            K]; 0 where it is no answer's.
        first_kept: First column whose logits are needed.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    blocks: NDArray[np.int64]
    predictors: NDArray[np.int64]
    first_kept: int


def lay_out(queries: Sequence[Query]) -> Rows:
    """Lays out each query as a row.

    Prompts of several answers end in one column: those before it are padded on the left. A row of
    one answer begins in the first column.
    """
    branching = any(len(q.answers) > 1 for q in queries)
    widest = max(len(q.prompt) for q in queries)
    starts = [widest - len(q.prompt) if branching else 0 for q in queries]
    columns = max(start + q.token_count for start, q in zip(starts, queries, strict=True))
    first_kept = min(start + len(q.prompt) for start, q in zip(starts, queries, strict=True)) - 1
    ids = np.zeros((len(queries), columns), dtype=np.int64)
    positions = np.zeros_like(ids)
    blocks = np.full_like(ids, -1)
    predictors = np.zeros_like(ids)
    for row, (start, q) in enumerate(zip(starts, queries, strict=True)):
        end = start + len(q.prompt)
        ids[row, start:end] = q.prompt
        positions[row, start:end] = np.arange(len(q.prompt))
        blocks[row, start:end] = 0
        column = end
        for number, answer in enumerate(q.answers, 1):
            part = slice(column, column + len(answer))
            ids[row, part] = answer
            positions[row, part] = np.arange(len(q.prompt), len(q.prompt) + len(answer))
            blocks[row, part] = number
            # The end of the prompt predicts the first token of every answer.
            predictors[row, part] = [end - 1, *range(column, column + len(answer) - 1)]
            column += len(answer)
    predictors = np.maximum(predictors - first_kept, 0)[:, first_kept:]
    return Rows(ids, positions, blocks, predictors, first_kept)


@torch.inference_mode()
def compute_logits(model: Any, rows: Rows, one_pass: bool) -> torch.Tensor:
    """Computes the logits of rows from column `first_kept` on [B, K, vocabulary].

    Args:
        model: The model, in evaluation mode.
        rows: The rows.
        one_pass: Whether rows may hold several answers; then the model must take an attention mask
            of four dimensions.
    """
    kept = rows.ids.shape[1] - rows.first_kept
    arguments: dict[str, Any] = {}
    if one_pass:
        positions = torch.from_numpy(rows.positions).to(model.device)
        blocks = torch.from_numpy(rows.blocks).to(model.device)
        arguments = {
            "position_ids": positions,
            "attention_mask": branch_masks(text_config(model), blocks, positions, model.dtype),
        }
    logits: torch.Tensor = model(
        input_ids=torch.from_numpy(rows.ids).to(model.device),
        logits_to_keep=kept,
        use_cache=False,
        **arguments,
    ).logits
    return logits[:, -kept:]  # few models do not know `logits_to_keep`, and return all


def answer_logits(logits: torch.Tensor, rows: Rows, row: int, answer: int) -> torch.Tensor:
    """Returns the logits that predict an answer's tokens [tokens, vocabulary].

    Args:
        logits: Logits of `compute_logits`.
        rows: The rows.
        row: The row.
        answer: Number of the answer in its row, from 1.
    """
    columns = rows.predictors[row][rows.blocks[row, rows.first_kept :] == answer]
    return logits[row, torch.from_numpy(columns).to(logits.device)]


def sum_log_probabilities(logits: torch.Tensor, rows: Rows) -> NDArray[np.float64]:
    """Sums the log-probabilities of each answer's tokens.

    Args:
        logits: Logits of `compute_logits`.
        rows: The rows.

    Returns:
        The sums [B, answers of the longest row].
    """
    device = logits.device
    # Log-probabilities of the answers' tokens only: a full log-softmax would store as much as the
    # logits once more.
    normaliser = logits.float().logsumexp(dim=-1)
    columns = torch.from_numpy(rows.predictors).to(device)
    # Of answers only: a behaviour token of a longer prompt is beyond the vocabulary.
    answer_ids = np.where(rows.blocks > 0, rows.ids, 0)[:, rows.first_kept :]
    tokens = torch.from_numpy(answer_ids).to(device)
    numbers = torch.arange(len(tokens), device=device)[:, None]
    token_logits = logits[numbers, columns, tokens].float()
    log_probabilities = token_logits - normaliser.gather(1, columns)
    # Slot 0 receives the prompt and the padding, and is dropped.
    answers = torch.from_numpy(rows.blocks[:, rows.first_kept :]).to(device)
    sums = torch.zeros(len(tokens), int(rows.blocks.max()) + 1, dtype=torch.float64, device=device)
    sums.scatter_add_(
        1, answers.clamp(min=0), log_probabilities.double().masked_fill(answers <= 0, 0.0)
    )
    return np.asarray(sums[:, 1:].cpu().numpy(), dtype=np.float64)


def branch_masks(
    config: Any, blocks: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Builds the additive masks with which answers share a prompt but do not see each other.

    A token sees itself and the earlier tokens of its block. A token of an answer also sees the
    whole prompt. Padding is seen by no other token. Where layers see a window only, it is counted
    in positions: answers that stand between two tokens of a row are not between them in the text.

    Args:
        config: Configuration of the language model, which says what its layers see.
        blocks: Block of each token [n, columns], as in `Rows`.
        positions: Position of each token [n, columns].
        dtype: Data type of the masks.

    Returns:
        The mask [n, 1, columns, columns], 0 where a token (third axis) sees another (fourth axis),
        else the lowest value of `dtype`; or a mask for each type of layers.

    Raises:
        ValueError: Layers of some type are not told by a mask what they see.
    """
    window, chunk = (
        getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")
    )
    layer_types = set(getattr(config, "layer_types", None) or ())
    if unknown := layer_types - {"full_attention", "sliding_attention", "chunked_attention"}:
        raise ValueError(f"layers of type {', '.join(sorted(unknown))}")
    visible = _visible(blocks)
    distance = positions[:, :, None] - positions[:, None, :]
    by_type: Mapping[str, torch.Tensor] = {"full_attention": visible}
    if window is not None:
        by_type = {**by_type, "sliding_attention": visible & (distance < window)}
    if chunk is not None:
        number = positions // chunk
        same = number[:, :, None] == number[:, None, :]
        by_type = {**by_type, "chunked_attention": visible & same}
    if not layer_types:  # all layers see the same
        layer_types = {list(by_type)[-1]}
    masks = {
        name: torch.zeros(visible.shape, dtype=dtype, device=blocks.device).masked_fill_(
            ~by_type[name], torch.finfo(dtype).min
        )[:, None]
        for name in layer_types
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _visible(blocks: torch.Tensor) -> torch.Tensor:
    """Returns which tokens [n, columns] each token sees where there is no window."""
    columns = blocks.shape[1]
    keys = blocks[:, None, :]
    causal = torch.ones(columns, columns, dtype=torch.bool, device=blocks.device).tril()
    visible = causal & (keys >= 0) & ((keys == blocks[:, :, None]) | (keys == 0))
    # Padding sees itself: a row that sees nothing would be NaN, and NaN times weight 0 is NaN.
    return visible | torch.eye(columns, dtype=torch.bool, device=blocks.device)
