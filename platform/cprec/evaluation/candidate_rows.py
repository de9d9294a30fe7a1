"""Rows of tokens that hold prompts and answers, and the forward pass over them. Pure torch.

A `CandidateRow` holds several queries without padding: `[prompts | answers | filling]`. A prompt is
computed once, whatever the number of its answers, and positions restart after it in every answer.
The last token of an answer is left out: nothing is predicted from it. What keeps answers apart is
the layout of `cprec.model.layouts.branches`, or a dense mask for models whose layers do not know
it. `pad_singles` makes padded rows of one answer each, without a mask, because a causal model does
not see what follows.

Shapes: n queries, K answers, T tokens of a row, N tokens that predict, M tokens of answers.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cprec.model.kernels import attention
from cprec.model.layouts.branches import branch_arguments, copy_to_device
from cprec.model.self_check import text_config

Ints = NDArray[np.int64]

ROW_STEP = 64
"""Rows are filled up to a multiple of this, as kernels like it, so that shapes are few."""
CHUNK_ELEMENTS = 1 << 26
"""Log-probabilities that are held in fp32 at a time."""


class PassKind(StrEnum):
    """How a forward pass keeps answers apart, from the fastest kind to the slowest."""

    PACKED = "packed"
    """A row of many queries, with the layout of its branches."""
    MASKED = "masked"
    """The same row with a dense mask."""
    ALONE = "alone"
    """A padded row for each answer, without a mask."""


@dataclass(frozen=True)
class Query:
    """A sample to be scored, as tokens.

    Attributes:
        prompt: Token ids of the prompt; at least one.
        answers: Token ids of each candidate's answer; at least one each.
    """

    prompt: list[int]
    answers: list[list[int]]

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and all answers."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def num_predictors(self) -> int:
        """Tokens that predict one: the end of the prompt, and all of an answer but its last."""
        return 1 + sum(map(len, self.answers)) - len(self.answers)

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest answer."""
        return len(self.prompt) + max(map(len, self.answers), default=0)

    def split(self) -> "list[Query]":
        """Returns one query for each answer."""
        return [Query(self.prompt, [answer]) for answer in self.answers]


@dataclass(frozen=True)
class Targets:
    """The tokens of answers, and which logits predict them.

    Attributes:
        rows: Row of the logits that predicts each token, ascending [M].
        ids: Token ids [M].
        answers: Number of the answer that each token belongs to, over all queries [M].
    """

    rows: Ints
    ids: Ints
    answers: Ints

    def of_answer(self, number: int) -> Ints:
        """Returns the rows of the logits that predict an answer's tokens, in their order."""
        rows: Ints = self.rows[self.answers == number]
        return rows


@dataclass(frozen=True)
class CandidateRow:
    """Queries as one row of tokens.

    Attributes:
        ids: Token ids [T].
        positions: Position of each token in its prompt and answer [T]; 0 for filling.
        prompt_sizes: Tokens of each prompt [n].
        branch_counts: Branches of each prompt [n]: its answers, and the filling as one of the last.
        branch_sizes: Tokens of each branch.
        predictors: Tokens whose logits predict an answer's token [N].
        targets: The answers' tokens.
    """

    ids: Ints
    positions: Ints
    prompt_sizes: Ints
    branch_counts: Ints
    branch_sizes: Ints
    predictors: Ints
    targets: Targets


