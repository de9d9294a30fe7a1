"""Draws the records of runs and searches as SVG whose text stays text.

Equal records give equal bytes: the ids in the SVG have a fixed salt, and there is no date.
"""

import io
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby, pairwise

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from corpus.sampling.source import Source, SourceKind
from cprec.downstream.trial_records import TrialResult
from cprec.evaluation.significance import wilson_interval
from cprec.runs.events import CorpusVersionAdopted, Event, Resumed
from cprec.runs.records import TraceRow
from cprec.runs.run_records import RunRecords
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
LINE_COLOR = "#1c2430"
PLANNED_COLOR = "#b9c0ca"
ADOPTION_COLOR = "#b3261e"
RESTART_COLOR = "#7a4fbf"

MAX_READINGS = 160
"""Positions of a picture at which a reader is told the values, at most."""

MAX_POINTS = 400
"""Points of a curve, at most: a picture of a million steps stays as small as that of a few."""


def draw_all(records: RunRecords) -> dict[str, str]:
    """Draws the pictures of the report: SVG by title, the schedule first; none before a step."""
    steps = records.steps
    if not steps:
        return {}
    wsa = records.run_plan.plan.wsa if records.run_plan is not None else None
    return {
        "Schedule: learning rate and sources": plot_schedule(records, wsa),
        "Loss on the answers' tokens": plot_loss(steps),
        "Throughput": plot_throughput(steps),
    }


def plot_schedule(records: RunRecords, wsa: WSA | None) -> str:
    """Draws the schedule over samples seen.

    The upper plot has the learning rate, as planned and as trained, with phases shaded, and new
    domains and restarts marked. Below it are the sources of each step as a stacked band, and the
    perplexity of the text where it was measured.

    Args:
        records: Records of the run.
        wsa: Schedule of the plan; None where it is not known.

    Returns:
        An SVG.
    """
    steps, measured = records.steps, records.perplexities

    def draw(figure: Figure) -> None:
        height_ratios = (3, 2, 2) if measured else (3, 2)
        lr_axes, source_axes, *perplexity_axes = figure.subplots(
            len(height_ratios), 1, sharex=True, height_ratios=height_ratios
        )
        if wsa is not None and wsa.annealing_end:
            positions = np.unique(np.linspace(0, wsa.annealing_end, MAX_POINTS).astype(int))
            lr_axes.plot(
                positions,
                [wsa.lr(int(position)) for position in positions],
                color=PLANNED_COLOR,
                linestyle="--",
                label="planned",
            )
        # Picked, not averaged: each point is the exact learning rate of a step.
        picked = np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).astype(int))
        lr_axes.plot(
            [steps[i].samples for i in picked],
            [steps[i].lr for i in picked],
            color=LINE_COLOR,
            label="trained",
        )
        lr_axes.set_ylabel("learning rate")
        _mark_events(lr_axes, records.events, max(steps[-1].end, wsa.annealing_end if wsa else 0))
        _shade_phases(lr_axes, steps)
        _stack_sources(source_axes, steps)
        for axes in perplexity_axes:
            axes.plot(*zip(*measured, strict=True), color=LINE_COLOR, marker=".")
            axes.set_ylabel("perplexity of text")

    height = 6.0 if measured else 4.4
    return _render_over_samples(draw, "schedule", height, _read_schedule(steps))


def plot_loss(steps: Sequence[TraceRow]) -> str:
    """Draws the loss over samples seen."""
    losses = np.array([step.loss for step in steps])
    return _plot_curve(steps, losses, "nats per token", "loss {:.4f}")


def plot_throughput(steps: Sequence[TraceRow]) -> str:
    """Draws useful tokens per second, without padding, over samples seen."""
    tokens = np.array([step.tokens for step in steps])
    seconds = np.array([step.step_s + step.data_wait_s for step in steps])
    speeds = tokens / np.maximum(seconds, 1e-9)
    return _plot_curve(steps, speeds, "tokens per second", "{:,.0f} tokens/s")


