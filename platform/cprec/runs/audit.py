"""The audit: was every planned sample trained exactly once? Recomputed from the plan and the corpus, never from what the trainer believes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cprec.schedule.ledger import ids_digest
from cprec.schedule.plan import Plan

StreamKey = tuple[str, int]


def audit(
    plan: Plan, trace: Iterable[Mapping[str, Any]], read_ids: Callable[[int, int], list[int]]
) -> dict[str, Any]:
    """The content of audit.json: planned, trained, missing, repeated, in all and by source and version.

    trace: the surviving rows of trace.jsonl. ids_at: sample ids (uint64) at positions start..stop of the plan, read from the corpus. A step counts as
    trained when the digest of its ids equals that of the plan's samples there; otherwise its samples are missing.
    """
    planned = plan.count_by_stream(0, plan.total_samples)
    trained: dict[StreamKey, int] = dict.fromkeys(planned, 0)
    covered: list[tuple[int, int]] = []
    for row in trace:
        start, stop = row["samples"], row["samples"] + row["batch_samples"]
        if (
            stop <= plan.total_samples
            and f"{ids_digest(read_ids(start, stop)):016x}" == row["ids_digest"]
        ):
            covered.append((start, stop))
            for key, count in plan.count_by_stream(start, stop).items():
                trained[key] += count
    once: dict[StreamKey, int] = dict.fromkeys(planned, 0)
    end = 0
    for start, stop in sorted(covered):
        for key, count in plan.count_by_stream(max(start, end), max(stop, end)).items():
            once[key] += count
        end = max(end, stop)
    by_key = {
        key: {
            "planned": n,
            "trained": trained[key],
            "missing": n - once[key],
            "repeated": trained[key] - once[key],
        }
        for key, n in planned.items()
    }
    total = {
        name: sum(entry[name] for entry in by_key.values())
        for name in ("planned", "trained", "missing", "repeated")
    }
    sources: dict[str, dict[str, Any]] = {}
    for (source, version), entry in sorted(by_key.items()):
        sources.setdefault(source, {})[str(version)] = entry
    return {**total, "sources": sources}