def pack_row(queries: Sequence[Query]) -> CandidateRow:
    """Lays out queries, of which there is at least one, in one row."""
    prompt_sizes = _lengths(query.prompt for query in queries)
    answer_counts = _lengths(query.answers for query in queries)
    answers = [answer for query in queries for answer in query.answers]
    answer_sizes = _lengths(answers)
    answer_ids = _flatten(answers)
    ends = np.cumsum(answer_sizes)
    is_first, is_last = np.zeros((2, len(answer_ids)), dtype=bool)
    is_first[ends - answer_sizes] = True
    is_last[ends - 1] = True

    prompt_tokens = int(prompt_sizes.sum())
    kept = prompt_tokens + len(answer_ids) - len(answers)
    filling = -kept % ROW_STEP
    ids = np.concatenate(
        [
            _flatten([query.prompt for query in queries]),
            answer_ids[~is_last],
            np.zeros(filling, dtype=np.int64),
        ]
    )
    query_numbers = np.repeat(np.arange(len(queries)), answer_counts)
    branch_sizes = answer_sizes - 1
    positions = np.concatenate(
        [
            _count_up(prompt_sizes),
            np.repeat(prompt_sizes[query_numbers], branch_sizes) + _count_up(branch_sizes),
            # Not after the prompt, where there might be no more positions.
            np.zeros(filling, dtype=np.int64),
        ]
    )
    branch_counts = answer_counts.copy()
    if filling:
        branch_counts[-1] += 1
        branch_sizes = np.append(branch_sizes, filling)
    # The end of a prompt predicts the first token of each of its answers. Every other token is
    # predicted by the one before it: those are the tokens that are kept, in the same order.
    predictors = np.concatenate([np.cumsum(prompt_sizes) - 1, np.arange(prompt_tokens, kept)])
    answer_numbers = np.arange(len(answers))
    targets = Targets(
        rows=np.concatenate([query_numbers, np.arange(len(queries), len(predictors))]),
        ids=np.concatenate([answer_ids[is_first], answer_ids[~is_first]]),
        answers=np.concatenate([answer_numbers, np.repeat(answer_numbers, answer_sizes - 1)]),
    )
    return CandidateRow(
        ids, positions, prompt_sizes, branch_counts, branch_sizes, predictors, targets
    )


def pad_singles(queries: Sequence[Query]) -> tuple[Ints, int, Targets]:
    """Lays out queries of one answer each as rows that begin in the first column.

    Returns:
        Token ids [n, columns], 0 where a row has ended; the number of columns, counted from the
        last, whose logits are needed; and the targets, for the logits of these columns, row by row.
    """
    columns = max(query.num_tokens for query in queries)
    kept = columns - min(len(query.prompt) for query in queries) + 1
    ids = np.zeros((len(queries), columns), dtype=np.int64)
    rows = []
    for number, query in enumerate(queries):
        ids[number, : query.num_tokens] = query.prompt + query.answers[0]
        first = number * kept + len(query.prompt) - 1 - (columns - kept)
        rows.append(np.arange(first, first + len(query.answers[0])))
    answers = [query.answers[0] for query in queries]
    targets = Targets(
        np.concatenate(rows),
        _flatten(answers),
        np.repeat(np.arange(len(queries)), _lengths(answers)),
    )
    return ids, kept, targets


def prepare_model(model: Any, kind: PassKind) -> AbstractContextManager[None]:
    """Prepares a model for passes of a kind, and restores it afterwards."""
    return attention.maskless(model) if kind is PassKind.PACKED else nullcontext()


@torch.inference_mode()
def compute_logits(
    model: Any, queries: Sequence[Query], kind: PassKind
) -> tuple[torch.Tensor, Targets]:
    """Computes the logits that predict the answers of queries in one forward pass.

    Args:
        model: The model, `prepared` for this kind, in evaluation mode.
        queries: The queries; of one answer each for `PassKind.ALONE`.
        kind: Kind of the pass.

    Returns:
        Logits [N, vocabulary], and the targets that they predict.
    """
    if kind is PassKind.ALONE:
        ids, columns, targets = pad_singles(queries)
        logits: torch.Tensor = model(
            input_ids=torch.from_numpy(ids).to(model.device),
            logits_to_keep=columns,
            use_cache=False,
        ).logits
        # Few models do not know `logits_to_keep`, and return all.
        return logits[:, -columns:].flatten(0, 1), targets
    row = pack_row(queries)
    row_ids, positions, predictors = copy_to_device(
        [row.ids, row.positions, row.predictors], model.device, torch.int64
    )
    arguments: dict[str, Any]
    if kind is PassKind.PACKED:
        arguments = branch_arguments(
            row.prompt_sizes, row.branch_counts, row.branch_sizes, model.device
        )
    else:
        masks = branch_masks(text_config(model), row, model.dtype, model.device)
        arguments = {"attention_mask": masks}
    logits = model(
        input_ids=row_ids[None],
        position_ids=positions[None],
        logits_to_keep=predictors,
        use_cache=False,
        **arguments,
    ).logits[0]
    return logits if len(logits) == len(row.predictors) else logits[predictors], row.targets


