"""Renders the report of a run, `<run>/report.html`: one offline page, from the run's own records.

It shows whatever records there are, so it can be made while the run is under way.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from cluster import storage
from cprec.evaluation.metrics import HISTORY_SLICES
from cprec.runs.comparisons import newest_by_name
from cprec.runs.events import Event
from cprec.runs.records import REPORT_FILE, AuditReport
from cprec.runs.run_records import RunRecords
from cprec.tracking import figures
from cprec.tracking.console_tables import CATALOGUE_COLUMNS, COLUMNS

SCHEDULE = "schedule.svg"
TEMPLATE = "tracking/report.html.j2"
MODES = {
    "score": "scored candidates",
    "generate": "generated answers",
    "constrained": "generated answers, restricted to the candidates",
    "catalogue": "the whole catalogue ranked, by language models what was retrieved of it",
}
"""How the page calls each form of evaluation."""


def write(records: RunRecords) -> dict[str, str]:
    """Writes the page and, beside it, the picture of the schedule into a run's folder.

    Args:
        records: The records of the run.

    Returns:
        The content of each file by name.
    """
    pictures = figures.draw_all(records)
    pages = {REPORT_FILE: render(records, pictures)}
    if pictures:
        pages[SCHEDULE] = next(iter(pictures.values()))
    for file, content in pages.items():
        storage.write_text(storage.join(records.run_uri, file), content)
    return pages


def render(records: RunRecords, pictures: Mapping[str, str]) -> str:
    """Renders the page; all text of the records is escaped.

    Args:
        records: The records of the run.
        pictures: Its pictures, as SVG by title.
    """
    environment = page_environment()
    # Without the XML header, which has no place in HTML. matplotlib has escaped the text.
    inline_svgs = [
        (title, Markup(svg[svg.index("<svg") :]))  # noqa: S704
        for title, svg in pictures.items()
    ]
    return environment.get_template(TEMPLATE).render(
        run=records.name,
        summary=_summary_lines(records),
        figures=inline_svgs,
        audit=_audit_rows(records.audit),
        comparisons=newest_by_name(records.comparisons),
        kept_comparisons=len(records.comparisons),
        modes=MODES,
        columns={mode: CATALOGUE_COLUMNS if mode == "catalogue" else COLUMNS for mode in MODES},
        slices=list(HISTORY_SLICES),
        events=[_event_row(event) for event in records.events],
        recipe=records.recipe,
    )


def page_environment() -> Environment:
    """Returns what renders pages: templates by their path below `cprec`, text escaped."""
    environment = Environment(
        loader=FunctionLoader(lambda name: files("cprec").joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda value: "–" if value is None else f"{value:,}"
    environment.filters["time"] = _format_time
    environment.filters["metric"] = lambda value: "–" if value is None else f"{value:.4f}"
    return environment


def _summary_lines(records: RunRecords) -> list[str]:
    """Returns the numbers below the title of the page."""
    steps = records.steps
    if not steps:
        return ["no steps yet"]
    seconds = sum(step.step_s for step in steps)
    data_wait = sum(step.data_wait_s for step in steps)
    tokens = sum(step.tokens for step in steps)
    lines = [
        f"{steps[-1].end:,} samples",
        f"{len(steps):,} steps",
        f"{tokens:,} tokens",
        f"{seconds / 60:.1f} min of steps",
        f"{tokens / max(seconds, 1e-9):,.0f} tokens/s in steps",
        f"{data_wait / 60:.1f} min of waiting for data",
    ]
    if held := sum(step.held_s for step in steps):
        lines.append(f"{held / 60:.1f} min held open")
    if dropped := sum(step.dropped_titles for step in steps):
        lines.append(f"{dropped:,} titles of histories did not fit")
    if measured := records.perplexities:
        first, last = measured[0][1], measured[-1][1]
        lines.append(f"perplexity of the text: {first:.4g} → {last:.4g}")
    if records.audit is not None:
        audit = records.audit
        lines.append(f"audit: {audit.missing} missing, {audit.repeated} repeated")
    return lines


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
    details = "; ".join(
        f"{name}: {format_detail(value)}" for name, value in event.details().items()
    )
    return {
        "time": _format_time(event.time),
        "samples": event.samples,
        "event": event.event,
        "details": details,
    }


def format_detail(value: Any) -> str:
    """Returns the value of a field of an event, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_detail(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(format_detail, value)) or "none"
    return str(value)


def _format_time(seconds: float) -> str:
    """Returns a time (Unix seconds) for people; 0 is a time that nobody noted."""
    if not seconds:
        return "time unknown"
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
