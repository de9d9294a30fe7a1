"""The audit: was every planned sample trained exactly once?

It is recomputed from the plan and the corpus, never from what the trainer believes. Pure.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from cprec.runs.records import AuditCounts, AuditReport, ObjectiveCounts, TraceRow
from cprec.schedule.ledger import ids_digest
from cprec.schedule.plan import Plan, StreamKey


def audit(
    plan: Plan,
    trace: Iterable[TraceRow],
    read_ids: Callable[[int, int], list[int]],
    count_objectives: Callable[[int, int], Mapping[str, int]] | None = None,
) -> AuditReport:
    """Compares the steps of a run with its plan.

    A step counts as trained if the digest of its ids equals that of the plan's samples at its
    positions. Otherwise its samples are missing.

    Args:
        plan: The run's plan.
        trace: Rows of trace.jsonl, without those that a restart undid.
        read_ids: Reads the sample ids (uint64) at positions start .. stop - 1 of the plan from the
            corpus.
        count_objectives: Counts the samples of each objective at these positions, from the corpus
            and the recipe; None: all samples have the next item.
    """
    given: Counter[str] = Counter()
    trained_objectives: Counter[str] = Counter()
    planned = plan.count_by_stream(0, plan.total_samples)
    trained: dict[StreamKey, int] = dict.fromkeys(planned, 0)
    intervals: list[tuple[int, int]] = []
    for row in trace:
        if row.end > plan.total_samples:
            continue
        if f"{ids_digest(read_ids(row.samples, row.end)):016x}" == row.ids_digest:
            intervals.append((row.samples, row.end))
            if count_objectives is not None:
                given.update(count_objectives(row.samples, row.end))
                trained_objectives.update(row.objectives or {})
            for key, count in plan.count_by_stream(row.samples, row.end).items():
                trained[key] += count

    # What the union of all intervals covers was trained at least once.
    covered: dict[StreamKey, int] = dict.fromkeys(planned, 0)
    end = 0
    for start, stop in sorted(intervals):
        for key, count in plan.count_by_stream(max(start, end), max(stop, end)).items():
            covered[key] += count
        end = max(end, stop)

    by_stream = {
        key: AuditCounts(
            planned=count,
            trained=trained[key],
            missing=count - covered[key],
            repeated=trained[key] - covered[key],
        )
        for key, count in planned.items()
    }
    sources: dict[str, dict[str, AuditCounts]] = {}
    for (source, version), counts in sorted(by_stream.items()):
        sources.setdefault(str(source), {})[str(version)] = counts
    return AuditReport(
        planned=sum(counts.planned for counts in by_stream.values()),
        trained=sum(counts.trained for counts in by_stream.values()),
        missing=sum(counts.missing for counts in by_stream.values()),
        repeated=sum(counts.repeated for counts in by_stream.values()),
        sources=sources,
        objectives={
            name: ObjectiveCounts(planned=given[name], trained=trained_objectives[name])
            for name in sorted(given | trained_objectives)
        }
        or None,
    )
