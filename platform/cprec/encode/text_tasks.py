"""Samples of other objectives than the next item: text tasks made of a history. Pure.

A task is derived from a corpus row when the row is encoded. So a corpus is the same for all
objectives (docs/decisions/044-objectives.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cprec.encode.tokens import EncodedSample, too_long_error
from cprec.schedule.objectives import MIN_TITLES, Objective, Objectives

MASK_ITEM = -1
"""Item whose title is `cprec.encode.prompt.MASK`."""


@dataclass(frozen=True)
class TextTask:
    """A prompt without candidates, and its answer, as item indices.

    Attributes:
        objective: What the answer is.
        shown: The history that the prompt shows, oldest first; MASK_ITEM for a hidden item.
        answers: The items that the answer names, in order.
    """

    objective: Objective
    shown: list[int]
    answers: list[int]


def derive_task(
    objective: Objective,
    history: Sequence[int],
    others: Sequence[int],
    draw: int,
    title_key: Callable[[int], object],
) -> TextTask:
    """Makes the text task of a sample.

    Args:
        objective: The objective, which is not the next item.
        history: Items of the history, oldest first, at least MIN_TITLES.
        others: Items that the user never took, of which one may replace an item.
        draw: A number of 64 bits, which decides about everything that is drawn.
        title_key: Returns a value that is equal for items of equal titles.
    """
    items, place = list(history), draw % len(history)
    match objective:
        case Objective.MASKED_ITEM:
            # Bought twice, or in two domains under one title, it would be shown elsewhere.
            hidden = title_key(items[place])
            shown = [MASK_ITEM if title_key(item) == hidden else item for item in items]
            return TextTask(objective, shown, [items[place]])
        case Objective.REPLACED_ITEM:
            start = (draw >> 32) % len(others)
            titles = {title_key(item) for item in items}
            rotated = [*others[start:], *others[:start]]
            intruder = next((i for i in rotated if title_key(i) not in titles), rotated[0])
            return TextTask(objective, [*items[:place], intruder, *items[place + 1 :]], [intruder])
        case Objective.NEXT_HISTORY:
            split = 1 + draw % (len(items) - 1)
            return TextTask(objective, items[:split], items[split:])
        case Objective.NEXT_ITEM:
            raise ValueError("the next item is no text task: its prompt has candidates")


class PromptEncoder(Protocol):
    """Encoder of prompts and answers by item index (cprec.encode.title_tokens)."""

    def encode_answer(self, item: int) -> list[int]:
        """Encodes an answer, including the end token."""

    def encode_task(self, task: TextTask) -> tuple[list[int], list[int]]:
        """Encodes the prompt and the answer, including the end token, of a text task."""

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        """Encodes corpus rows, in their order, whose objective is the next item."""


class ObjectiveEncoder:
    """Encoder of corpus rows, each of which has one of the objectives of a run."""

    def __init__(
        self, prompt_encoder: PromptEncoder, objectives: Objectives, max_tokens: int
    ) -> None:
        """Sets the encoder of prompts, the objectives and the maximum length of a sample."""
        self._prompts = prompt_encoder
        self._objectives = objectives
        self._max_tokens = max_tokens

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        """Encodes corpus rows, in their order, dropping the oldest items of histories to fit.

        Args:
            rows: Corpus rows without windows of text.

        Raises:
            DataError: A row does not fit even with as little history as its objective needs.
        """
        tasks = self._list_tasks(rows)
        is_next_item = [index not in tasks for index in range(len(rows))]
        next_items = rows.filter(pa.array(is_next_item, pa.bool_()))
        samples = iter(self._prompts.encode_samples(next_items))
        return [
            next(samples) if flag else self._encode_to_fit(tasks[index])
            for index, flag in enumerate(is_next_item)
        ]

    def shortest_task_lengths(self, rows: pa.Table) -> dict[int, int]:
        """Returns the tokens of text tasks with the least history that they may have, by row."""
        return {
            index: sum(map(len, self._encode(row, len(row.history) - MIN_TITLES)))
            for index, row in self._list_tasks(rows).items()
        }

    def _list_tasks(self, rows: pa.Table) -> dict[int, "_TaskRow"]:
        """Returns what the text tasks of rows are made of, by the index of the row."""
        drawn = draw_objectives(rows, self._objectives)
        indices = [i for i, objective in enumerate(drawn) if objective != Objective.NEXT_ITEM]
        chosen = rows.take(pa.array(indices, pa.int64()))
        draws = self._objectives.task_draws(_sample_ids(chosen))
        columns = (chosen[name].to_pylist() for name in ("history", "candidates", "target"))
        return {
            index: _TaskRow(
                drawn[index], history, [*candidates[:target], *candidates[target + 1 :]], draw
            )
            for index, draw, history, candidates, target in zip(
                indices, draws, *columns, strict=True
            )
        }

    def _encode_to_fit(self, row: "_TaskRow") -> EncodedSample:
        """Encodes a text task of as much of the history as fits."""
        for dropped in range(len(row.history) - MIN_TITLES + 1):
            prompt, answer = self._encode(row, dropped)
            if len(prompt) + len(answer) <= self._max_tokens:
                ids = np.array(prompt + answer, dtype=np.int32)
                return EncodedSample(ids, len(prompt), dropped)
        raise too_long_error(
            f"a prompt of the objective {row.objective}",
            len(prompt) + len(answer),
            self._max_tokens,
            f"with {MIN_TITLES} titles of history",
        )

    def _encode(self, row: "_TaskRow", dropped: int) -> tuple[list[int], list[int]]:
        """Encodes prompt and answer of a text task of the history without its oldest items.

        The task is drawn from what is left, so that its answer is never dropped.
        """
        return self._prompts.encode_task(
            derive_task(
                row.objective,
                row.history[dropped:],
                row.others,
                row.draw,
                lambda item: tuple(self._prompts.encode_answer(item)),
            )
        )


@dataclass(frozen=True)
class _TaskRow:
    """What a text task is made of: the arguments of `derive_task`, with the whole history."""

    objective: Objective
    history: list[int]
    others: list[int]
    draw: int


def draw_objectives(rows: pa.Table, objectives: Objectives) -> list[Objective]:
    """Returns the objective of each corpus row, in their order.

    Args:
        rows: Corpus rows without windows of text.
        objectives: The objectives of the run.
    """
    lengths = pc.list_value_length(rows["history"]).to_numpy()
    return objectives.draw(rows["source"].to_pylist(), _sample_ids(rows), lengths)


def _sample_ids(rows: pa.Table) -> NDArray[np.uint64]:
    """Returns the ids of corpus rows; Delta has no unsigned integers, and holds their bits."""
    ids: NDArray[np.uint64] = rows["sample_id"].to_numpy().view(np.uint64)
    return ids
