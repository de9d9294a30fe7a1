"""Rows that cannot be used, so that somebody can look at them: how many of each file, for which reason, and the first of them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import storage

FOLDER = "quarantine"
"""The folder; and of a commit, the name of its file there, None where all could be used."""
MALFORMED_LINE = "malformed_line"
"""Why a row that could not be read cannot be used."""
MAX_EXAMPLES = 5
"""Rows that are told of each file and reason, at most."""
_MAX_VALUE_CHARS = 80
"""Characters of a value that are told, at most."""


@dataclass(frozen=True)
class QuarantinedRows:
    """Rows of a file that cannot be used for one reason. examples: the first of them, by column; `row` is counted from 1, without a header."""

    domain: str
    file: str
    reason: str
    rows: int
    examples: tuple[Mapping[str, Any], ...]

    def __str__(self) -> str:
        return f"{self.reason} {self.rows:,} in {self.file}, first in {self.first_example}"

    @property
    def first_example(self) -> str:
        """The first of the rows, its number and values."""
        example = self.examples[0]
        return f"row {example['row']:,}: {', '.join(f'{name} {_format_value(value)}' for name, value in example.items() if name != 'row')}"


def first_fault_codes(
    rows: pl.DataFrame, faults: Mapping[str, pl.Expr], malformed: NDArray[np.bool_] | None
) -> pl.Series:
    """By row: 0 where it has none, else the number of its first fault, from 1; one more than there are where it could not be read. uint8 [n]."""
    chain = pl.lit(0, pl.UInt8)
    for number, fault in reversed(list(enumerate(faults.values(), start=1))):
        chain = pl.when(fault).then(pl.lit(number, pl.UInt8)).otherwise(chain)
    found = (
        rows.select(reason=chain)["reason"] if rows.height else pl.Series("reason", [], pl.UInt8)
    )
    return found if malformed is None else found.set(pl.Series(malformed), len(faults) + 1)


def collect_faulty_rows(
    domain: str,
    rows_per_file: Mapping[str, int],
    fault_names: Iterable[str],
    fault_codes: pl.Series,
    row_values: Callable[[int], Mapping[str, Any]],
) -> tuple[QuarantinedRows, ...]:
    """What of the rows of some files cannot be used.

    files: how many rows each has, in the order in which they follow each other; faults, fault: of and as `first_fault` tells; values: what there is
    to tell of a row.
    """
    reasons, ends, of_row = (
        (*fault_names, MALFORMED_LINE),
        np.cumsum([0, *rows_per_file.values()]),
        fault_codes.to_numpy(),
    )
    found = []
    for number, file in enumerate(rows_per_file):
        first = int(ends[number])
        of_file = of_row[first : ends[number + 1]]
        for code in np.unique(of_file[of_file > 0]):
            rows = np.flatnonzero(of_file == code)
            examples = tuple(
                {"row": row + 1, **row_values(first + row)} for row in rows[:MAX_EXAMPLES].tolist()
            )
            found.append(QuarantinedRows(domain, file, reasons[code - 1], rows.size, examples))
    return tuple(found)


def merge_blocks(
    blocks: Iterable[tuple[tuple[QuarantinedRows, ...], str, int]],
) -> tuple[QuarantinedRows, ...]:
    """The same of the blocks of files: what each has, its file, and how many rows it has, in their order."""
    found: dict[tuple[str, str, str], QuarantinedRows] = {}
    before: Counter[str] = Counter()
    for of_block, file, height in blocks:
        for of in of_block:
            key = of.domain, of.file, of.reason
            moved = tuple(
                {**example, "row": example["row"] + before[file]} for example in of.examples
            )
            there = found.get(key, replace(of, rows=0, examples=()))
            found[key] = replace(
                of, rows=there.rows + of.rows, examples=(*there.examples, *moved)[:MAX_EXAMPLES]
            )
        before[file] += height
    return tuple(found.values())


def count_by_reason(quarantined: Iterable[QuarantinedRows]) -> Counter[str]:
    """Rows by reason."""
    return sum((Counter({of.reason: of.rows}) for of in quarantined), Counter[str]())


def summary_lines(quarantined: Iterable[QuarantinedRows]) -> list[str]:
    """A line for each reason: the file with the most such rows and its first one, and how many more there are."""
    by_reason: dict[str, list[QuarantinedRows]] = {}
    for of in quarantined:
        by_reason.setdefault(of.reason, []).append(of)
    told = []
    for _, of_reason in sorted(by_reason.items()):
        most = max(of_reason, key=lambda of: of.rows)
        rest = sum(of.rows for of in of_reason) - most.rows
        told.append(
            f"{most}" + (f"; {rest:,} in {len(of_reason) - 1:,} other files" if rest else "")
        )
    return told


def write(uri: str, data_root: str, quarantined: Sequence[QuarantinedRows]) -> str | None:
    """Write what was found below quarantine/, an object a line, files relative to the data root; the name of the file, None for nothing.

    Named by its content: written again it is the same.
    """
    if not quarantined:
        return None
    start = f"{data_root.rstrip('/')}/"
    ordered = sorted(quarantined, key=lambda of: (of.domain, of.file, of.reason))
    told = "".join(
        json.dumps(
            asdict(replace(of, file=of.file.removeprefix(start))), ensure_ascii=False, default=str
        )
        + "\n"
        for of in ordered
    )
    content = told.encode("utf-8", "replace")
    name = f"part-{storage.sha256(content)[:16]}.jsonl"
    storage.write_bytes(storage.join(uri, FOLDER, name), content)
    return name


def read(uri: str, name: str) -> tuple[QuarantinedRows, ...]:
    """What `write` wrote by a name."""
    entries = [
        json.loads(line)
        for line in storage.read_text(storage.join(uri, FOLDER, name)).split("\n")
        if line
    ]
    return tuple(
        QuarantinedRows(**{**entry, "examples": tuple(entry["examples"])}) for entry in entries
    )


def _format_value(value: object) -> str:
    if value is None:
        return "missing"
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= _MAX_VALUE_CHARS else f"{shown[:_MAX_VALUE_CHARS]}..."
