"""A run's records as pictures: SVG whose text stays text. Equal records give equal bytes (fixed salt, no date)."""

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cprec.runs.records import PERPLEXITY
from cprec.schedule.wsa import WSA

Record = Mapping[str, Any]
Floats = NDArray[np.float64]

PHASES = {"warmup": "#f3c26b", "stable": "#8fb8de", "annealing": "#a9d5a0"}
SOURCES = (
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
INK, PALE, ADOPTED, RESTARTED = "#1c2430", "#b9c0ca", "#b3261e", "#7a4fbf"
POINTS = 400
"""Columns of a plot, at most: a run of a million steps is averaged down to it, so that a picture stays small."""


def trained(trace: Sequence[Record]) -> list[Record]:
    """The steps that count, in order: of a step that was trained again after a restart, the last."""
    return [step for _, step in sorted({int(s["step"]): s for s in trace}.items())]


def schedule(steps: Sequence[Record], events: Sequence[Record], wsa: WSA | None) -> str:
    """The schedule picture, over samples seen: the rate as planned and as trained, phases shaded, domains that joined and restarts marked; below,
    the sources of each step as a stacked band, and the perplexity of the text where it was measured. steps: as `trained` gives them; wsa: the plan's,
    None where it is not known."""
    measured = perplexities(events)

    def draw(figure: Figure) -> None:
        rate, band, *forgetting = figure.subplots(
            3 if measured else 2, 1, sharex=True, height_ratios=(3, 2, 2)[: 3 if measured else 2]
        )
        if wsa is not None and wsa.annealing_end:
            ahead = np.unique(np.linspace(0, wsa.annealing_end, POINTS).astype(int))
            rate.plot(
                ahead,
                [wsa.rate(int(s)) for s in ahead],
                color=PALE,
                linestyle="--",
                label="planned",
            )
        # Not averaged: a rate is exact at the steps shown.
        kept = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, POINTS).astype(int))]
        rate.plot([s["samples"] for s in kept], [s["lr"] for s in kept], color=INK, label="trained")
        rate.set_ylabel("learning rate")
        _mark(rate, events)
        _shade(rate, steps)
        _stack(band, steps)
        for axes in forgetting:
            axes.plot(*zip(*measured, strict=True), color=INK, marker=".")
            axes.set_ylabel("perplexity of text")

    return _svg(draw, "schedule", height=6.0 if measured else 4.4)


def perplexities(events: Sequence[Record]) -> list[tuple[int, float]]:
    """(samples, perplexity of the text), in order; what was measured again after a restart counts once."""
    return sorted(
        {
            int(e["samples"]): float(e["perplexity"]) for e in events if e["event"] == PERPLEXITY
        }.items()
    )


def loss(steps: Sequence[Record]) -> str:
    """Loss over samples seen."""
    return _curve(steps, np.array([s["loss"] for s in steps]), "nats per token")


def throughput(steps: Sequence[Record]) -> str:
    """Useful tokens per second over samples seen."""
    seconds = np.array([s["step_s"] + s["data_wait_s"] for s in steps])
    return _curve(
        steps,
        np.array([s["tokens"] for s in steps]) / np.maximum(seconds, 1e-9),
        "tokens per second",
    )


def _curve(steps: Sequence[Record], values: Floats, label: str) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(*averaged(_samples(steps), values), color=INK)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label)
        _shade(axes, steps)

    return _svg(draw, label, height=2.4)


def _samples(steps: Sequence[Record]) -> Floats:
    return np.array([s["samples"] for s in steps], dtype=float)


def averaged(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most POINTS points, each the mean of a run of neighbours."""
    starts = np.unique(np.linspace(0, len(x), min(POINTS, len(x)), endpoint=False).astype(int))
    sizes = np.diff([*starts, len(x)])
    return x[starts], np.add.reduceat(y, starts) / sizes


def _mark(axes: Axes, events: Sequence[Record]) -> None:
    """Lines where a corpus version joined, with its sources, and where training was taken up again."""
    for event in events:
        at = event.get("samples") or 0
        if event["event"] == "corpus_version_adopted" and at:
            names = ", ".join(
                str(source).removeprefix("domain/")
                for source in event["sources"]
                if source != "mixed"
            )
            axes.axvline(at, color=ADOPTED, linestyle=":")
            axes.annotate(
                plain(f"version {event['version']}: {names}"),
                (at, 0.5),
                (3, 0),
                ("data", "axes fraction"),
                "offset points",
                color=ADOPTED,
            )
        elif event["event"] == "resumed":
            axes.axvline(at, color=RESTARTED, linestyle="-.", linewidth=0.8)
            axes.annotate(
                "restart",
                (at, 0.05),
                (3, 0),
                ("data", "axes fraction"),
                "offset points",
                color=RESTARTED,
                fontsize=7,
            )


def _shade(axes: Axes, steps: Sequence[Record]) -> None:
    for phase, run in groupby(steps, key=lambda s: s["phase"]):
        span = list(run)
        end = span[-1]["samples"] + span[-1]["batch_samples"]
        axes.axvspan(
            span[0]["samples"],
            end,
            color=PHASES.get(phase, "#cccccc"),
            alpha=0.3,
            linewidth=0,
            label=plain(phase),
        )
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(PHASES) + 2,
        frameon=False,
        borderaxespad=0,
    )


def _stack(axes: Axes, steps: Sequence[Record]) -> None:
    names = sorted({name for s in steps for name in s["sources"]})
    samples = _samples(steps)
    shares = [
        averaged(
            samples, np.array([s["sources"].get(name, 0) / s["batch_samples"] for s in steps])
        )[1]
        for name in names
    ]
    colors = [SOURCES[i % len(SOURCES)] for i in range(len(names))]
    axes.stackplot(
        averaged(samples, samples)[0],
        shares,
        labels=[plain(name) for name in names],
        colors=colors,
        step="post",
    )
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of the batch")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _svg(draw: Callable[[Figure], None], salt: str, height: float) -> str:
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


def plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
