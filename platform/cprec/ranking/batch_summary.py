"""What a finished batch of rankings says of itself: its summary, and the rows without a ranking."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, TypedDict

from cluster import storage
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.ranking.batch_input import Rejected

SUMMARY = "summary.json"
QUARANTINE = "quarantine.jsonl"


class BatchCounts(TypedDict):
    """Rows of a batch.

    Attributes:
        rows: Rows of the input.
        ranked: Rows that are ranked: users.
        not_ranked: Rows that are not, by reason.
    """

    rows: int
    ranked: int
    not_ranked: dict[str, int]


class LastStart(TypedDict):
    """What the last start of a batch did.

    Attributes:
        users: Users that it ranked.
        seconds: Time that it took (s).
        users_per_s: Users per second; None where no time was measured.
    """

    users: int
    seconds: float
    users_per_s: float | None


class BatchSummary(TypedDict):
    """The content of summary.json.

    Attributes:
        rankings: Folder of the blocks.
        model: The model that ranked.
        counts: How many rows there are.
        inputs: What the rankings depend on: equal inputs are not ranked again.
        last_start: What the last start did.
    """

    rankings: str
    model: Annotated[dict[str, Any], EvaluatedModel]
    counts: BatchCounts
    inputs: dict[str, Any]
    last_start: LastStart


def write_quarantine(uri: str, rejected: Sequence[Rejected]) -> None:
    """Writes the rows that are not ranked into the folder of a batch, one JSON object a line."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rejected]
    content = ("\n".join(lines) + "\n").encode("utf-8", "replace")
    storage.write_bytes(storage.join(uri, QUARANTINE), content)
