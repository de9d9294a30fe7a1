"""Reads objects that stand on a line each, in JSON or as Python literals."""

import ast
import io
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import polars as pl

from corpus.ingest.sources.block import Block
from corpus.ingest.sources.text_block import block_from_text, excerpt


def parse(lines: bytes, columns: Mapping[str, str], ticks_per_second: int) -> Block:
    """Parses JSON objects, one per line.

    Polars reads well-formed lines fast but stops at any other. If it does, every line is rewritten
    as strict JSON and read by Polars again, so that values are converted in one way only.

    Args:
        lines: Whole lines.
        columns: Our column names to the file's.
        ticks_per_second: Ticks of a time in a second.
    """
    schema = dict.fromkeys(columns.values(), pl.String)
    malformed = dict[int, str]()
    try:
        raw = pl.read_ndjson(lines, schema=schema) if lines.strip() else pl.DataFrame(schema=schema)
    except pl.exceptions.PolarsError:
        strict = io.BytesIO()
        for row, (line, json_object) in enumerate(_to_strict_json(lines, schema)):
            strict.write((json_object or b"{}") + b"\n")
            if json_object is None:
                malformed[row] = excerpt(line, len(malformed))
        raw = (
            pl.read_ndjson(strict.getvalue(), schema=schema)
            if strict.tell()
            else pl.DataFrame(schema=schema)
        )
    return block_from_text(
        raw.select(pl.col(theirs).alias(ours) for ours, theirs in columns.items()),
        malformed,
        ticks_per_second,
    )


def _to_strict_json(lines: bytes, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
    """Rewrites lines as strict JSON with some of their fields.

    Some Amazon releases and Steam write Python literals instead of JSON, so these are accepted too.

    Returns:
        Each line that is not blank, with its object; None for a line without one, or that is not in
        UTF-8.
    """
    for line in lines.split(b"\n"):
        if not line.strip():
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError:
            yield line.decode("utf-8", "backslashreplace"), None
        else:
            yield text, _read_object(text, names)


def _read_object(line: str, names: Collection[str]) -> bytes | None:
    """Returns some fields of the object on a line as strict JSON; None if there is no object."""
    readers: tuple[Callable[[str], object], ...] = (
        partial(json.loads, object_pairs_hook=_keep_first_values),
        ast.literal_eval,
    )
    for reader in readers:
        try:
            value = reader(line)
            if isinstance(value, dict):
                return _dump_json({name: value.get(name) for name in names})
            return None
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _keep_first_values(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Makes an object of its fields; of a repeated field, the first value counts, as in Polars."""
    fields: dict[str, object] = {}
    for name, value in pairs:
        fields.setdefault(name, value)
    return fields


def _dump_json(fields: Mapping[str, object]) -> bytes:
    """Writes an object as strict JSON, in which NaN and infinity become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
