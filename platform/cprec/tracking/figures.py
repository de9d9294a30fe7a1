"""A run's records as pictures: SVG whose text stays text. Equal records give equal bytes (fixed salt, no date)."""

import io
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from corpus.sampling.source import Source, SourceKind
from cprec.runs.records import (
    CorpusVersionAdopted,
    Event,
    PerplexityMeasured,
    Resumed,
    TraceRow,
)
from cprec.schedule.wsa import WSA

Floats = NDArray[np.float64]

PHASE_COLORS = {"warmup": "#f3c26b", "stable": "#8fb8de", "annealing": "#a9d5a0"}
SOURCE_COLORS = (
    "#4c78a8",
    "#f58518",
    "#54a24b",
    "#e45756",
    "#72b7b2",
    "#b279a2",
    "#eeca3b",
    "#9d755d",
    "#ff9da6",
    "#bab0ac",
)
LINE_COLOR, PLANNED_COLOR, ADOPTION_COLOR, RESTART_COLOR = (
    "#1c2430",
    "#b9c0ca",
    "#b3261e",
    "#7a4fbf",
)
MAX_POINTS = 400
"""Columns of a plot, at most: a run of a million steps is averaged down to it, so that a picture stays small."""


def drop_repeated_steps(trace: Sequence[TraceRow]) -> list[TraceRow]:
    """The steps that count, in order: of a step that was trained again after a restart, the last."""
    return [step for _, step in sorted({s.step: s for s in trace}.items())]


def plot_schedule(steps: Sequence[TraceRow], events: Sequence[Event], wsa: WSA | None) -> str:
    """The schedule picture, over samples seen: the rate as planned and as trained, phases shaded, domains that joined and restarts marked; below,
    the sources of each step as a stacked band, and the perplexity of the text where it was measured. steps: as `trained` gives them; wsa: the plan's,
    None where it is not known."""
    measured = perplexities(events)

    def draw(figure: Figure) -> None:
        rate, band, *forgetting = figure.subplots(
            3 if measured else 2, 1, sharex=True, height_ratios=(3, 2, 2)[: 3 if measured else 2]
        )
        if wsa is not None and wsa.annealing_end:
            ahead = np.unique(np.linspace(0, wsa.annealing_end, MAX_POINTS).astype(int))
            rate.plot(
                ahead,
                [wsa.lr(int(s)) for s in ahead],
                color=PLANNED_COLOR,
                linestyle="--",
                label="planned",
            )
        # Not averaged: a rate is exact at the steps shown.
        kept = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).astype(int))]
        rate.plot(
            [s.samples for s in kept], [s.lr for s in kept], color=LINE_COLOR, label="trained"
        )
        rate.set_ylabel("learning rate")
        _mark_events(rate, events)
        _shade_phases(rate, steps)
        _stack_sources(band, steps)
        for axes in forgetting:
            axes.plot(*zip(*measured, strict=True), color=LINE_COLOR, marker=".")
            axes.set_ylabel("perplexity of text")

    return _render_svg(draw, "schedule", height=6.0 if measured else 4.4)


def perplexities(events: Sequence[Event]) -> list[tuple[int, float]]:
    """Returns (samples, perplexity of the text) in order.

    What was measured again after a restart counts once.
    """
    measured = {e.samples: e.perplexity for e in events if isinstance(e, PerplexityMeasured)}
    return sorted(measured.items())


def plot_loss(steps: Sequence[TraceRow]) -> str:
    """Loss over samples seen."""
    return _plot_curve(steps, np.array([s.loss for s in steps]), "nats per token")


def plot_throughput(steps: Sequence[TraceRow]) -> str:
    """Useful tokens per second over samples seen."""
    seconds = np.array([s.step_s + s.data_wait_s for s in steps])
    return _plot_curve(
        steps,
        np.array([s.tokens for s in steps]) / np.maximum(seconds, 1e-9),
        "tokens per second",
    )


def _plot_curve(steps: Sequence[TraceRow], values: Floats, label: str) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(*downsample(_samples_seen(steps), values), color=LINE_COLOR)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label)
        _shade_phases(axes, steps)

    return _render_svg(draw, label, height=2.4)


def _samples_seen(steps: Sequence[TraceRow]) -> Floats:
    return np.array([s.samples for s in steps], dtype=float)


def downsample(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most POINTS points, each the mean of a run of neighbours."""
    starts = np.unique(np.linspace(0, len(x), min(MAX_POINTS, len(x)), endpoint=False).astype(int))
    sizes = np.diff([*starts, len(x)])
    return x[starts], np.add.reduceat(y, starts) / sizes


def _mark_events(axes: Axes, events: Sequence[Event]) -> None:
    """Draws a line where a corpus version joined, with its domains, and where training resumed."""
    for event in events:
        position = event.samples
        if isinstance(event, CorpusVersionAdopted) and position:
            sources = [Source.parse(source) for source in event.sources]
            names = ", ".join(
                s.name if s.kind is SourceKind.DOMAIN else s for s in sources if s.name
            )
            axes.axvline(position, color=ADOPTION_COLOR, linestyle=":")
            axes.annotate(
                escape_mathtext(f"version {event.version}: {names}"),
                (position, 0.5),
                (3, 0),
                ("data", "axes fraction"),
                "offset points",
                color=ADOPTION_COLOR,
            )
        elif isinstance(event, Resumed):
            axes.axvline(position, color=RESTART_COLOR, linestyle="-.", linewidth=0.8)
            axes.annotate(
                "restart",
                (position, 0.05),
                (3, 0),
                ("data", "axes fraction"),
                "offset points",
                color=RESTART_COLOR,
                fontsize=7,
            )


def _shade_phases(axes: Axes, steps: Sequence[TraceRow]) -> None:
    for phase, run in groupby(steps, key=lambda s: s.phase):
        span = list(run)
        end = span[-1].end
        axes.axvspan(
            span[0].samples,
            end,
            color=PHASE_COLORS.get(phase, "#cccccc"),
            alpha=0.3,
            linewidth=0,
            label=escape_mathtext(phase),
        )
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(PHASE_COLORS) + 2,
        frameon=False,
        borderaxespad=0,
    )


def _stack_sources(axes: Axes, steps: Sequence[TraceRow]) -> None:
    names = sorted({name for s in steps for name in s.sources})
    samples = _samples_seen(steps)
    shares = [
        downsample(samples, np.array([s.sources.get(name, 0) / s.batch_samples for s in steps]))[1]
        for name in names
    ]
    colors = [SOURCE_COLORS[i % len(SOURCE_COLORS)] for i in range(len(names))]
    axes.stackplot(
        downsample(samples, samples)[0],
        shares,
        labels=[escape_mathtext(name) for name in names],
        colors=colors,
        step="post",
    )
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of the batch")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _render_svg(draw: Callable[[Figure], None], salt: str, height: float) -> str:
    with rc_context(
        {
            "svg.hashsalt": salt,
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(9, height), layout="constrained")
        draw(figure)
        for axes in figure.axes:
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.margins(x=0)
        figure.axes[-1].set_xlabel("samples seen")
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue().decode()


def escape_mathtext(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
