"""What a run cost: time, tokens, hours of workers, and an estimate in money. Pure."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from cprec.config.sections.services import CostSettings
from cprec.runs.records import Attempt, TraceRow
from cprec.runs.run_records import RunRecords
from cprec.tracking.report.document import Section, Table, minutes, row


@dataclass(frozen=True)
class Cost:
    """What the steps of a run cost, those included that a restart trained again.

    Attributes:
        step_s: Time of steps (seconds).
        wait_s: Time that the loop waited for data (seconds).
        held_s: Time that the stable phase was held open (seconds).
        tokens: Tokens of all prompts and answers.
        worker_hours: Hours of all workers: of steps, of waiting, and of being held open.
        has_gpus: Whether each worker had a GPU.
        repeated_steps: Steps that a restart trained again.
    """

    step_s: float
    wait_s: float
    held_s: float
    tokens: int
    worker_hours: float
    has_gpus: bool
    repeated_steps: int


def measure_cost(records: RunRecords) -> Cost:
    """Measures the cost of a run.

    The workers of a step are those of the newest start at or before its sample; where no start is
    recorded (releases before 0.3), it counts as one worker.
    """
    trace = records.trace
    return Cost(
        step_s=sum(step.step_s for step in trace),
        wait_s=sum(step.data_wait_s for step in trace),
        held_s=sum(step.held_s for step in trace),
        tokens=sum(step.tokens for step in trace),
        worker_hours=_sum_worker_seconds(trace, records.attempts) / 3600,
        # A CPU has no estimate of its memory.
        has_gpus=any(step.planned_memory_gb is not None for step in trace),
        repeated_steps=len(trace) - len(records.steps),
    )


def _sum_worker_seconds(trace: Sequence[TraceRow], attempts: Sequence[Attempt]) -> float:
    starts = sorted(attempts, key=lambda attempt: (attempt.samples, attempt.number))
    samples = [attempt.samples for attempt in starts]
    total = 0.0
    for step in trace:
        before = bisect_right(samples, step.samples)
        workers = starts[before - 1].workers if before else 1
        total += workers * (step.step_s + step.data_wait_s + step.held_s)
    return total


def describe_cost(records: RunRecords, cost: Cost, settings: CostSettings) -> Section:
    """Returns the section on cost.

    Args:
        records: The records of the run.
        cost: What its steps cost.
        settings: The price of an hour.
    """
    unit = "GPU-hours" if cost.has_gpus else "worker-hours, on CPUs"
    rows = [
        row("Steps", minutes(cost.step_s)),
        row("Waiting for data", minutes(cost.wait_s)),
        row("Held open, waiting for domains", minutes(cost.held_s)),
        row("Tokens", f"{cost.tokens:,}"),
        row("Tokens per second of steps", f"{cost.tokens / max(cost.step_s, 1e-9):,.0f}"),
        row("Peak memory of the first worker", f"{_peak_memory(records.trace):.3g} GB"),
        row("Starts of workers", f"{max(len(records.attempts), 1):,}"),
        row("Steps that a restart trained again", f"{cost.repeated_steps:,}"),
        row("Compute", f"{cost.worker_hours:,.2f} {unit}"),
    ]
    if (price := settings.price_per_worker_hour) is not None:
        money = f"{cost.worker_hours * price:,.2f} {settings.currency}"
        rows.append(row("Estimated price", f"{money}, at {price:g} an hour"))
    if len(records.events) > 1:
        seconds = records.events[-1].time - records.events[0].time
        rows.append(row("From the first event to the last", minutes(max(seconds, 0.0))))
    note = (
        "Compute is of steps, of waiting for data and of being held open, times the workers; "
        "starts, checkpoints and evaluations are not in it."
    )
    if price is None:
        note += " cost.price_per_worker_hour gives an estimate in money."
    return Section("What it cost", [note], [Table(["", ""], rows)])


def _peak_memory(trace: Sequence[TraceRow]) -> float:
    return max((step.memory_gb for step in trace), default=0.0)
