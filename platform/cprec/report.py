"""One offline page of a run, `<run>/report.html`, made from the records that the run wrote. Reads whatever is there: a run may be under way."""

import io
import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from itertools import groupby
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cluster import storage
from cprec.train.record import AUDIT, EVENTS, RESOLVED, TRACE, read_lines

Record = Mapping[str, Any]

PHASES = {"warmup": "#f3c26b", "stable": "#8fb8de", "annealing": "#a9d5a0"}
SOURCES = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#eeca3b", "#9d755d", "#ff9da6", "#bab0ac")
POINTS = 400
"""Columns of a plot, at most: a run of a million steps is averaged down to it, so that the page stays small."""


def write(run: str) -> str:
    """Write `report.html` into a run's directory (a URI), from its events, trace, audit and comparisons. Returns the page's URI."""
    name = posixpath.basename(run.rstrip("/"))
    evaluation = storage.join(run, "evaluation")
    comparisons = [_object(storage.join(evaluation, domain, "comparison.json")) for domain in storage.names(evaluation)]
    page = render(
        run=name,
        events=read_lines(storage.join(run, EVENTS)),
        trace=read_lines(storage.join(run, TRACE)),
        audit=_object(storage.join(run, AUDIT)),
        comparisons=[c for c in comparisons if c],
        recipe=_text(storage.join(run, RESOLVED)),
    )
    storage.write_text(place := storage.join(run, "report.html"), page)
    return place


def render(run: str, events: Sequence[Record], trace: Sequence[Record], audit: Record, comparisons: Sequence[Record], recipe: str) -> str:
    """The page, from the records of contracts.md. Everything that came from outside is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["count"] = lambda value: "–" if value is None else f"{value:,}"
    environment.filters["share"] = lambda value: "–" if value is None else f"{value:.4f}"
    template = environment.from_string(files("cprec").joinpath("report.html.j2").read_text("utf-8"))
    steps = _trained(trace)
    return template.render(
        run=run,
        summary=_summary(steps, audit),
        figures=_figures(steps, events) if steps else [],
        audit=_audit_rows(audit),
        comparisons=comparisons,
        events=[_event(e) for e in events],
        recipe=recipe,
    )


def _trained(trace: Sequence[Record]) -> list[Record]:
    """The steps that count, in order: of a step that was trained again after a restart, the last."""
    return [step for _, step in sorted({int(s["step"]): s for s in trace}.items())]


def _summary(steps: Sequence[Record], audit: Record) -> list[str]:
    if not steps:
        return ["no steps yet"]
    samples = steps[-1]["samples"] + steps[-1]["batch_samples"]
    seconds, tokens = sum(s["step_s"] + s["data_wait_s"] for s in steps), sum(s["tokens"] for s in steps)
    parts = [
        f"{samples:,} samples",
        f"{len(steps):,} steps",
        f"{tokens:,} tokens",
        f"{seconds / 60:.1f} min of steps",
        f"{tokens / seconds:,.0f} tokens/s",
    ]
    if audit:
        parts.append(f"audit: {audit['missing']} missing, {audit['repeated']} repeated")
    return parts


def _audit_rows(audit: Record) -> list[dict[str, Any]]:
    if not audit:
        return []
    rows = [{"source": source, "version": version, **counts} for source, versions in audit["sources"].items() for version, counts in versions.items()]
    return [*rows, {"source": "all", "version": "", **{key: audit[key] for key in ("planned", "trained", "missing", "repeated")}}]


def _event(event: Record) -> dict[str, Any]:
    details = {key: value for key, value in event.items() if key not in ("time", "event", "samples")}
    shown = ", ".join(f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in details.items())
    time = f"{datetime.fromtimestamp(event['time'], UTC):%Y-%m-%d %H:%M:%S} UTC"
    return {"time": time, "samples": event.get("samples"), "event": event["event"], "details": shown}


def _figures(steps: Sequence[Record], events: Sequence[Record]) -> list[tuple[str, Markup]]:
    samples = np.array([s["samples"] for s in steps], dtype=float)
    seconds = np.array([s["step_s"] + s["data_wait_s"] for s in steps])
    tokens = np.array([s["tokens"] for s in steps], dtype=float)
    adopted = [e for e in events if e["event"] == "corpus_version_adopted"]

    def rate(axes: Axes) -> None:
        # Not averaged: a rate is exact at the steps shown.
        kept = np.unique(np.linspace(0, len(steps) - 1, POINTS).astype(int))
        axes.plot(samples[kept], [steps[i]["lr"] for i in kept], color="#1c2430")
        for event in adopted:
            axes.axvline(event.get("samples") or 0, color="#b3261e", linestyle=":")
            axes.annotate(
                f"version {event['version']}", (event.get("samples") or 0, 0.5), (3, 0), ("data", "axes fraction"), "offset points", color="#b3261e"
            )

    def loss(axes: Axes) -> None:
        axes.plot(*_averaged(samples, np.array([s["loss"] for s in steps])), color="#1c2430")
        axes.set_ylim(bottom=0)

    def throughput(axes: Axes) -> None:
        axes.plot(*_averaged(samples, tokens / np.maximum(seconds, 1e-9)), color="#1c2430")
        axes.set_ylim(bottom=0)

    def sources(axes: Axes) -> None:
        names = sorted({name for s in steps for name in s["sources"]})
        counts = [_averaged(samples, np.array([s["sources"].get(name, 0) / s["batch_samples"] for s in steps]))[1] for name in names]
        colors = [SOURCES[i % len(SOURCES)] for i in range(len(names))]
        axes.stackplot(_averaged(samples, samples)[0], counts, labels=[_plain(name) for name in names], colors=colors, step="post")
        axes.set_ylim(0, 1)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)

    drawn = {
        "Learning rate by samples seen": (rate, "learning rate", True),
        "Loss on the answers' tokens": (loss, "nats per token", True),
        "Throughput": (throughput, "tokens per second", True),
        "Sources of each step": (sources, "share of the batch", False),
    }
    return [(title, _svg(draw, label, steps if shaded else (), title)) for title, (draw, label, shaded) in drawn.items()]


def _averaged(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most POINTS points, each the mean of a run of neighbours."""
    starts = np.unique(np.linspace(0, len(x), min(POINTS, len(x)), endpoint=False).astype(int))
    sizes = np.diff([*starts, len(x)])
    return x[starts], np.add.reduceat(y, starts) / sizes


def _svg(draw: Callable[[Axes], None], label: str, shaded: Sequence[Record], title: str) -> Markup:
    """A plot as inline SVG. Fixed salt and no date: equal records give an equal page. Text stays text, so that the browser's fonts draw it."""
    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 2.4), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        for phase, run in groupby(shaded, key=lambda s: s["phase"]):
            span = list(run)
            end = span[-1]["samples"] + span[-1]["batch_samples"]
            axes.axvspan(span[0]["samples"], end, color=PHASES.get(phase, "#cccccc"), alpha=0.3, linewidth=0, label=_plain(phase))
        if shaded:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(PHASES), frameon=False, borderaxespad=0)
        axes.set_xlabel("samples seen")
        axes.set_ylabel(label)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.margins(x=0)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue().decode()
    return Markup(svg[svg.index("<svg") :])  # noqa: S704 - matplotlib escapes the text of its SVG


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def _text(uri: str) -> str:
    return storage.read_text(uri) if storage.exists(uri) else ""


def _object(uri: str) -> dict[str, Any]:
    return dict(json.loads(_text(uri) or "{}"))
