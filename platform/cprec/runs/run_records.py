"""Everything that a run has left so far, read once for its audit, its reports and its lineage."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.storage import absolute_uri, join, read_text_if_exists
from cprec.config.recipe import Recipe
from cprec.runs.comparisons import read_comparisons
from cprec.runs.control.attempts import list_attempts
from cprec.runs.events import Event, PerplexityMeasured
from cprec.runs.json_lines import read_events, read_trace
from cprec.runs.record_files import read_record
from cprec.runs.records import AUDIT_FILE, RECIPE_FILE, Attempt, AuditReport, TraceRow, run_folder
from cprec.runs.run_plan import RunPlan


def recipe_run_uri(recipe: Recipe) -> str:
    """Returns the folder of the recipe's run, whose newest version is the candidate."""
    return run_folder(absolute_uri(recipe.storage), recipe.run)


@dataclass(frozen=True)
class RunRecords:
    """The records of a run, each as far as it exists.

    Attributes:
        run_uri: Folder of the run.
        run_plan: Its plan; None before its first start.
        events: Its events.
        trace: Its optimizer steps, in the order in which they were taken.
        audit: Its audit; None until it is trained.
        comparisons: All comparisons of models that it has kept, the oldest first.
        recipe: Its resolved recipe, as YAML.
        attempts: The starts of its workers, in order.
    """

    run_uri: str
    run_plan: RunPlan | None = None
    events: Sequence[Event] = ()
    trace: Sequence[TraceRow] = ()
    audit: AuditReport | None = None
    comparisons: Sequence[Mapping[str, Any]] = ()
    recipe: str = ""
    attempts: Sequence[Attempt] = ()

    @property
    def name(self) -> str:
        """Name of the run."""
        return posixpath.basename(self.run_uri.rstrip("/"))

    @cached_property
    def steps(self) -> list[TraceRow]:
        """One row per step, in order: the last, where a restart trained the step again."""
        return drop_repeated_steps(self.trace)

    @cached_property
    def perplexities(self) -> list[tuple[int, float]]:
        """(samples, perplexity of evaluate.text), in order.

        A perplexity that was measured again after a restart counts once.
        """
        measured = {
            event.samples: event.perplexity
            for event in self.events
            if isinstance(event, PerplexityMeasured)
        }
        return sorted(measured.items())


def read_run_records(run_uri: str) -> RunRecords:
    """Reads the records of a run, which may be under way."""
    events, trace = read_events(run_uri), read_trace(run_uri)
    recipe = read_text_if_exists(join(run_uri, RECIPE_FILE))
    return RunRecords(
        run_uri,
        RunPlan.read(run_uri),
        events,
        trace,
        audit=read_audit(run_uri),
        comparisons=read_comparisons(run_uri),
        recipe=recipe or "",
        attempts=list_attempts(run_uri),
    )


def read_audit(run_uri: str) -> AuditReport | None:
    """Reads the audit of a run; None until it is trained."""
    return read_record(join(run_uri, AUDIT_FILE), AuditReport)


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
