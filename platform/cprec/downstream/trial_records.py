"""What a trial leaves beside its weights: the result of each epoch, and how it ended."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from cluster.storage import exists, join, read_text
from cprec.runs.record_files import read_json_object

HISTORY_FILE = "history.json"
"""File of a checkpoint that holds the results of all epochs so far."""
RESULT_FILE = "tuned.json"
"""File of a trial that holds its result."""
SEARCH_FILE = "search.json"
"""File of a search that holds the results of its trials."""


class EpochResult(TypedDict):
    """How an epoch of a fine-tuning ended: an object of history.json.

    Attributes:
        epoch: Number of the epoch, from 1.
        hr1: HR@1 on validation.
        loss: Loss of the epoch's last step (nats per token).
        samples: Samples seen.
        checkpoint: URI of the epoch's checkpoint.
        seconds: Time in optimizer steps and waiting for data, without validation (s).
        tokens: Tokens of the epoch's prompts and answers.
        memory_gb: Peak memory of the first worker so far (GB).
    """

    epoch: int
    hr1: float
    loss: float
    samples: int
    checkpoint: str
    seconds: NotRequired[float]
    tokens: NotRequired[int]
    memory_gb: NotRequired[float]


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended, as stored in tuned.json.

    A trial that diverged in its first epoch has an HR@1 of 0, epoch 0 and no checkpoint.

    Attributes:
        lr: Highest learning rate.
        seed: Seed of the trial.
        hr1: Best HR@1 on validation.
        epoch: Epoch that reached it, from 1.
        checkpoint: URI of that epoch's checkpoint.
        history: HR@1 on validation after each epoch.
        stopped: Whether the search stopped the trial early.
        diverged: Whether a loss or a score that is not finite ended the trial.
    """

    lr: float
    seed: int
    hr1: float
    epoch: int
    checkpoint: str
    history: tuple[float, ...]
    stopped: bool = False
    diverged: bool = False


def best_epoch(history: Sequence[EpochResult]) -> EpochResult | None:
    """Returns the epoch with the highest HR@1, the first of equals; None if there is none."""
    return max(history, key=lambda epoch: epoch["hr1"], default=None)


def find_result(uri: str) -> TrialResult | None:
    """Reads how a trial ended.

    Args:
        uri: Folder of the trial.

    Returns:
        The result, or None if the trial has not ended.
    """
    file = join(uri, RESULT_FILE)
    if not exists(file):
        return None
    values = read_json_object(file)
    # Files of earlier releases call the learning rate `rate`.
    if "rate" in values:
        values["lr"] = values.pop("rate")
    return TrialResult(**{**values, "history": tuple(values["history"])})


def is_trial(checkpoint_uri: str | None) -> bool:
    """Returns whether a checkpoint is one of a trial, which was scored on validation samples."""
    return checkpoint_uri is not None and exists(join(checkpoint_uri, HISTORY_FILE))


def read_history(checkpoint_uri: str) -> list[EpochResult]:
    """Reads the epochs up to a checkpoint of a trial."""
    history: list[EpochResult] = json.loads(read_text(join(checkpoint_uri, HISTORY_FILE)))
    return history
