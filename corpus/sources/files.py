"""One file of behaviours to a table of the columns that are wanted, under our names. Every message names the file and the column.

Ids and titles come out as text, times as integers in the file's unit, ratings as floats. A line that cannot be read is counted; a file that is no
whole file of its kind is an error.
"""

import ast
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError

IDS, TEXT, TIME, NUMBER = "strings or integers", "strings", "integers or timestamps", "numbers"
KINDS = {"user_id": IDS, "item_id": IDS, "title": TEXT, "timestamp": TIME, "rating": NUMBER}
"""What a column may hold, by our name for it."""
TYPES = {IDS: pa.large_string(), TEXT: pa.large_string(), TIME: pa.int64(), NUMBER: pa.float64()}
"""What it is read as."""

_DAT = {"ratings.dat": ("user_id", "item_id", "rating", "timestamp"), "movies.dat": ("item_id", "title", "genres")}


@dataclass(frozen=True)
class Read:
    """A file as it was read: the wanted columns, under our names; types: theirs, as the file has them; malformed: lines that could not be read."""

    table: pa.Table
    types: Mapping[str, str]
    malformed: int = 0


def read(file: str, columns: Mapping[str, str], ticks: int, groups: Sequence[int] | None = None) -> Read:
    """The columns of a file, given as our names to its own. ticks: of its times in a second; groups: the row groups to read of a parquet file.

    Raises DataError naming the file, and the column if one is missing or of another type.
    """
    if groups is not None:
        fs, path = storage.filesystem(file)
        with fs.open(path, "rb") as opened:
            return _parquet(file, opened, columns, ticks, groups)
    content = storage.read_bytes(file)
    if not content:
        raise DataError(f"{file}: the file is empty (0 bytes); write it again")
    if file.endswith(".parquet"):
        return _parquet(file, pa.BufferReader(content), columns, ticks)
    if file.endswith(".gz"):
        content = _unzipped(file, content)
    plain = file.removesuffix(".gz")
    if plain.endswith(".csv"):
        return _csv(file, content, columns)
    return _dat(file, content, columns) if plain.endswith(".dat") else _lines(file, content, columns)


def _parquet(file: str, content: Any, columns: Mapping[str, str], ticks: int, groups: Sequence[int] | None = None) -> Read:
    made, types = {}, {}
    try:
        source = pq.ParquetFile(content, page_checksum_verification=True)
        chosen = range(source.num_row_groups) if groups is None else groups
        _require(file, columns, source.schema_arrow.names)
        for ours, theirs in columns.items():
            found = source.read_row_groups(chosen, columns=[theirs])[theirs]  # one at a time: as it was written, a column can be large
            if not _fits(found.type, KINDS[ours]):
                raise DataError(f"{file}: column {theirs} is {found.type}, {KINDS[ours]} are allowed; convert it")
            types[ours] = str(found.type)
            made[ours] = _canonical(file, theirs, found, KINDS[ours], ticks)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a whole parquet file ({error}); write it again") from None
    return Read(pa.table(made), types)


def _canonical(file: str, name: str, column: pa.ChunkedArray, kind: str, ticks: int) -> pa.ChunkedArray:
    try:
        if pa.types.is_timestamp(column.type):
            seconds = column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
            return pa.compute.multiply(seconds, ticks)
        return column.cast(TYPES[kind])
    except pa.ArrowException as error:
        raise DataError(f"{file}: column {name} cannot be read as {kind} ({error}); convert it") from None


def _csv(file: str, content: bytes, columns: Mapping[str, str]) -> Read:
    try:
        raw = pl.read_csv(content, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{file}: not a csv file with one header ({str(error).splitlines()[0]}); write it again") from None
    _require(file, columns, raw.columns)
    return _of_text(raw.select(pl.col(theirs).alias(ours) for ours, theirs in columns.items()))


def _dat(file: str, content: bytes, columns: Mapping[str, str]) -> Read:
    """MovieLens's fields between double colons, in Latin-1, without a header."""
    names = _DAT[file.rpartition("/")[2].removesuffix(".gz")]
    rows = [line.split("::") for line in content.decode("latin-1").splitlines() if line.strip()]
    whole = [row for row in rows if len(row) == len(names)]
    raw = pl.DataFrame(whole, schema=dict.fromkeys(names, pl.String), orient="row")
    return _of_text(raw.select(list(columns)), len(rows) - len(whole))


def _lines(file: str, content: bytes, columns: Mapping[str, str]) -> Read:
    """JSON objects, one a line. The quick reader knows strict JSON only; where it fails, each line is tried by itself."""
    schema = dict.fromkeys(columns.values(), pl.String)
    try:
        raw, malformed = pl.read_ndjson(content, schema=schema), 0
    except pl.exceptions.PolarsError:
        objects = list(_objects(content))
        rows = [{name: _text(found.get(name)) for name in schema} for found in objects if found is not None]
        raw, malformed = pl.DataFrame(rows, schema=schema), sum(found is None for found in objects)
    for name in schema:
        if raw.height and raw[name].null_count() == raw.height:
            raise DataError(f"{file}: no line has a field {name}; correct data.format, or data.columns")
    if not raw.height:
        raise DataError(f"{file}: holds no line of JSON; write it again, or correct data.format")
    return _of_text(raw.select(pl.col(theirs).alias(ours) for ours, theirs in columns.items()), malformed)


def _objects(content: bytes) -> Iterator[Mapping[str, object] | None]:
    """Each line's object; None for a line that is none. Some releases write Python's literals instead of JSON."""
    readers: tuple[Callable[[str], object], ...] = (json.loads, ast.literal_eval)
    for line in content.decode("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        for reader in readers:
            try:
                found = reader(line)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            yield found if isinstance(found, dict) else None
            break
        else:
            yield None


def _text(value: object) -> str | None:
    return None if value is None or isinstance(value, dict | list) else str(value).encode("utf-8", "replace").decode()


def _of_text(raw: pl.DataFrame, malformed: int = 0) -> Read:
    """Text to our types; what is no number becomes null, to be counted among the rows that are no use."""
    kinds = {TIME: pl.Int64, NUMBER: pl.Float64}
    cast = raw.with_columns(pl.col(name).cast(kinds[KINDS[name]], strict=False) for name in raw.columns if KINDS[name] in kinds)
    return Read(cast.to_arrow(), dict.fromkeys(raw.columns, "string"), malformed)


def _unzipped(file: str, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: not a whole gzip file ({error}); fetch or write it again") from None


def _require(file: str, columns: Mapping[str, str], there: list[str]) -> None:
    missing = [theirs for theirs in columns.values() if theirs not in there]
    if missing:
        raise DataError(f"{file}: no column {', '.join(missing)}; it has {', '.join(there)}; write it again, or name its columns in data.columns")


def _fits(found: pa.DataType, kind: str) -> bool:
    number = pa.types.is_integer(found)
    return bool(
        {
            IDS: is_text(found) or number,
            TEXT: is_text(found),
            TIME: number or pa.types.is_timestamp(found),
            NUMBER: number or pa.types.is_floating(found),
        }[kind]
    )


def is_text(found: pa.DataType) -> bool:
    """Whether a column is of one of the types of text."""
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found))
