"""Types of parquet columns that tools choose for ids, titles and times."""

import datetime
import re
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import corpus
from cluster.errors import DataError
from corpus.ingest.sources import reader
from corpus.ingest.sources.file_splits import FileSplit
from tests.unit.corpus.worlds import domain, settings

T = 1_500_000_000
POINT = datetime.datetime.fromtimestamp(T, datetime.UTC).replace(tzinfo=None)
DAY = POINT.date()


def read(path: Path, column: str, values: pa.Array, ticks: int = 1, **options: object) -> object:
    """Writes one column, and returns what its first value is read as."""
    pq.write_table(pa.table({"theirs": values}), path, **options)
    (block,) = reader.read_blocks(FileSplit(str(path)), {column: "theirs"}, ticks)
    return block.table[column].to_pylist()[0]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([T], pa.int64()),
        pa.array([T], pa.uint32()),
        pa.array([T + 0.75], pa.float64()),
        pa.array([float("nan"), T], pa.float64())[1:],
        pa.array([Decimal(T)], pa.decimal128(20, 0)),
        pa.array([Decimal(f"{T}.75")], pa.decimal128(20, 2)),
        pa.array([str(T)]),
        pa.array([f"{T}.0"]),
        pa.array(["2017-07-14T02:40:00Z"]),
        pa.array([b"2017-07-14 02:40:00"], pa.binary()),
        pa.array(["2017-07-14 02:40:00"]).dictionary_encode(),
        pa.array([POINT], pa.timestamp("s")),
        pa.array([POINT], pa.timestamp("ns")),
        pa.array([POINT], pa.timestamp("us", "UTC")),
        pa.array([POINT], pa.timestamp("ms", "Asia/Tokyo")),
    ],
    ids=lambda values: str(values.type),
)
@pytest.mark.parametrize("ticks", [1, 1000])
def test_times(tmp_path: Path, values: pa.Array, ticks: int) -> None:
    time = read(tmp_path / "a.parquet", "timestamp", values, ticks)
    # A number counts in ticks; a point in time does not.
    is_number = pa.types.is_decimal(values.type) or values.type in (
        pa.int64(),
        pa.uint32(),
        pa.float64(),
    )
    is_number |= values.type == pa.string() and str(T) in values.to_pylist()[0]
    assert time == (T if is_number else T * ticks)


@pytest.mark.parametrize("year", [1, 1600, 2262, 2263, 2609, 9999])
@pytest.mark.parametrize("ticks", [1, 1_000_000_000])
@pytest.mark.parametrize("is_text", [False, True])
def test_a_time_with_too_many_ticks_is_no_other_time(
    tmp_path: Path, year: int, ticks: int, is_text: bool
) -> None:
    """Ticks of int64 end in 2262 where a tick is a nanosecond."""
    point = datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)
    values = pa.array([point.isoformat() if is_text else point])
    exact = int(point.timestamp()) * ticks
    time = read(tmp_path / "a.parquet", "timestamp", values, ticks)
    assert isinstance(time, int)
    assert time == exact or (abs(exact) > abs(time) > (2**63 - 1) - ticks and time * exact > 0)


def test_dates_and_int96(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for kind in (pa.date32(), pa.date64()):
        assert read(path, "timestamp", pa.array([DAY], kind)) == T - T % 86_400
    for year in (2017, 9999):
        point = POINT.replace(year=year)
        seconds = int(point.replace(tzinfo=datetime.UTC).timestamp())
        values = pa.array([point], pa.timestamp("us"))
        assert read(path, "timestamp", values, use_deprecated_int96_timestamps=True) == seconds


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["x"], pa.large_string()), "x"),
        (pa.array([b"x"], pa.binary()), "x"),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array([7], pa.int32()), "7"),
        (pa.array([Decimal(10**25)], pa.decimal128(38, 0)), str(10**25)),
    ],
    ids=lambda values: str(getattr(values, "type", values)),
)
def test_ids(tmp_path: Path, values: pa.Array, expected: str) -> None:
    assert read(tmp_path / "a.parquet", "user_id", values) == expected


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("timestamp", pa.array([1.0], pa.float32())),
        ("timestamp", pa.array([T], pa.duration("s"))),
        ("timestamp", pa.array([True])),
        ("timestamp", pa.array([2**63], pa.uint64())),
        ("user_id", pa.array([1.0])),
        ("user_id", pa.array([Decimal("1.5")])),
        ("user_id", pa.array([{"a": 1}])),
        ("title", pa.array([["Soap"]])),
        ("title", pa.array([{"raw": "Soap"}])),
        ("title", pa.array([b"Caf\xe9"])),
        (
            "title",
            pa.Array.from_buffers(pa.string(), 1, pa.array([b"Caf\xe9"]).buffers()),
        ),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_other_types_are_refused(tmp_path: Path, column: str, values: pa.Array) -> None:
    with pytest.raises(DataError, match=r"a\.parquet: column theirs (is|cannot be read as) "):
        read(tmp_path / "a.parquet", column, values)


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = [pa.array(["x"]), pa.array(["y"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["title", "title"]), path)
    with pytest.raises(DataError, match=r"a\.parquet: column title is there more than once"):
        list(reader.read_blocks(FileSplit(str(path)), {"title": "title"}, 1))


def test_partition_folders_beside_parts(tmp_path: Path) -> None:
    folder = tmp_path / "interactions" / "A.parquet"
    (folder / "year=2017").mkdir(parents=True)
    for path, user in ((folder / "0.parquet", "u"), (folder / "year=2017" / "0.parquet", "v")):
        pq.write_table(pa.table({"user_id": [user], "item_id": ["a"], "timestamp": [T]}), path)
    (tmp_path / "items").mkdir()
    pq.write_table(
        pa.table({"item_id": ["a"], "title": ["Soap"]}), tmp_path / "items" / "A.parquet"
    )
    assert domain(settings(tmp_path), "A").rows() == [("u", "a", T), ("v", "a", T)]


def test_no_parquet_is_read_in_threads_of_arrow() -> None:
    """A thread that still holds a file of Python when the interpreter ends aborts the process."""
    sources = Path(corpus.__file__).parent.rglob("*.py")
    calls = [
        line
        for source in sources
        for line in source.read_text().splitlines()
        if re.search(r"read_row_groups\(|iter_batches\(|\.read\((\[|list\()", line)
    ]
    assert len(calls) >= 7
    assert all("use_threads=False" in line for line in calls)