def _plot_curve(steps: Sequence[TraceRow], values: Floats, label: str, reading: str) -> str:
    """Draws one value per step over samples seen, with phases shaded.

    Args:
        steps: The steps.
        values: A value of each [steps].
        label: Name of the axis.
        reading: Format of a value that a reader points at.
    """
    positions, means = downsample(_samples_seen(steps), values)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(positions, means, color=LINE_COLOR)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label)
        _shade_phases(axes, steps)

    readings = [
        (position, f"sample {position:,.0f}: {reading.format(mean)}")
        for position, mean in zip(positions.tolist(), means.tolist(), strict=True)
    ]
    return _render_over_samples(draw, label, 2.4, readings)


def _read_schedule(steps: Sequence[TraceRow]) -> list[tuple[float, str]]:
    """Returns what a reader of the schedule is told at some steps."""
    picked = np.unique(np.linspace(0, len(steps) - 1, MAX_READINGS).astype(int))
    return [
        (
            steps[i].samples,
            f"sample {steps[i].samples:,}: {steps[i].phase}, learning rate {steps[i].lr:.3g}, "
            + ", ".join(f"{name} {count:,}" for name, count in sorted(steps[i].sources.items())),
        )
        for i in picked
    ]


def plot_trials(results: Sequence[TrialResult], best_lr: float, samples: int) -> str:
    """Draws HR@1 on validation of every trial of a search, by epoch and by learning rate.

    Args:
        results: The trials.
        best_lr: The best learning rate.
        samples: Validation samples that each trial was scored on, from which the 95 % intervals
            follow.
    """

    def reach(hr1s: Sequence[float], count: int) -> NDArray[np.float64]:
        """Returns how far the interval (Wilson) of each HR@1 reaches: below, above [2, n]."""
        bounds = np.array([wilson_interval(hr1, count) for hr1 in hr1s]).reshape(-1, 2).T
        return np.asarray(np.abs(bounds - np.array(hr1s)))

    def draw(figure: Figure) -> None:
        curves, summary = figure.subplots(1, 2)
        # Side by side, so that the intervals of one epoch can be told apart.
        shifts = np.linspace(-0.1, 0.1, len(results))
        for shift, result in zip(shifts, results, strict=True):
            curves.errorbar(
                np.arange(1, len(result.history) + 1) + shift,
                result.history,
                reach(result.history, samples),
                elinewidth=0.7,
                marker=".",
                linestyle=":" if result.stopped else "-",
                label=f"{result.lr:g}, seed {result.seed}",
            )
        curves.set_xlabel("epoch (dotted: cut short; bars: 95 %)")
        curves.set_xticks(range(1, max(len(result.history) for result in results) + 1))
        curves.set_ylabel("HR@1 on validation")
        curves.legend(frameon=False, fontsize=7)
        lrs = sorted({result.lr for result in results})
        hr1s = [[r.hr1 for r in results if r.lr == lr] for lr in lrs]
        means = [float(np.mean(of_lr)) for of_lr in hr1s]
        reaches = [
            reach([mean], samples * len(n))[:, 0] for mean, n in zip(means, hr1s, strict=True)
        ]
        summary.scatter([r.lr for r in results], [r.hr1 for r in results], color="#8fb8de")
        summary.errorbar(lrs, means, np.array(reaches).T, color="#1c2430", capsize=3)
        summary.axvline(best_lr, color="#b3261e", linestyle=":")
        summary.set_xscale("log")
        summary.set_xlabel("learning rate")

    return render_svg(draw, "trials", 2.8)


def _samples_seen(steps: Sequence[TraceRow]) -> Floats:
    """Returns the samples seen before each step [steps]."""
    return np.array([step.samples for step in steps], dtype=float)


