"""Renders the report of a run, `<run>/report.html`: one offline page, from the run's own records.

It shows whatever records there are, so it can be made while the run is under way.
"""

import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cluster import storage
from cprec.runs.json_lines import read_events, read_trace
from cprec.runs.records import AUDIT_FILE, RECIPE_FILE, AuditReport, Event, TraceRow
from cprec.runs.run_plan import RunPlan
from cprec.schedule.wsa import WSA
from cprec.tracking import figures

SCHEDULE = "schedule.svg"
PAGE = "report.html"


def write(run_uri: str) -> dict[str, str]:
    """Writes the page and, beside it, the picture of the schedule into a run's folder.

    Returns:
        The content of each file by name.
    """
    run_plan = RunPlan.read(run_uri)
    wsa = run_plan.plan.wsa if run_plan is not None else None
    events, trace = read_events(run_uri), read_trace(run_uri)
    audit = _read_json(storage.join(run_uri, AUDIT_FILE))
    evaluation = storage.join(run_uri, "evaluation")
    comparisons = [
        _read_json(storage.join(evaluation, domain, "comparison.json"))
        for domain in storage.list_names(evaluation)
    ]
    pages = {
        PAGE: render(
            run_name=posixpath.basename(run_uri.rstrip("/")),
            events=events,
            trace=trace,
            wsa=wsa,
            audit=AuditReport.from_json(audit) if audit else None,
            comparisons=[comparison for comparison in comparisons if comparison],
            recipe=_read_text(storage.join(run_uri, RECIPE_FILE)),
        )
    }
    if trace:
        pages[SCHEDULE] = figures.plot_schedule(figures.drop_repeated_steps(trace), events, wsa)
    for file, content in pages.items():
        storage.write_text(storage.join(run_uri, file), content)
    return pages


def render(
    run_name: str,
    events: Sequence[Event],
    trace: Sequence[TraceRow],
    audit: AuditReport | None,
    comparisons: Sequence[Mapping[str, Any]],
    recipe: str,
    wsa: WSA | None = None,
) -> str:
    """Renders the page; all text of the records is escaped.

    Args:
        run_name: Name of the run.
        events: Its events.
        trace: Its trace, in which steps that were trained again are repeated.
        audit: Its audit; None until it is trained.
        comparisons: Contents of its comparison.json files.
        recipe: Its resolved recipe, as YAML.
        wsa: Its schedule; None where the plan is not known.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["count"] = lambda value: "–" if value is None else f"{value:,}"
    environment.filters["metric"] = lambda value: "–" if value is None else f"{value:.4f}"
    source = files("cprec.tracking").joinpath("report.html.j2").read_text("utf-8")
    steps = figures.drop_repeated_steps(trace)
    return environment.from_string(source).render(
        run=run_name,
        summary=_summary_lines(steps, audit, figures.perplexities(events)),
        figures=_render_figures(steps, events, wsa) if steps else [],
        audit=_audit_rows(audit),
        comparisons=comparisons,
        events=[_event_row(event) for event in events],
        recipe=recipe,
    )


def _summary_lines(
    steps: Sequence[TraceRow],
    audit: AuditReport | None,
    perplexities: Sequence[tuple[int, float]],
) -> list[str]:
    """Returns the numbers below the title of the page."""
    if not steps:
        return ["no steps yet"]
    seconds = sum(step.step_s + step.data_wait_s for step in steps)
    tokens = sum(step.tokens for step in steps)
    lines = [
        f"{steps[-1].end:,} samples",
        f"{len(steps):,} steps",
        f"{tokens:,} tokens",
        f"{seconds / 60:.1f} min of steps",
        f"{tokens / seconds:,.0f} tokens/s",
    ]
    if dropped := count_dropped_titles(steps):
        lines.append(f"{dropped:,} titles of histories did not fit")
    if perplexities:
        first, last = perplexities[0][1], perplexities[-1][1]
        lines.append(f"perplexity of the text: {first:.4g} → {last:.4g}")
    if audit is not None:
        lines.append(f"audit: {audit.missing} missing, {audit.repeated} repeated")
    return lines


def count_dropped_titles(trace: Iterable[TraceRow]) -> int:
    """Counts the titles of histories that did not fit into `model.max_tokens`."""
    return sum(step.dropped_titles for step in trace)


def _audit_rows(audit: AuditReport | None) -> list[dict[str, Any]]:
    """Returns the rows of the audit's table: one per source and corpus version, and the total."""
    if audit is None:
        return []
    rows = [
        {"source": source, "version": version, **counts.to_json()}
        for source, versions in audit.sources.items()
        for version, counts in versions.items()
    ]
    total = {name: value for name, value in audit.to_json().items() if name != "sources"}
    return [*rows, {"source": "all", "version": "", **total}]


def _event_row(event: Event) -> dict[str, Any]:
    """Returns one row of the table of events."""
    details = ", ".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in event.details().items()
    )
    return {
        "time": f"{datetime.fromtimestamp(event.time, UTC):%Y-%m-%d %H:%M:%S} UTC",
        "samples": event.samples,
        "event": event.event,
        "details": details,
    }


def _render_figures(
    steps: Sequence[TraceRow], events: Sequence[Event], wsa: WSA | None
) -> list[tuple[str, Markup]]:
    """Returns the figures of the page as (title, SVG element)."""
    svgs = {
        "Schedule: learning rate and sources": figures.plot_schedule(steps, events, wsa),
        "Loss on the answers' tokens": figures.plot_loss(steps),
        "Throughput": figures.plot_throughput(steps),
    }
    # Without the XML header, which has no place inside HTML. matplotlib has escaped the text.
    return [(title, Markup(svg[svg.index("<svg") :])) for title, svg in svgs.items()]  # noqa: S704


def _read_text(uri: str) -> str:
    """Reads a file as text; empty where there is none."""
    return storage.read_text(uri) if storage.exists(uri) else ""


def _read_json(uri: str) -> dict[str, Any]:
    """Reads a JSON object; empty where there is no file."""
    return dict(json.loads(_read_text(uri) or "{}"))
