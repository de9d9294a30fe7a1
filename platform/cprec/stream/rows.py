"""Division of samples among rows, as they fit or in few different lengths. Pure.

Where every new length of a row costs something (code is compiled for it, or a graph captured), rows
are made nearly equal, and filled up to lengths on a coarse grid.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

STEPS_OF_BATCH = 40
"""Steps of the grid, at least, that all rows of a worker batch have together.

About half a step of them is filled, 1 % of the tokens. A finer grid fills less, in more lengths.
"""

STEPS_OF_LONGEST_ROW = 16
"""Steps of the grid, at least, that the longest row has, so that lengths are nearly equal."""

SMALLEST_STEP = 16
"""Step of the grid where rows are tiny."""

Part = tuple[int, list[int]]
"""Sum of a part, and the indices of its numbers."""


@dataclass(frozen=True)
class Row:
    """One row of packed samples.

    Attributes:
        indices: Indices of its samples.
        length: Its tokens, with filling.
    """

    indices: tuple[int, ...]
    length: int


def divide_into_rows(
    lengths: Sequence[int], max_tokens: int, filled: bool, num_rows: int = 0
) -> list[Row]:
    """Divides samples among as few rows as they fit into.

    A sample that is longer than `max_tokens` has a row of its own.

    Args:
        lengths: Tokens of each sample.
        max_tokens: Tokens of a row, at most.
        filled: Whether rows are nearly equal, and filled up to lengths on a grid (`grid_step`).
        num_rows: Number of rows, at least.
    """
    if not filled:
        parts = first_fit(lengths, max_tokens)
        rows = [Row(tuple(part), sum(lengths[i] for i in part)) for part in parts]
        return [*rows, *[Row((), 1)] * (num_rows - len(rows))]
    alone = [i for i, length in enumerate(lengths) if length > max_tokens]
    packed = [i for i, length in enumerate(lengths) if length <= max_tokens]
    sizes = [lengths[i] for i in packed]
    step = grid_step(sum(sizes), max_tokens)

    def fill(indices: Sequence[int]) -> Row:
        tokens = sum(lengths[i] for i in indices)
        on_grid = max(-(-tokens // step), 1) * step
        return Row(tuple(indices), max(min(on_grid, max_tokens), tokens))

    parts = _divide_equally(sizes, max_tokens, step, num_rows - len(alone))
    return [
        *(fill([i]) for i in alone),
        *(fill(sorted(packed[i] for i in part)) for part in parts),
    ]


def grid_step(tokens: int, max_tokens: int) -> int:
    """Returns the step of the grid on which the lengths of rows lie: a power of two.

    Args:
        tokens: Tokens of the worker batch.
        max_tokens: Tokens of a row, at most.
    """
    step = min(tokens // STEPS_OF_BATCH, max_tokens // STEPS_OF_LONGEST_ROW)
    return max(1 << step.bit_length() >> 1, SMALLEST_STEP)


def _divide_equally(
    sizes: Sequence[int], max_tokens: int, step: int, num_rows: int
) -> list[list[int]]:
    """Divides samples among rows whose lengths are multiples of a step, with few steps in all.

    Args:
        sizes: Tokens of each sample, none above `max_tokens`.
        max_tokens: Tokens of a row, at most.
        step: The step.
        num_rows: Number of rows, at least.
    """
    tokens = sum(sizes)
    fallback = first_fit(sizes, max_tokens)
    rows = max(-(-tokens // max_tokens), num_rows)
    while rows:
        most_steps = rows * -(-max_tokens // step)
        steps = max(-(-tokens // step), rows)
        for surplus in (0, 1, 2, 4, 8, 16):
            steps = min(steps + surplus, most_steps)
            parts = balance(sizes, _heads(rows, steps, step))
            filled = [sum(sizes[i] for i in part) for part in parts]
            if max(filled) <= max_tokens and sum(-(-n // step) for n in filled) <= steps:
                return parts
            if steps == most_steps:
                break
        # Where few samples fit into a row, balanced rows may need more than the first fit does.
        if rows >= len(fallback):
            break
        rows += 1
    return [*fallback, *[[]] * (rows - len(fallback))]


def _heads(rows: int, steps: int, step: int) -> list[int]:
    """Returns what rows begin with, so that they end equal: a step where they are a step shorter.

    Args:
        rows: Number of rows.
        steps: Steps that they have together.
        step: The step.
    """
    longer = steps % rows
    return [0] * longer + [step] * (rows - longer) if longer else [0] * rows


def first_fit(sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Divides samples among rows, each into the first that has room, longest first.

    Args:
        sizes: Tokens of each sample.
        max_tokens: Tokens of a row. A sample that is longer has a row of its own.

    Returns:
        The indices of the samples of each row.
    """
    rows: list[list[int]] = []
    free_tokens: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        row = next((r for r, free in enumerate(free_tokens) if free >= sizes[index]), len(rows))
        if row == len(rows):
            rows.append([])
            free_tokens.append(max_tokens)
        rows[row].append(index)
        free_tokens[row] -= sizes[index]
    return rows


def balance(sizes: Sequence[int], heads: Sequence[int]) -> list[list[int]]:
    """Divides numbers among parts with nearly equal sums.

    This is the differencing method of Karmarkar and Karp: of the two partial divisions with the
    largest differences, the large parts of one are joined with the small parts of the other.

    Args:
        sizes: The numbers.
        heads: What the sum of each part begins with.

    Returns:
        The indices of the numbers of each part, in no order.
    """
    nothing: list[Part] = [(0, [])] * (len(heads) - 1)
    divisions: list[list[Part]] = [[(head, []) for head in sorted(heads, reverse=True)]]
    divisions += [[(size, [i]), *nothing] for i, size in enumerate(sizes)]
    heap = [(_difference(division), order, division) for order, division in enumerate(divisions)]
    heapq.heapify(heap)
    for order in range(len(heap), 2 * len(heap) - 1):
        _, _, first = heapq.heappop(heap)
        _, _, second = heapq.heappop(heap)
        joined = [
            (a + b, [*left, *right])
            for (a, left), (b, right) in zip(first, reversed(second), strict=True)
        ]
        joined.sort(key=_sum, reverse=True)
        heapq.heappush(heap, (_difference(joined), order, joined))
    return [indices for _, indices in heap[0][2]]


def _sum(part: Part) -> int:
    return part[0]


def _difference(division: Sequence[Part]) -> int:
    """Returns the smallest part less the largest: a heap gives the largest difference first."""
    return division[-1][0] - division[0][0]
