"""Draws the trials of a search of the learning rate."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from cprec.downstream.trial_records import TrialResult


def plot_trials(results: Sequence[TrialResult], best_lr: float) -> bytes:
    """Draws HR@1 on validation of every trial, by epoch and by learning rate.

    Returns:
        An SVG with the best learning rate marked. Equal trials give equal bytes.
    """
    with rc_context(
        {
            "svg.hashsalt": "trials",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        curves, summary = figure.subplots(1, 2)
        for result in results:
            curves.plot(
                range(1, len(result.history) + 1),
                result.history,
                marker=".",
                linestyle=":" if result.stopped else "-",
                label=f"{result.lr:g}, seed {result.seed}",
            )
        curves.set_xlabel("epoch (dotted: cut short)")
        curves.set_ylabel("HR@1 on validation")
        curves.legend(frameon=False, fontsize=7)
        lrs = sorted({result.lr for result in results})
        means = [float(np.mean([r.hr1 for r in results if r.lr == lr])) for lr in lrs]
        summary.scatter([r.lr for r in results], [r.hr1 for r in results], color="#8fb8de")
        summary.plot(lrs, means, color="#1c2430")
        summary.axvline(best_lr, color="#b3261e", linestyle=":")
        summary.set_xscale("log")
        summary.set_xlabel("learning rate")
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
