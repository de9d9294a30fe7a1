"""The ledger: what a run has consumed.

Every checkpoint holds one. It is all that a resumed run needs besides the weights.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from cprec.schedule.plan import Plan

MODULUS = 1 << 64
"""Digests of sample ids are sums modulo this number."""


class ConsumedSamples(TypedDict):
    """Samples consumed of one stream.

    Attributes:
        source: Source of the samples.
        version: Corpus version of the samples.
        samples: How many were consumed.
    """

    source: str
    version: int
    samples: int


class LedgerJson(TypedDict):
    """The content of ledger.json.

    Attributes:
        samples: Samples consumed.
        step: Optimizer steps taken.
        ids_digest: Sum modulo 2^64 of the ids of all samples consumed (16 hex digits).
        consumed: What was consumed of each stream. It is for readers: the plan implies it.
        plan: The plan when the checkpoint was saved.
    """

    samples: int
    step: int
    ids_digest: str
    consumed: list[ConsumedSamples]
    plan: Annotated[dict[str, Any], Plan]


def ids_digest(ids: Iterable[int]) -> int:
    """Returns the sum modulo 2^64 of sample ids (uint64).

    Equal sets of samples have equal digests, in whatever order they are trained.
    """
    return sum(ids) % MODULUS


@dataclass(frozen=True)
class Ledger:
    """Samples consumed and optimizer steps taken under a plan.

    Attributes:
        plan: The plan as it stood.
        samples: Samples consumed.
        steps: Optimizer steps taken.
        digest: `ids_digest` of all consumed samples.
    """

    plan: Plan
    samples: int = 0
    steps: int = 0
    digest: int = 0

    def add_step(self, batch_samples: int, batch_digest: int) -> "Ledger":
        """Returns the ledger after one more optimizer step.

        Args:
            batch_samples: Samples of the step, over all workers.
            batch_digest: `ids_digest` of these samples.
        """
        return Ledger(
            self.plan,
            self.samples + batch_samples,
            self.steps + 1,
            (self.digest + batch_digest) % MODULUS,
        )

    def to_json(self) -> LedgerJson:
        """Returns the content of ledger.json."""
        counts = self.plan.count_by_stream(0, self.samples)
        consumed: list[ConsumedSamples] = [
            {"source": source, "version": version, "samples": count}
            for (source, version), count in sorted(counts.items())
        ]
        return {
            "samples": self.samples,
            "step": self.steps,
            "ids_digest": f"{self.digest:016x}",
            "consumed": consumed,
            "plan": self.plan.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Ledger":
        """Reads a ledger from the plain data of `to_json`."""
        return cls(
            Plan.from_json(values["plan"]),
            values["samples"],
            values["step"],
            int(values["ids_digest"], 16),
        )

    def fingerprint(self) -> str:
        """Returns 16 hex digits that identify this ledger in a registered version's lineage."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
