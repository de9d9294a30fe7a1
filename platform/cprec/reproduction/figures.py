"""Draws the paper's figures from their cells, as SVG whose text stays text."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cprec.reproduction.cells import Cell
from cprec.reproduction.models import Artefact
from cprec.tracking.figures import LINE_COLOR, SOURCE_COLORS, escape_mathtext, render_svg

HEIGHT = 3.2
"""Height of the plot of one domain (inches)."""

LINES = ("figure5",)
"""Figures whose models are points of one curve; the others have a bar for each."""


def draw(artefact: Artefact, cells: Sequence[Cell]) -> str | None:
    """Draws a figure, one plot for each domain; None where there is no number yet."""
    drawn = [cell for cell in cells if cell.value is not None]
    domains = list(dict.fromkeys(cell.domain for cell in drawn))
    if not domains:
        return None

    def draw_domains(figure: Figure) -> None:
        plots = figure.subplots(len(domains), 1, squeeze=False)[:, 0]
        for axes, domain in zip(plots, domains, strict=True):
            of_domain = [cell for cell in drawn if cell.domain == domain]
            (_draw_line if artefact.name in LINES else _draw_bars)(axes, of_domain)
            axes.set_title(escape_mathtext(domain))
            axes.set_ylabel(of_domain[0].measure)

    return render_svg(draw_domains, artefact.name, HEIGHT * len(domains))


def _draw_bars(axes: Axes, cells: Sequence[Cell]) -> None:
    """Draws a bar for each model, with the 95 % interval over users."""
    colors = [SOURCE_COLORS[i % len(SOURCE_COLORS)] for i in range(len(cells))]
    positions = range(len(cells))
    axes.bar(positions, _values(cells), yerr=_errors(cells), color=colors, capsize=3)
    axes.set_xticks(positions, [_break(cell.label) for cell in cells])
    axes.set_ylim(bottom=0)


def _draw_line(axes: Axes, cells: Sequence[Cell]) -> None:
    """Draws a curve over the models, with the 95 % intervals over users."""
    positions = range(len(cells))
    axes.errorbar(
        positions, _values(cells), yerr=_errors(cells), color=LINE_COLOR, marker="o", capsize=3
    )
    axes.set_xticks(positions, [_break(cell.label) for cell in cells])


def _values(cells: Sequence[Cell]) -> list[float]:
    return [cell.value or 0.0 for cell in cells]


def _errors(cells: Sequence[Cell]) -> list[list[float]]:
    """Returns how far the intervals reach below and above the values [2, cells]."""
    return [
        [0.0 if c.low is None or c.value is None else c.value - c.low for c in cells],
        [0.0 if c.high is None or c.value is None else c.high - c.value for c in cells],
    ]


def _break(label: str) -> str:
    """Returns a label in lines that fit below a bar."""
    return (
        escape_mathtext(label)
        .replace(" + ", "\n+ ")
        .replace(" without", "\nwithout")
        .replace(", ", ",\n")
    )
