"""Tables and figures as Markdown, LaTeX, parquet and one HTML page. Pure.

A table has one row for each domain and model, and one column for each measure. Below it stands what
is known of each of its numbers.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import polars as pl

from cluster.pages import page_environment
from cprec.reproduction.cells import Cell
from cprec.reproduction.models import Artefact
from cprec.tracking.report.page import inline_svg

TEMPLATE = "cprec/reproduction/page.html.j2"
LEVEL = 0.05
"""Significance level of the marks in tables (paper Table 3)."""
OVER_USERS, OVER_SEEDS = "*", "†"
"""Marks of a difference to the reference that is significant over users, and over seeds."""

COLUMNS: Mapping[str, type[pl.DataType]] = {
    "artefact": pl.String,
    "domain": pl.String,
    "model": pl.String,
    "label": pl.String,
    "measure": pl.String,
    "value": pl.Float64,
    "n": pl.Int64,
    "seeds": pl.Int64,
    "deviation": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "reference": pl.String,
    "difference": pl.Float64,
    "p_users": pl.Float64,
    "p_users_holm": pl.Float64,
    "p_seeds": pl.Float64,
    "p_seeds_holm": pl.Float64,
    "paper": pl.Float64,
}
"""Columns of results.parquet: the fields of a cell."""

DETAILS = {
    "n": "n",
    "seeds": "seeds",
    "value": "mean",
    "deviation": "deviation",
    "interval": "95 % interval",
    "difference": "difference",
    "p_users": "p (users)",
    "p_users_holm": "Holm",
    "p_seeds": "p (seeds)",
    "p_seeds_holm": "Holm",
    "paper": "paper",
}
"""Columns below a table of scores, and how they are called."""


@dataclass(frozen=True)
class Rendered:
    """A table or figure with its cells.

    Attributes:
        artefact: What it is.
        cells: Its numbers; none yet where no step of it is computed.
        missing: Steps of it that are not computed.
        picture: SVG of a figure.
        order: Each row of the paper's order against the next one.
    """

    artefact: Artefact
    cells: Sequence[Cell]
    missing: Sequence[str] = ()
    picture: str | None = None
    order: Sequence[Cell] = ()

    @property
    def measures(self) -> list[str]:
        """Names of the columns."""
        return list(dict.fromkeys(cell.measure for cell in self.cells))

    @property
    def rows(self) -> list[tuple[str, str, list[str]]]:
        """(domain, row, text of each column) of each row."""
        by_place = {(cell.domain, cell.label, cell.measure): cell for cell in self.cells}
        return [
            (
                domain,
                label,
                [format_cell(by_place.get((domain, label, name))) for name in self.measures],
            )
            for domain, label in dict.fromkeys((cell.domain, cell.label) for cell in self.cells)
        ]

    @property
    def details(self) -> list[list[str]]:
        """What is known of each score: domain, row, measure, and the columns of DETAILS."""
        return [
            [cell.domain, cell.label, cell.measure, *_format_details(cell)]
            for cell in self.cells
            if cell.n is not None
        ]

    @property
    def notes(self) -> list[str]:
        """Sentences below the table."""
        artefact = self.artefact
        notes = [describe_order(cell) for cell in self.order]
        if artefact.reference is not None and self.details:
            notes.append(
                f"{OVER_USERS}: differs from {artefact.reference.label} over users, "
                f"{OVER_SEEDS}: over seeds; paired t-tests, p < {LEVEL:g} after Holm's correction "
                "for all tests of this table."
            )
        if artefact.absent:
            notes.append(f"Of the paper's rows, not computed here: {', '.join(artefact.absent)}.")
        if self.missing:
            notes.append(f"Not computed yet: {', '.join(self.missing)}.")
        return notes


def format_cell(cell: Cell | None) -> str:
    """Returns the text of a cell: the number, its marks, and the paper's number."""
    if cell is None or cell.value is None:
        return "–"
    text = _format_number(cell, cell.value)
    if cell.p_users_holm is not None and cell.p_users_holm < LEVEL:
        text += OVER_USERS
    if cell.p_seeds_holm is not None and cell.p_seeds_holm < LEVEL:
        text += OVER_SEEDS
    if cell.paper is not None:
        text += f" (paper {_format_number(cell, cell.paper)})"
    return text


