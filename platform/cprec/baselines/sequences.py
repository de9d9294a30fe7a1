"""Rebuilds users' training sequences from the samples of a domain. Pure.

A sample holds only the end of its history, at most `max_history` items. A user's samples follow
each other like links of a chain: the history of the next sample is the history of this one plus its
target, without the oldest item if that is too long.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def training_sequences(train: pa.Table, validation: pa.Table, test: pa.Table) -> list[list[int]]:
    """Returns the training interactions of every user of a domain that has at least two.

    A user whose sequence is too short for a training sample still has training interactions. They
    are the history of the validation sample, or that of the test sample without its last item:
    of whichever sample is earlier. An append adds later ones, whose histories hold the targets of
    the earlier ones.

    Args:
        train: The domain's training samples.
        validation: Its validation samples.
        test: Its test samples.

    Returns:
        Item indices of each user, oldest first; users are in the order of their ids.
    """
    links: dict[str, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    max_history = max(
        (len(h) for table in (train, validation, test) for h in table["history"].to_pylist()),
        default=0,
    )
    for _, target, user, history in _read_rows(train):
        links[user][history].append(target)
    sequences = {
        user: rebuild_sequence(user_links, max_history) for user, user_links in links.items()
    }
    held_out = [
        *_read_rows(validation),
        *((time, item, user, history[:-1]) for time, item, user, history in _read_rows(test)),
    ]
    for _, _, user, history in sorted(held_out):
        sequences.setdefault(user, list(history))
    return [sequences[user] for user in sorted(sequences) if len(sequences[user]) > 1]


def rebuild_sequence(links: dict[tuple[int, ...], list[int]], max_history: int) -> list[int]:
    """Rebuilds one user's sequence from the histories and targets of their samples.

    Args:
        links: Targets that follow each history.
        max_history: Longest history of a sample, in items.

    Returns:
        The items, oldest first. Samples that an append left without a link to the others come last.
    """
    remaining = {
        history: list(targets)
        for history, targets in sorted(links.items(), key=lambda link: len(link[0]))
    }
    sequence: list[int] = []
    while remaining:
        history = next(iter(remaining))
        # Only the first chain adds its history; later ones add their targets alone.
        sequence += () if sequence else history
        while history in remaining:
            target = remaining[history].pop(0)
            if not remaining[history]:
                del remaining[history]
            sequence.append(target)
            history = (*history, target)[-max_history:]
    return sequence


def input_target_windows(sequences: Sequence[Sequence[int]], length: int) -> tuple[Ints, Ints]:
    """Cuts sequences into rows of inputs and targets.

    Every transition of a sequence occurs once. A sequence of more than `length` transitions is cut
    into several rows, from its end on, so that only its first row is padded.

    Args:
        sequences: Item numbers of each sequence, oldest first.
        length: Places of a row.

    Returns:
        Inputs and targets [n, length], padded with 0 on the left. The target at a place is the item
        that follows the input there.
    """
    windows = [
        sequence[max(end - length, 0) : end + 1]
        for sequence in sequences
        for end in range(len(sequence) - 1, 0, -length)
    ]
    inputs, targets = np.zeros((2, len(windows), length), dtype=np.int64)
    for row, window in enumerate(windows):
        first = length - len(window) + 1
        inputs[row, first:] = window[:-1]
        targets[row, first:] = window[1:]
    return inputs, targets


def pad_histories(histories: Sequence[Sequence[int]], length: int) -> Ints:
    """Returns the most recent items of each history [n, length], padded with 0 on the left."""
    rows = np.zeros((len(histories), length), dtype=np.int64)
    for row, history in enumerate(histories):
        if recent := history[-length:]:
            rows[row, -len(recent) :] = recent
    return rows


def _read_rows(table: pa.Table) -> list[tuple[int, int, str, tuple[int, ...]]]:
    """Returns (time, target's item index, user, history) in this order, as in the corpus."""
    columns = (
        table[name].to_pylist()
        for name in ("timestamp", "user_id", "history", "candidates", "target")
    )
    return sorted(
        (time, candidates[target], user, tuple(history))
        for time, user, history, candidates, target in zip(*columns, strict=True)
    )
