"""One offline page of a run, `<run>/report.html`, made from the records that the run wrote. Reads whatever is there: a run may be under way."""

import json
import posixpath
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cluster import storage
from cprec.runs.records import AUDIT, EVENTS, RESOLVED, TRACE, read_json_lines
from cprec.runs.run_plan import RunPlan
from cprec.schedule.wsa import WSA
from cprec.tracking import figures
from cprec.tracking.figures import Record

SCHEDULE, PAGE = "schedule.svg", "report.html"


def write(run_uri: str) -> dict[str, str]:
    """Write the page, and the schedule picture beside it, into a run's directory (a URI), from its plan, events, trace, audit and comparisons.

    Returns what was written, by name.
    """
    name = posixpath.basename(run_uri.rstrip("/"))
    evaluation = storage.join(run_uri, "evaluation")
    comparisons = [
        _read_json(storage.join(evaluation, domain, "comparison.json"))
        for domain in storage.list_names(evaluation)
    ]
    course = RunPlan.read(run_uri)
    events, trace = (
        read_json_lines(storage.join(run_uri, EVENTS)),
        read_json_lines(storage.join(run_uri, TRACE)),
    )
    wsa = course.plan.wsa if course is not None else None
    pages = {
        PAGE: render(
            run_name=name,
            events=events,
            trace=trace,
            wsa=wsa,
            audit=_read_json(storage.join(run_uri, AUDIT)),
            comparisons=[c for c in comparisons if c],
            recipe=_read_text(storage.join(run_uri, RESOLVED)),
        )
    }
    if trace:
        pages[SCHEDULE] = figures.plot_schedule(figures.drop_repeated_steps(trace), events, wsa)
    for file, content in pages.items():
        storage.write_text(storage.join(run_uri, file), content)
    return pages


def render(
    run_name: str,
    events: Sequence[Record],
    trace: Sequence[Record],
    audit: Record,
    comparisons: Sequence[Record],
    recipe: str,
    wsa: WSA | None = None,
) -> str:
    """The page, from the records of contracts.md. Everything that came from outside is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["count"] = lambda value: "–" if value is None else f"{value:,}"
    environment.filters["share"] = lambda value: "–" if value is None else f"{value:.4f}"
    template = environment.from_string(
        files("cprec.tracking").joinpath("report.html.j2").read_text("utf-8")
    )
    steps = figures.drop_repeated_steps(trace)
    return template.render(
        run=run_name,
        summary=_summary_lines(steps, audit, figures.perplexities(events)),
        figures=_render_figures(steps, events, wsa) if steps else [],
        audit=_audit_rows(audit),
        comparisons=comparisons,
        events=[_event_row(e) for e in events],
        recipe=recipe,
    )


def _summary_lines(
    steps: Sequence[Record], audit: Record, perplexities: Sequence[tuple[int, float]]
) -> list[str]:
    if not steps:
        return ["no steps yet"]
    samples = steps[-1]["samples"] + steps[-1]["batch_samples"]
    seconds, tokens = (
        sum(s["step_s"] + s["data_wait_s"] for s in steps),
        sum(s["tokens"] for s in steps),
    )
    parts = [
        f"{samples:,} samples",
        f"{len(steps):,} steps",
        f"{tokens:,} tokens",
        f"{seconds / 60:.1f} min of steps",
        f"{tokens / seconds:,.0f} tokens/s",
    ]
    if dropped := count_dropped_titles(steps):
        parts.append(f"{dropped:,} titles of histories did not fit")
    if perplexities:
        parts.append(
            f"perplexity of the text: {' → '.join(f'{value:.4g}' for _, value in (perplexities[0], perplexities[-1]))}"
        )
    if audit:
        parts.append(f"audit: {audit['missing']} missing, {audit['repeated']} repeated")
    return parts


def count_dropped_titles(trace: Iterable[Record]) -> int:
    """Titles of histories that were dropped, the oldest first, because prompts would not have fitted into `model.max_tokens`."""
    return sum(
        step.get("dropped_titles", 0) for step in trace
    )  # earlier releases did not count them


def _audit_rows(audit: Record) -> list[dict[str, Any]]:
    if not audit:
        return []
    rows = [
        {"source": source, "version": version, **counts}
        for source, versions in audit["sources"].items()
        for version, counts in versions.items()
    ]
    return [
        *rows,
        {
            "source": "all",
            "version": "",
            **{key: audit[key] for key in ("planned", "trained", "missing", "repeated")},
        },
    ]


def _event_row(event: Record) -> dict[str, Any]:
    details = {
        key: value for key, value in event.items() if key not in ("time", "event", "samples")
    }
    shown = ", ".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in details.items()
    )
    time = f"{datetime.fromtimestamp(event['time'], UTC):%Y-%m-%d %H:%M:%S} UTC"
    return {
        "time": time,
        "samples": event.get("samples"),
        "event": event["event"],
        "details": shown,
    }


def _render_figures(
    steps: Sequence[Record], events: Sequence[Record], wsa: WSA | None
) -> list[tuple[str, Markup]]:
    drawn = {
        "Schedule: learning rate and sources": figures.plot_schedule(steps, events, wsa),
        "Loss on the answers' tokens": figures.plot_loss(steps),
        "Throughput": figures.plot_throughput(steps),
    }
    return [(title, Markup(svg[svg.index("<svg") :])) for title, svg in drawn.items()]  # noqa: S704 - matplotlib escapes the text of its SVG


def _read_text(uri: str) -> str:
    return storage.read_text(uri) if storage.exists(uri) else ""


def _read_json(uri: str) -> dict[str, Any]:
    return dict(json.loads(_read_text(uri) or "{}"))