def downsample(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Reduces a curve to at most MAX_POINTS points.

    Args:
        x: Positions [points], ascending.
        y: Values [points].

    Returns:
        Positions and values. Each value is the mean of neighbours, at the position of the first.
    """
    starts = np.unique(np.linspace(0, len(x), min(MAX_POINTS, len(x)), endpoint=False).astype(int))
    sizes = np.diff([*starts, len(x)])
    return x[starts], np.add.reduceat(y, starts) / sizes


def _mark_events(axes: Axes, events: Sequence[Event], end: int) -> None:
    """Draws a line at each adopted corpus version, with its domains, and at each restart.

    Args:
        axes: The plot of learning rates.
        events: Events of the run.
        end: Last sample of the plot.
    """
    for event in events:
        position = event.samples
        if isinstance(event, CorpusVersionAdopted) and position:
            sources = [Source.parse(text) for text in event.sources]
            # Domains and texts; mixed samples have no name.
            names = ", ".join(
                source.name if source.kind is SourceKind.DOMAIN else source
                for source in sources
                if source.kind is not SourceKind.MIXED
            )
            axes.axvline(position, color=ADOPTION_COLOR, linestyle=":")
            # On the side of the line where there is more room.
            is_late = position > end / 2
            axes.annotate(
                escape_mathtext(f"version {event.version}: {names}"),
                (position, 0.5),
                (-3 if is_late else 3, 0),
                ("data", "axes fraction"),
                "offset points",
                ha="right" if is_late else "left",
                color=ADOPTION_COLOR,
                wrap=True,
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
    """Shades each phase in its colour, and adds the legend of the plot."""
    for phase, group in groupby(steps, key=lambda step: step.phase):
        phase_steps = list(group)
        axes.axvspan(
            phase_steps[0].samples,
            phase_steps[-1].end,
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
    """Draws the fraction of each batch that is from each source, stacked to 1."""
    names = sorted({name for step in steps for name in step.sources})
    samples = _samples_seen(steps)
    fractions = []
    for name in names:
        counts = np.array([step.sources.get(name, 0) / step.batch_samples for step in steps])
        fractions.append(downsample(samples, counts)[1])
    colors = [SOURCE_COLORS[i % len(SOURCE_COLORS)] for i in range(len(names))]
    axes.stackplot(
        downsample(samples, samples)[0],
        fractions,
        labels=[escape_mathtext(name) for name in names],
        colors=colors,
        step="post",
    )
    axes.set_ylim(0, 1)
    axes.set_ylabel("fraction of the batch")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _render_over_samples(
    draw: Callable[[Figure], None],
    salt: str,
    height: float,
    readings: Sequence[tuple[float, str]],
) -> str:
    """Renders a figure over samples seen; arguments are those of `render_svg`."""

    def draw_over_samples(figure: Figure) -> None:
        draw(figure)
        for axes in figure.axes:
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.margins(x=0)
        figure.axes[-1].set_xlabel("samples seen")

    return render_svg(draw_over_samples, salt, height, readings)


def render_svg(
    draw: Callable[[Figure], None],
    salt: str,
    height: float,
    readings: Sequence[tuple[float, str]] = (),
) -> str:
    """Renders a figure.

    Args:
        draw: Adds the axes and draws on them.
        salt: Text from which the ids in the SVG are made.
        height: Height of the figure (inches).
        readings: What a reader is told who points at a position of the first plot, in order; at
            most `MAX_READINGS` of them count.
    """
    with rc_context(
        {
            "svg.hashsalt": salt,
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        # In points, as SVG is.
        figure = Figure(figsize=(9, height), dpi=72, layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue().decode()
    if not readings:
        return svg
    content, end, _ = svg.rpartition("</svg>")
    return f"{content}{_draw_readings(figure, readings)}{end}\n"


def _draw_readings(figure: Figure, readings: Sequence[tuple[float, str]]) -> str:
    """Returns a strip over all plots for each reading, which a browser tells as its title."""
    picked = np.unique(np.linspace(0, len(readings) - 1, MAX_READINGS).astype(int))
    axes = figure.axes[0]
    left, right = axes.bbox.x0, axes.bbox.x1
    top = figure.bbox.height - axes.bbox.y1
    bottom = figure.bbox.height - figure.axes[-1].bbox.y0
    centres = [axes.transData.transform((readings[i][0], 0.0))[0] for i in picked]
    middles = [(a + b) / 2 for a, b in pairwise(centres)]
    strips = zip(picked, [left, *middles], [*middles, right], strict=True)
    return "".join(
        f'<rect class="hover" x="{x0:.1f}" y="{top:.1f}" width="{max(x1 - x0, 0.0):.1f}" '
        f'height="{bottom - top:.1f}" fill-opacity="0"><title>{escape(readings[i][1])}</title>'
        "</rect>"
        for i, x0, x1 in strips
    )


def escape_mathtext(text: str) -> str:
    """Escapes a text so that matplotlib does not read it as mathematics."""
    return text.replace("$", r"\$")
