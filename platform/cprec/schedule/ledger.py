"""The ledger: what has been consumed. It lies in every checkpoint and is all that a resumed run needs besides the weights."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cprec.schedule.plan import Plan

MODULUS = 1 << 64


def ids_digest(ids: Iterable[int]) -> int:
    """The sum modulo 2^64 of sample ids (uint64): equal for equal sets of samples, whatever their order."""
    return sum(ids) % MODULUS


@dataclass(frozen=True)
class Ledger:
    """Samples consumed and optimizer steps taken under a plan, with the digest of the consumed ids."""

    plan: Plan
    samples: int = 0
    steps: int = 0
    digest: int = 0

    def add_step(self, batch_samples: int, batch_digest: int) -> "Ledger":
        """The ledger after one more optimizer step."""
        return Ledger(
            self.plan,
            self.samples + batch_samples,
            self.steps + 1,
            (self.digest + batch_digest) % MODULUS,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for ledger.json, with the samples consumed by source and version for readers."""
        consumed = [
            {"source": s, "version": v, "samples": n}
            for (s, v), n in sorted(self.plan.count_by_stream(0, self.samples).items())
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
        """The ledger of `to_json`."""
        return cls(
            Plan.from_json(values["plan"]),
            values["samples"],
            values["step"],
            int(values["ids_digest"], 16),
        )

    def fingerprint(self) -> str:
        """16 hex digits that name this ledger in a registry's lineage."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]