@torch.inference_mode()
def log_probabilities(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Returns the log-probability of each target [M], fp32, on the device of the logits.

    Args:
        logits: Logits [N, vocabulary].
        targets: The targets.
    """
    target_rows, target_ids = copy_to_device(
        [targets.rows, targets.ids], logits.device, torch.int64
    )
    step = max(CHUNK_ELEMENTS // logits.shape[-1], 1)
    starts = range(0, len(logits), step)
    stops = np.searchsorted(targets.rows, [start + step for start in starts]).tolist()
    found = []
    for start, first, stop in zip(starts, [0, *stops[:-1]], stops, strict=True):
        chunk = F.log_softmax(logits[start : start + step], dim=-1, dtype=torch.float32)
        found.append(chunk[target_rows[first:stop] - start, target_ids[first:stop]])
    return torch.cat(found)


def branch_masks(
    config: Any, row: CandidateRow, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Builds the additive masks with which answers share a prompt but do not see each other.

    A token sees itself and the earlier tokens of its prompt or answer. A token of an answer also
    sees the whole prompt. Where layers see a window only, it is counted in positions: answers that
    stand between two tokens of a row are not between them in the text.

    Args:
        config: Configuration of the language model, which says what its layers see.
        row: The row.
        dtype: Data type of the masks.
        device: Device of the masks.

    Returns:
        The mask [1, 1, T, T], 0 where a token (third axis) sees another (fourth axis), else the
        lowest value of `dtype`; or a mask for each type of layers.

    Raises:
        ValueError: Layers of some type are not told by a mask what they see.
    """
    window, chunk = (
        getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")
    )
    layer_types = set(getattr(config, "layer_types", None) or ())
    if unknown := layer_types - {"full_attention", "sliding_attention", "chunked_attention"}:
        raise ValueError(f"layers of type {', '.join(sorted(unknown))}")
    visible = _visible(row)
    positions = row.positions
    distance = positions[:, None] - positions[None, :]
    by_type: Mapping[str, NDArray[np.bool_]] = {"full_attention": visible}
    if window is not None:
        by_type = {**by_type, "sliding_attention": visible & (distance < window)}
    if chunk is not None:
        number = positions // chunk
        by_type = {**by_type, "chunked_attention": visible & (number[:, None] == number[None, :])}
    if not layer_types:  # all layers see the same
        layer_types = {list(by_type)[-1]}
    masks = {
        name: torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(
            torch.from_numpy(~by_type[name]).to(device), torch.finfo(dtype).min
        )[None, None]
        for name in layer_types
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _visible(row: CandidateRow) -> NDArray[np.bool_]:
    """Returns which tokens each token sees where there is no window [T, T]."""
    queries = np.arange(len(row.prompt_sizes))
    of_branches = np.repeat(queries, row.branch_counts)
    query = np.concatenate(
        [np.repeat(queries, row.prompt_sizes), np.repeat(of_branches, row.branch_sizes)]
    )
    # Number of the branch; 0 for a prompt.
    branch = np.zeros_like(query)
    branch[row.prompt_sizes.sum() :] = np.repeat(
        np.arange(1, len(row.branch_sizes) + 1), row.branch_sizes
    )
    of_prompt_or_own = (branch[None, :] == 0) | (branch[:, None] == branch[None, :])
    return np.tril((query[:, None] == query[None, :]) & of_prompt_or_own)


def _lengths(parts: Any) -> Ints:
    """Returns the lengths of sequences."""
    return np.fromiter(map(len, parts), np.int64)


def _flatten(parts: Sequence[Sequence[int]]) -> Ints:
    """Returns the concatenated numbers of sequences."""
    return np.fromiter(chain.from_iterable(parts), np.int64)


def _count_up(sizes: Ints) -> Ints:
    """Returns 0, 1, .. size - 1 for each size, one after the other."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
