"""Quarantine: the record of rows that cannot be used, so that somebody can look at them.

For each file and reason, it holds the number of rows and the first few of them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import storage
from corpus.settings import DataSettings

FOLDER = "quarantine"
"""The folder of quarantine files in a corpus, and the key of a commit that names its file."""
MALFORMED_LINE = "malformed_line"
"""The reason for a row that could not be read."""
MAX_EXAMPLES = 5
"""Maximum rows to record per file and reason."""
_MAX_VALUE_CHARS = 80
"""Maximum characters to show of a value."""


@dataclass(frozen=True)
class QuarantinedRows:
    """The rows of a file that cannot be used for one reason.

    Attributes:
        domain: Name of the domain.
        file: URI of the file; relative to the data root once it is read from a corpus.
        reason: Why the rows cannot be used.
        rows: How many there are.
        examples: The first of them, by column. `row` counts from 1, without a header.
    """

    domain: str
    file: str
    reason: str
    rows: int
    examples: tuple[Mapping[str, Any], ...]

    def __str__(self) -> str:
        return f"{self.reason} {self.rows:,} in {self.file}, first in {self.first_example}"

    @property
    def first_example(self) -> str:
        """The number and the values of the first row, as text."""
        example = self.examples[0]
        values = ", ".join(
            f"{name} {_format_value(value)}" for name, value in example.items() if name != "row"
        )
        return f"row {example['row']:,}: {values}"


def first_fault_codes(
    rows: pl.DataFrame, faults: Mapping[str, pl.Expr], malformed: NDArray[np.bool_] | None
) -> pl.Series:
    """Finds the first fault of each row.

    Args:
        rows: The rows to check [n].
        faults: For each reason, whether a row has that fault; the first that applies counts.
        malformed: Which rows could not be read [n]; None: all could be.

    Returns:
        uint8 [n]: 0 for a row without fault, else the position of its reason in `faults`, from 1.
        Malformed rows get `len(faults) + 1`.
    """
    codes_expr = pl.lit(0, pl.UInt8)
    for code, fault in reversed(list(enumerate(faults.values(), start=1))):
        codes_expr = pl.when(fault).then(pl.lit(code, pl.UInt8)).otherwise(codes_expr)
    codes = (
        rows.select(reason=codes_expr)["reason"]
        if rows.height
        else pl.Series("reason", [], pl.UInt8)
    )
    return codes if malformed is None else codes.set(pl.Series(malformed), len(faults) + 1)


def collect_faulty_rows(
    domain: str,
    rows_per_file: Mapping[str, int],
    fault_names: Iterable[str],
    fault_codes: pl.Series,
    row_values: Callable[[int], Mapping[str, Any]],
) -> tuple[QuarantinedRows, ...]:
    """Groups the faulty rows of some files by file and reason.

    Args:
        domain: Name of the domain.
        rows_per_file: Rows of each file, in the order in which their rows are concatenated.
        fault_names: The reasons, in the order that was given to `first_fault_codes`.
        fault_codes: The result of `first_fault_codes` [n].
        row_values: Returns what to record of a row, given its position in `fault_codes`.
    """
    reasons = (*fault_names, MALFORMED_LINE)
    file_ends = np.cumsum([0, *rows_per_file.values()])
    codes = fault_codes.to_numpy()
    quarantined = []
    for file_number, file in enumerate(rows_per_file):
        first_row = int(file_ends[file_number])
        file_codes = codes[first_row : file_ends[file_number + 1]]
        for code in np.unique(file_codes[file_codes > 0]):
            rows = np.flatnonzero(file_codes == code)
            examples = tuple(
                {"row": row + 1, **row_values(first_row + row)}
                for row in rows[:MAX_EXAMPLES].tolist()
            )
            quarantined.append(
                QuarantinedRows(domain, file, reasons[code - 1], rows.size, examples)
            )
    return tuple(quarantined)


def merge_blocks(
    blocks: Iterable[tuple[tuple[QuarantinedRows, ...], str, int]],
) -> tuple[QuarantinedRows, ...]:
    """Merges what was quarantined of single blocks into one record per file and reason.

    Args:
        blocks: For each block, in the order of its file: what was quarantined of it, its file, and
            its number of rows. Row numbers in a block's examples count from its own first row.
    """
    merged: dict[tuple[str, str, str], QuarantinedRows] = {}
    rows_before: Counter[str] = Counter()  # of each file, rows in the blocks so far
    for block_quarantined, file, num_rows in blocks:
        for part in block_quarantined:
            key = part.domain, part.file, part.reason
            renumbered = tuple(
                {**example, "row": example["row"] + rows_before[file]} for example in part.examples
            )
            so_far = merged.get(key, replace(part, rows=0, examples=()))
            merged[key] = replace(
                part,
                rows=so_far.rows + part.rows,
                examples=(*so_far.examples, *renumbered)[:MAX_EXAMPLES],
            )
        rows_before[file] += num_rows
    return tuple(merged.values())


def count_by_reason(quarantined: Iterable[QuarantinedRows]) -> Counter[str]:
    """Counts the quarantined rows by reason."""
    return sum((Counter({entry.reason: entry.rows}) for entry in quarantined), Counter[str]())


def summary_lines(quarantined: Iterable[QuarantinedRows]) -> list[str]:
    """Returns a line per reason: the file with the most such rows, and the number elsewhere."""
    by_reason: dict[str, list[QuarantinedRows]] = {}
    for entry in quarantined:
        by_reason.setdefault(entry.reason, []).append(entry)
    lines = []
    for _, entries in sorted(by_reason.items()):
        largest = max(entries, key=lambda entry: entry.rows)
        rows_elsewhere = sum(entry.rows for entry in entries) - largest.rows
        elsewhere = (
            f"; {rows_elsewhere:,} in {len(entries) - 1:,} other files" if rows_elsewhere else ""
        )
        lines.append(f"{largest}{elsewhere}")
    return lines


def write(uri: str, data: DataSettings, quarantined: Sequence[QuarantinedRows]) -> str | None:
    """Writes quarantined rows to a file below a corpus, one JSON object per line.

    The file is named by its content, so that the same rows are always written to the same file.

    Args:
        uri: The corpus.
        data: Names the data root, to which file names are written relative; with several, they
            are written whole.
        quarantined: The rows to write.

    Returns:
        The name of the file; None if there was nothing to write.
    """
    if not quarantined:
        return None
    root_prefix = f"{data.root.rstrip('/')}/" if isinstance(data.root, str) else ""
    ordered = sorted(quarantined, key=lambda entry: (entry.domain, entry.file, entry.reason))
    relative = [replace(entry, file=entry.file.removeprefix(root_prefix)) for entry in ordered]
    text = "".join(
        json.dumps(asdict(entry), ensure_ascii=False, default=str) + "\n" for entry in relative
    )
    content = text.encode("utf-8", "replace")
    name = f"part-{storage.sha256(content)[:16]}.jsonl"
    storage.write_bytes(storage.join(uri, FOLDER, name), content)
    return name


def read(uri: str, name: str) -> tuple[QuarantinedRows, ...] | None:
    """Reads a file that `write` wrote below a corpus, by its name; None if it is not there."""
    text = storage.read_text_if_exists(storage.join(uri, FOLDER, name))
    if text is None:
        return None
    entries = [json.loads(line) for line in text.split("\n") if line]
    return tuple(
        QuarantinedRows(**{**entry, "examples": tuple(entry["examples"])}) for entry in entries
    )


def _format_value(value: object) -> str:
    """Returns a value as text, shortened; text is quoted, None is `missing`."""
    if value is None:
        return "missing"
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= _MAX_VALUE_CHARS else f"{shown[:_MAX_VALUE_CHARS]}..."
