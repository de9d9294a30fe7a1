"""Users' training sequences, put together again from the samples of a domain. Pure.

A sample holds the end of its history, at most `max_history` items. A user's samples follow each other like links: the history of the next one is the
history of this one and its target, less the oldest item where that is too long.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def training_sequences(train: pa.Table, validation: pa.Table, test: pa.Table) -> list[list[int]]:
    """The training interactions of every user of a domain as item indices, oldest first; users in the order of their ids.

    train, validation, test: the domain's samples by split. A user whose sequence is too short for a training sample still has training interactions:
    they are the history of the validation sample, or, less the validation item, that of the test sample.
    """
    links: dict[str, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    longest = max(
        (len(h) for table in (train, validation, test) for h in table["history"].to_pylist()),
        default=0,
    )
    for user, history, target in _read_rows(train):
        links[user][history].append(target)
    found = {user: rebuild_sequence(of_user, longest) for user, of_user in links.items()}
    for user, history, _ in _read_rows(validation):
        found.setdefault(user, list(history))
    for user, history, _ in _read_rows(test):
        found.setdefault(user, list(history[:-1]))
    return [found[user] for user in sorted(found) if len(found[user]) > 1]


def rebuild_sequence(links: dict[tuple[int, ...], list[int]], max_history: int) -> list[int]:
    """One user's sequence from their links (history to targets), oldest first. Links that an appended version left unconnected follow after."""
    left = {
        history: list(targets)
        for history, targets in sorted(links.items(), key=lambda link: len(link[0]))
    }
    sequence: list[int] = []
    while left:
        history = next(iter(left))
        sequence += () if sequence else history
        while history in left:
            target = left[history].pop(0)
            if not left[history]:
                del left[history]
            sequence.append(target)
            history = (*history, target)[-max_history:]
    return sequence


def input_target_windows(sequences: Sequence[Sequence[int]], length: int) -> tuple[Ints, Ints]:
    """Inputs and targets [n, length], padded with 0 on the left: position t of the inputs is followed by position t of the targets.

    Every transition of a sequence occurs once; a sequence of more than `length` transitions is cut into several rows, whole ones from its end on.
    """
    rows = [
        sequence[max(end - length, 0) : end + 1]
        for sequence in sequences
        for end in range(len(sequence) - 1, 0, -length)
    ]
    inputs, targets = np.zeros((2, len(rows), length), dtype=np.int64)
    for row, piece in enumerate(rows):
        inputs[row, length - len(piece) + 1 :], targets[row, length - len(piece) + 1 :] = (
            piece[:-1],
            piece[1:],
        )
    return inputs, targets


def pad_histories(histories: Sequence[Sequence[int]], length: int) -> Ints:
    """The most recent `length` items of each history [n, length], padded with 0 on the left."""
    rows = np.zeros((len(histories), length), dtype=np.int64)
    for row, history in enumerate(histories):
        if kept := history[-length:]:
            rows[row, -len(kept) :] = kept
    return rows


def _read_rows(table: pa.Table) -> list[tuple[str, tuple[int, ...], int]]:
    """(user, history, target's item index) in time order, ties by item as in the corpus."""
    columns = (
        table[name].to_pylist()
        for name in ("timestamp", "user_id", "history", "candidates", "target")
    )
    rows = sorted(
        (time, candidates[target], user, tuple(history))
        for time, user, history, candidates, target in zip(*columns, strict=True)
    )
    return [(user, history, target) for _, target, user, history in rows]
