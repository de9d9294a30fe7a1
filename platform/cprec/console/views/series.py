"""What a run measured at each step, kept in columns, and thinned out for a chart."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cprec.runs.records import AuditReport

POINTS = 240
"""Points of a series, at most."""

FIELDS = (
    "step",
    "samples",
    "batch_samples",
    "lr",
    "loss",
    "tokens",
    "step_s",
    "data_wait_s",
    "memory_gb",
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SeriesView:
    """The curves of a run, each with one value for each point.

    Attributes:
        samples: Samples seen after the last step of a point.
        loss: Mean loss per supervised token.
        tokens_per_s: Tokens of a second.
        data_wait: Fraction of the time that the loop waited for data (0 to 1).
        memory_gb: Peak memory of the first worker so far (GB).
        steps: Steps of the run so far.
    """

    samples: Sequence[float]
    loss: Sequence[float]
    tokens_per_s: Sequence[float]
    data_wait: Sequence[float]
    memory_gb: Sequence[float]
    steps: int


@dataclass(frozen=True)
class SourceAudit:
    """Planned against trained samples of a source at a corpus version."""

    source: str
    version: str
    planned: int
    trained: int
    missing: int
    repeated: int


@dataclass(frozen=True)
class AuditView:
    """How often planned samples were trained.

    Attributes:
        is_final: Whether it is the audit of the finished run; else it is of the steps so far, by
            their positions alone.
        planned: Samples of the plan.
        trained: Samples of all steps.
        missing: Samples that no step has: of the plan at the end, before the newest step until
            then.
        repeated: Samples that two steps have.
        sources: The same by source and version; only at the end.
    """

    is_final: bool
    planned: int
    trained: int
    missing: int
    repeated: int
    sources: Sequence[SourceAudit] = ()


class Steps:
    """The steps of a run so far."""

    def __init__(self) -> None:
        self._columns = {field: array("d") for field in FIELDS}

    def __len__(self) -> int:
        return len(self._columns["step"])

    def clear(self) -> None:
        """Forgets all steps."""
        for column in self._columns.values():
            del column[:]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows of trace.jsonl; one that lacks what a step has is left out.

        A step that was trained again takes the place of the former one, and of those after it.
        """
        for row in rows:
            try:
                values = [float(row.get(field, 0.0)) for field in FIELDS]
                row["step"], row["samples"], row["loss"]
            except (KeyError, TypeError, ValueError):
                continue
            while len(self) and self._columns["step"][-1] >= values[0]:
                for column in self._columns.values():
                    column.pop()
            for column, value in zip(self._columns.values(), values, strict=True):
                column.append(value)

    def _column(self, field: str) -> Floats:
        return np.array(self._columns[field], dtype=np.float64)

    def view(self) -> SeriesView:
        """Returns the curves, thinned out to `POINTS` points."""
        count = len(self)
        if not count:
            return SeriesView([], [], [], [], [], 0)
        size = -(-count // POINTS)
        starts = np.arange(0, count, size)
        lengths = np.diff([*starts.tolist(), count])
        durations = self._column("step_s") + self._column("data_wait_s")
        seconds = np.maximum(_sums(durations, starts), 1e-9)
        ends = self._column("samples") + self._column("batch_samples")
        return SeriesView(
            samples=np.maximum.reduceat(ends, starts).tolist(),
            loss=_round(_sums(self._column("loss"), starts) / lengths),
            tokens_per_s=_round(_sums(self._column("tokens"), starts) / seconds),
            data_wait=_round(_sums(self._column("data_wait_s"), starts) / seconds),
            memory_gb=_round(np.maximum.reduceat(self._column("memory_gb"), starts)),
            steps=count,
        )

    def audit(self, planned: int) -> AuditView:
        """Audits the steps so far, by their positions in the plan.

        Args:
            planned: Samples of the plan.
        """
        starts, sizes = self._column("samples"), self._column("batch_samples")
        trained, missing, repeated = int(sizes.sum()), 0, 0
        ends = [0, *(starts + sizes).astype(int).tolist()]
        for end, start in zip(ends, starts.astype(int).tolist(), strict=False):
            missing += max(start - end, 0)
            repeated += max(end - start, 0)
        return AuditView(False, planned, trained, missing, repeated)


def final_audit(report: AuditReport) -> AuditView:
    """Returns the audit of a finished run."""
    sources = [
        SourceAudit(source, version, c.planned, c.trained, c.missing, c.repeated)
        for source, versions in sorted(report.sources.items())
        for version, c in sorted(versions.items())
    ]
    counts = (report.planned, report.trained, report.missing, report.repeated)
    return AuditView(True, *counts, sources)


def thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Returns at most `POINTS` of some points, the first and the last among them."""
    if len(points) <= POINTS:
        return list(points)
    kept = np.linspace(0, len(points) - 1, POINTS).astype(int).tolist()
    return [points[i] for i in kept]


def _sums(column: Floats, starts: NDArray[np.int64]) -> Floats:
    return np.asarray(np.add.reduceat(column, starts), dtype=np.float64)


def _round(column: Floats) -> list[float]:
    """Returns five digits of each value, which is more than a chart shows."""
    return [float(f"{value:.5g}") for value in column.tolist()]
