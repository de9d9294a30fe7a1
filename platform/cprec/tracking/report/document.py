"""What a report is made of, whatever it is written as: sections of text, tables, code. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

NONE = "–"

Tone = Literal["", "good", "bad", "strong"]


@dataclass(frozen=True)
class Interval:
    """A measured fraction with its interval, for a small picture beside the number.

    Attributes:
        low: Lower end.
        value: The fraction.
        high: Upper end.
        end: Right end of the scale, which begins at 0.
        chance: What a random choice would have; None where that is not known.
    """

    low: float
    value: float
    high: float
    end: float
    chance: float | None = None


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, how it stands out, and a picture of it where it has one."""

    text: str
    tone: Tone = ""
    interval: Interval | None = None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header: Names of the columns.
        rows: Cells of each row.
        caption: What it shows; may be empty.
        texts: Columns that hold text, which is aligned to the left; the first one always is.
        note: What a reader has to know of it; may be empty.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    texts: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A section.

    Attributes:
        name: Its heading.
        paragraphs: Sentences below the heading.
        tables: Its tables.
        code: Lines to copy, by the language that they are in.
        pictures: Pictures by title, as SVG; left out of Markdown.
    """

    name: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    code: Sequence[tuple[str, str]] = ()
    pictures: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: Name of the run.
        summary: What it is, in a few sentences.
        facts: Numbers that come first, by name.
        sections: The sections.
        recipe: The resolved recipe, as YAML.
        made: When the newest record was written (Unix seconds).
    """

    title: str
    summary: Sequence[str]
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    recipe: str
    made: float
    tags: Sequence[str] = field(default=())


def row(*texts: str | Cell) -> list[Cell]:
    """Returns a row of a table."""
    return [text if isinstance(text, Cell) else Cell(text) for text in texts]


def count(value: int | None) -> str:
    """Returns a count for people."""
    return NONE if value is None else f"{value:,}"


def measure(value: float | None) -> str:
    """Returns a fraction such as HR@1 in four digits."""
    return NONE if value is None else f"{value:.4f}"


def minutes(seconds: float) -> str:
    """Returns a duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