def describe_order(cell: Cell) -> str:
    """Returns whether a row is above another one as it is in the paper.

    Args:
        cell: The row that is above in the paper; its reference is the other one's label.
    """
    p = cell.p_seeds_holm
    difference = cell.difference or 0.0
    tested = "not tested over seeds" if p is None else f"p = {p:.2g} over seeds, by Holm"
    measured = f"{cell.domain}, {cell.measure} {difference:+.4f}, {tested}"
    if difference > 0 and p is not None and p < LEVEL:
        return f"As in the paper, {cell.label} is above {cell.reference} ({measured})."
    clearly = "clearly " if difference > 0 else ""
    return f"Unlike in the paper, {cell.label} is not {clearly}above {cell.reference} ({measured})."


def to_markdown(rendered: Rendered) -> str:
    """Returns a table as Markdown, with what is known of each number below it."""
    artefact = rendered.artefact
    lines = [f"# {describe_name(artefact)}: {artefact.title}", ""]
    if rendered.cells:
        lines += _markdown_table(
            ["domain", "", *rendered.measures],
            [[domain, label, *texts] for domain, label, texts in rendered.rows],
        )
        lines.append("")
    lines += [line for note in rendered.notes for line in (note.replace("*", r"\*"), "")]
    if details := rendered.details:
        header = ["domain", "", "measure", *DETAILS.values()]
        lines += [*_markdown_table(header, details), ""]
    return "\n".join(lines)


def to_latex(rendered: Rendered) -> str:
    """Returns a table as LaTeX, for the package booktabs."""
    artefact = rendered.artefact
    measures = rendered.measures
    rows = [[domain, label, *texts] for domain, label, texts in rendered.rows]
    body = [" & ".join(map(_escape_latex, row)) + r" \\" for row in rows]
    caption = " ".join([f"{artefact.title}.", *rendered.notes])
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape_latex(caption)}}}",
            rf"\label{{{artefact.name}}}",
            rf"\begin{{tabular}}{{ll{'r' * len(measures)}}}",
            r"\toprule",
            " & ".join(["Domain", "", *map(_escape_latex, measures)]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def to_parquet(cells: Sequence[Cell]) -> bytes:
    """Returns cells as a parquet file."""
    file = io.BytesIO()
    pl.DataFrame([asdict(cell) for cell in cells], schema=COLUMNS).write_parquet(file)
    return file.getvalue()


def to_page(title: str, summary: Sequence[str], rendered: Sequence[Rendered], recipe: str) -> str:
    """Returns all tables and figures as one HTML page that needs nothing else.

    Args:
        title: Name of the recipe's run.
        summary: Facts below the title.
        rendered: The tables and figures.
        recipe: The recipe, as YAML.
    """
    pictures = {
        item.artefact.name: inline_svg(item.picture)
        for item in rendered
        if item.picture is not None
    }
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            title=title,
            summary=summary,
            rendered=rendered,
            names={item.artefact.name: describe_name(item.artefact) for item in rendered},
            pictures=pictures,
            details=DETAILS,
            recipe=recipe,
        )
    )


def describe_name(artefact: Artefact) -> str:
    """Returns `Table 3` of `table3`."""
    word = "Figure" if artefact.is_figure else "Table"
    return f"{word} {artefact.name.removeprefix(word.lower())}"


def _format_number(cell: Cell, value: float) -> str:
    """Returns a number in the digits of its measure."""
    if cell.n is not None or cell.measure == "Sparsity":
        return f"{value:.4f}"
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def _format_details(cell: Cell) -> list[str]:
    """Returns the texts of the columns of DETAILS."""
    values: dict[str, object] = asdict(cell)
    texts = []
    for name in DETAILS:
        if name == "interval":
            known = cell.low is not None and cell.high is not None
            texts.append(f"{cell.low:.4f} .. {cell.high:.4f}" if known else "")
            continue
        value = values[name]
        if value is None:
            texts.append("")
        elif isinstance(value, float):
            texts.append(f"{value:.2g}" if name.startswith("p_") else f"{value:.4f}")
        else:
            texts.append(f"{value:,}")
    return texts


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table."""
    escaped = [[text.replace("|", r"\|").replace("*", r"\*") for text in row] for row in rows]
    lines = [header, ["---"] * len(header), *escaped]
    return [f"| {' | '.join(line)} |" for line in lines]


def _escape_latex(text: str) -> str:
    """Escapes a text for LaTeX."""
    special = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "–": "--"}
    special |= {"†": r"$^\dagger$", "*": r"$^*$", "{": r"\{", "}": r"\}", "<": "$<$"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(character, character) for character in text)
