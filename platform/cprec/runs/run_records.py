"""Reads everything that a run has left so far, for reports and comparisons."""

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import exists, join, read_text
from cprec.runs.comparisons import read_comparisons
from cprec.runs.json_lines import read_events, read_trace
from cprec.runs.records import (
    AUDIT_FILE,
    RECIPE_FILE,
    AuditReport,
    Event,
    PerplexityMeasured,
    TraceRow,
)
from cprec.runs.run_plan import RunPlan


@dataclass(frozen=True)
class RunRecords:
    """The records of a run, each as far as it exists.

    Attributes:
        name: Name of the run.
        run_plan: Its plan; None before its first start.
        events: Its events.
        steps: Its optimizer steps, each once.
        perplexities: (samples, perplexity of evaluate.text), in order.
        audit: Its audit; None until it is trained.
        comparisons: All comparisons of models that it has kept, the oldest first.
        recipe: Its resolved recipe, as YAML.
    """

    name: str
    run_plan: RunPlan | None = None
    events: Sequence[Event] = ()
    steps: Sequence[TraceRow] = ()
    perplexities: Sequence[tuple[int, float]] = ()
    audit: AuditReport | None = None
    comparisons: Sequence[Mapping[str, Any]] = ()
    recipe: str = ""


def read_run_records(run_uri: str) -> RunRecords:
    """Reads the records of a run, which may be under way."""
    audit = _read(join(run_uri, AUDIT_FILE))
    events = read_events(run_uri)
    return RunRecords(
        name=posixpath.basename(run_uri.rstrip("/")),
        run_plan=RunPlan.read(run_uri),
        events=events,
        steps=drop_repeated_steps(read_trace(run_uri)),
        perplexities=perplexities(events),
        audit=AuditReport.from_json(json.loads(audit)) if audit else None,
        comparisons=read_comparisons(run_uri),
        recipe=_read(join(run_uri, RECIPE_FILE)),
    )


def drop_repeated_steps(trace: Sequence[TraceRow]) -> list[TraceRow]:
    """Returns one row per step, in order: the last, where a restart trained the step again."""
    last_row_by_step = {row.step: row for row in trace}
    return [row for _, row in sorted(last_row_by_step.items())]


def count_traced_samples(trace: Sequence[TraceRow]) -> int:
    """Returns how many samples, from the first on, the trace holds without a gap."""
    end = 0
    for row in drop_repeated_steps(trace):
        if row.samples != end:
            break
        end = row.end
    return end


def perplexities(events: Sequence[Event]) -> list[tuple[int, float]]:
    """Returns (samples, perplexity of the text) in order.

    A perplexity that was measured again after a restart counts once.
    """
    measured = {e.samples: e.perplexity for e in events if isinstance(e, PerplexityMeasured)}
    return sorted(measured.items())


def _read(uri: str) -> str:
    """Reads a file as text; empty where there is none."""
    return read_text(uri) if exists(uri) else ""
