"""Every format gives the same canonical rows, and bad files give clear messages."""

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from cluster import storage
from cluster.errors import DataError
from corpus.build import build
from corpus.ingest.sources import layout
from corpus.settings import DataSettings
from tests.unit.corpus.worlds import Domain, Row, domain, settings, shop, write_parquet, write_root

ROWS = [
    ("u", "a", 1_400_000_000, 5.0),
    ("u", "b", 1_400_000_100, 2.0),
    ("v", "a", 1_400_000_000, 4.0),
]
TITLES = {"a": "Soap &amp; Water", "b": "Brush"}


def lines(
    rows: Sequence[Mapping[str, object]], dump: Callable[[object], str] = json.dumps
) -> bytes:
    return "".join(dump(row) + "\n" for row in rows).encode()


def reviews(user: str, item: str, rating: str, time: str, ticks: int) -> list[dict[str, object]]:
    return [
        {user: u, item: i, rating: r, time: t * ticks, "helpful": [1, 2], "reviewText": "so\nso"}
        for u, i, t, r in ROWS
    ]


def amazon(root: Path, release: int, suffix: str) -> None:
    """Writes files as the three releases name and write them."""
    pack = gzip.compress if suffix.endswith(".gz") else bytes
    item = {2014: "asin", 2018: "asin", 2023: "parent_asin"}[release]
    before_2023 = release < 2023
    rows = reviews(
        "reviewerID" if before_2023 else "user_id",
        item,
        "overall" if before_2023 else "rating",
        "unixReviewTime" if before_2023 else "timestamp",
        1 if before_2023 else 1000,
    )
    meta = [{item: i, "title": t, "salesRank": {"Beauty": 1}} for i, t in TITLES.items()]
    (root / f"{'reviews_' if release == 2014 else ''}A{suffix}").write_bytes(pack(lines(rows)))
    # The first release writes its items as Python literals.
    (root / f"meta_A{suffix}").write_bytes(
        pack(lines(meta, repr if release == 2014 else json.dumps))
    )


def movielens(root: Path, kind: str) -> None:
    number = {"u": 7, "v": 8, "a": 1, "b": 2}
    if kind == "dat":
        (root / "ratings.dat").write_text(
            "".join(f"{number[u]}::{number[i]}::{int(r)}::{t}\n" for u, i, t, r in ROWS)
        )
        (root / "movies.dat").write_bytes(
            "".join(f"{number[i]}::{t} (Caf\xe9)::Drama|War\n" for i, t in TITLES.items()).encode(
                "latin-1"
            )
        )
    else:
        (root / "ratings.csv").write_text(
            "userId,movieId,rating,timestamp\n"
            + "".join(f"{number[u]},{number[i]},{r},{t}\n" for u, i, t, r in ROWS)
        )
        (root / "movies.csv").write_text(
            "movieId,title,genres\n"
            + "".join(f'{number[i]},"{t}, The",Drama\n' for i, t in TITLES.items())
        )


def csv(root: Path, pack: Callable[[bytes], bytes] = bytes, suffix: str = ".csv") -> None:
    for kind in ("interactions", "items"):
        (root / kind).mkdir()
    table = "when,item_id,user_id\n" + "".join(f"{t},{i},{u}\n" for u, i, t, _ in ROWS)
    (root / "interactions" / f"A{suffix}").write_bytes(pack(table.encode()))
    (root / "items" / f"A{suffix}").write_bytes(
        pack(("item_id,title\n" + "".join(f"{i},{t}\n" for i, t in TITLES.items())).encode())
    )


def read(root: Path | str, **changes: object) -> Domain:
    return domain(settings(root, **{"max_quarantined": 0.0, **changes}), "A")


@pytest.mark.parametrize("release", [2014, 2018, 2023])
@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".jsonl", ".jsonl.gz"])
def test_amazon(tmp_path: Path, release: int, suffix: str) -> None:
    amazon(tmp_path, release, suffix)
    result = read(tmp_path, format=f"amazon{release}")
    assert result.rows() == sorted((u, i, t) for u, i, t, _ in ROWS)
    assert result.titles() == [("a", "Soap & Water"), ("b", "Brush")]
    assert not result.left_out()


@pytest.mark.parametrize(
    ("kind", "title"), [("dat", "Soap & Water (Caf\xe9)"), ("csv", "Soap & Water, The")]
)
def test_movielens(tmp_path: Path, kind: str, title: str) -> None:
    movielens(tmp_path, kind)
    result = read(tmp_path, format="movielens")
    assert result.rows() == [
        ("7", "1", 1_400_000_000),
        ("7", "2", 1_400_000_100),
        ("8", "1", 1_400_000_000),
    ]
    assert result.titles()[0] == ("1", title)


def test_a_folder_for_each_domain(tmp_path: Path) -> None:
    """Interactions and items of each domain in a folder of its own."""
    write_root(tmp_path / "flat", {"A": [("u", "a", 1)]})
    (tmp_path / "A").mkdir()
    for kind in ("interactions", "items"):
        (tmp_path / "flat" / kind / "A.parquet").rename(tmp_path / "A" / f"{kind}.parquet")
    assert read(tmp_path).rows() == [("u", "a", 1)]


def test_csv_with_columns_of_other_names(tmp_path: Path) -> None:
    csv(tmp_path, gzip.compress, ".csv.gz")
    result = read(tmp_path, columns={"timestamp": "when"})
    assert result.rows() == sorted((u, i, t) for u, i, t, _ in ROWS)
    with pytest.raises(
        DataError,
        match=r"A\.csv\.gz: no column timestamp; it has when, item_id, user_id; "
        r"write it again, or name its columns",
    ):
        read(tmp_path)


def test_parquet_timestamps_and_other_units(tmp_path: Path) -> None:
    root = write_root(tmp_path, {"A": [("u", "a", 1_400_000_000)]})
    seconds = pa.array([1_400_000_000], pa.timestamp("s"))
    for column in (
        seconds,
        seconds.cast(pa.timestamp("us")),
        seconds.cast(pa.timestamp("ns", "UTC")),
    ):
        write_parquet(root / "interactions" / "A.parquet", {"user_id": ["u"], "item_id": ["a"]})
        table = (
            pl.read_parquet(root / "interactions" / "A.parquet")
            .to_arrow()
            .append_column("timestamp", column)
        )
        pa.parquet.write_table(table, root / "interactions" / "A.parquet")
        assert read(root).rows() == [("u", "a", 1_400_000_000)]
    write_parquet(
        root / "interactions" / "A.parquet",
        {"user_id": ["u"], "item_id": ["a"], "timestamp": [1_400_000_000_999]},
    )
    assert read(root, time_unit="ms").rows() == [("u", "a", 1_400_000_000)]


def test_ratings_below_the_threshold_are_left_out_and_counted(tmp_path: Path) -> None:
    amazon(tmp_path, 2018, ".json")
    result = read(tmp_path, format="amazon2018", min_rating=4.0)
    assert result.rows() == [("u", "a", 1_400_000_000), ("v", "a", 1_400_000_000)]
    assert result.left_out() == {"below_min_rating": 1}


def test_a_rating_that_is_not_a_number_counts_as_missing(tmp_path: Path) -> None:
    for kind in ("interactions", "items"):
        (tmp_path / kind).mkdir()
    (tmp_path / "items" / "A.csv").write_text("item_id,title\na,Soap\n")
    (tmp_path / "interactions" / "A.csv").write_text(
        "user_id,item_id,timestamp,rating\nu,a,1,nan\nv,a,1,NaN\nw,a,1,4\nx,a,1,\ny,a,1,good\n"
    )
    result = read(tmp_path, min_rating=4.0)
    assert result.rows() == [("w", "a", 1)]
    assert result.left_out() == {"below_min_rating": 4}


def read_times(root: Path, values: Sequence[int], **changes: object) -> Domain:
    """Reads a domain in which one user has interactions at some times."""
    write_root(root, {"A": [("u", "a", value) for value in values]})
    return read(root, max_quarantined=1.0, **changes)


def test_times_of_another_unit_are_quarantined_by_reason(tmp_path: Path) -> None:
    assert read_times(tmp_path, [1_400_000_000, 1_400_000_000_000]).left_out() == {
        "timestamp_in_finer_unit": 1
    }
    assert read_times(tmp_path, [1_400_000_000, 1_400_000_000_000], time_unit="ms").left_out() == {
        "timestamp_in_coarser_unit": 1
    }
    assert read_times(
        tmp_path, [1_400_000_000, 1_500_000_000], latest=1_450_000_000
    ).left_out() == {"timestamp_in_future": 1}
    assert read_times(tmp_path, [1_400_000_000, 4_000_000_000]).left_out() == {
        "timestamp_in_future": 1
    }
    assert read_times(tmp_path, [1_400_000_000, -1]).left_out() == {"timestamp_before_1970": 1}
    write_root(tmp_path, {"A": [("u", "a", 1_400_000_000_000 + i) for i in range(2)]})
    with pytest.raises(
        DataError,
        match=r"2 of 2 interactions cannot be used.*; correct the data, set data\.time_unit, "
        r"or raise the key\n  timestamp_in_finer_unit 2 in ",
    ):
        read(tmp_path)


def test_a_user_with_too_many_interactions_is_capped_to_the_most_recent(tmp_path: Path) -> None:
    rows: list[Row] = [("u", f"i{n % 7}", n) for n in range(1000)] + [("v", "i0", 3)]
    result = read(write_root(tmp_path, {"A": rows}), max_per_user=10)
    assert sorted(result.named().filter(pl.col("user_id") == "u")["timestamp"]) == list(
        range(990, 1000)
    )
    assert result.usable.interactions.height == 11
    assert result.left_out() == {"over_user_cap": 990}


def test_lines_that_are_not_json_are_counted(tmp_path: Path) -> None:
    amazon(tmp_path, 2018, ".json")
    with (tmp_path / "A.json").open("ab") as file:
        file.write(b'{"reviewerID": "w", "asi\n[1]\n\xff\xfe\n{"reviewerID": "w"}\n')
    result = read(tmp_path, format="amazon2018", max_quarantined=1.0)
    assert result.usable.interactions.height == 3
    assert result.left_out() == {"malformed_line": 3, "no_timestamp": 1}
    with pytest.raises(
        DataError,
        match=r"A: 4 of 7 interactions cannot be used.*\n  malformed_line 3 in .*/A\.json, "
        r"first in row 4: line '{\"reviewerID\": \"w\", \"asi'\n",
    ):
        read(tmp_path, format="amazon2018")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("A.json.gz", b"", "the file is empty (0 bytes)"),
        ("A.json.gz", gzip.compress(b"{}" * 500, mtime=0)[:-9], "not a whole gzip file"),
        ("A.json.gz", b"{}", "not a whole gzip file"),
        ("A.json", b"\n\n", "holds no line of JSON"),
        (
            "A.json",
            b'{"reviewerID": "u", "unixReviewTime": 3}\n',
            "no line has a field asin; correct data.format, or data.columns",
        ),
        ("meta_A.json", b'{"asin": "a"}\n', "no line has a field title"),
    ],
)
def test_bad_json_files_are_refused(tmp_path: Path, file: str, content: bytes, reason: str) -> None:
    amazon(tmp_path, 2018, ".json")
    (tmp_path / file.removesuffix(".gz")).unlink()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError) as error:
        read(tmp_path, format="amazon2018")
    assert f"{tmp_path}/{file}: {reason}" in str(error.value)


def test_bad_csv_rows_are_counted_and_bad_csv_files_are_refused(tmp_path: Path) -> None:
    csv(tmp_path)
    (tmp_path / "interactions" / "A.csv").write_text(
        "user_id,item_id,timestamp\nu,a,1\nu,a,1,2,3\n"
    )
    with pytest.raises(
        DataError,
        match=r"malformed_line 1 in .*interactions/A\.csv, first in row 2: line 'u,a,1,2,3'",
    ):
        read(tmp_path)
    (tmp_path / "interactions" / "A.csv").write_text("user_id,item_id,timestamp\nu,a,May 2014\n")
    with pytest.raises(
        DataError,
        match=r"no_timestamp 1 in .*interactions/A\.csv, first in row 1: "
        r"user_id 'u', item_id 'a', timestamp 'May 2014'",
    ):
        read(tmp_path)
    (tmp_path / "interactions" / "A.csv").write_bytes(b"user_id,item_id,timestamp\nu,\xff,1\n")
    with pytest.raises(
        DataError, match=r"interactions/A\.csv: not a csv file in UTF-8 with one header"
    ):
        read(tmp_path)


def test_two_files_for_one_domain_are_refused(tmp_path: Path) -> None:
    amazon(tmp_path, 2018, ".json")
    amazon(tmp_path, 2018, ".json.gz")
    with pytest.raises(
        DataError, match=r"A\.json\.gz: .*A\.json exists as well; leave only one of them"
    ):
        read(tmp_path, format="amazon2018")


def test_the_wrong_format_is_suspected_if_no_file_is_found(tmp_path: Path) -> None:
    amazon(tmp_path, 2018, ".json")
    with pytest.raises(
        DataError,
        match=r"reviews_A\.json\.gz: no such file, nor with another suffix .*; "
        r"correct data\.domains, .* or data\.format",
    ):
        read(tmp_path, format="amazon2014")


def test_content_that_differs_from_sha256sums_is_refused(tmp_path: Path) -> None:
    """Bit rot in a valid page: a value has changed, but the file still reads."""
    world = shop(("A", "B", "C"))
    root = write_root(tmp_path / "root", world)
    file = root / "interactions" / "A.parquet"
    (root / "SHA256SUMS").write_text(
        f"{storage.sha256(file.read_bytes())}  interactions/A.parquet\n"
    )
    good: DataSettings = settings(root)
    build(good, 0, str(tmp_path / "good"), print)
    user, item, time = world["A"][0]
    world["A"][0] = (user, item, time + 1)
    write_root(root, world)
    with pytest.raises(
        DataError, match=r"interactions/A\.parquet: its content is not what SHA256SUMS says"
    ):
        build(good, 0, str(tmp_path / "bad"), print)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("{} *items/a b.csv\r", "items/a b.csv"),
        ("{}  ./items/a  b.csv", "items/a  b.csv"),
        ("{}    items/a.csv", "items/a.csv"),
        ("SHA256 (items/a(1).csv) = {}", "items/a(1).csv"),
        (r"\{}  a\\b\nc", "a\\b\nc"),
        (r"\SHA256 (a\\b) = {}", "a\\b"),
        ("{}  a\u2028b", "a\u2028b"),
    ],
)
def test_digests_are_read_as_tools_write_them(tmp_path: Path, line: str, name: str) -> None:
    digest = storage.sha256(b"")
    (tmp_path / "SHA256SUMS").write_bytes(f"\n{line.format(digest.upper())}\n \n".encode())
    assert layout.read_sha256sums(str(tmp_path)) == {f"{tmp_path}/{name}": digest}


@pytest.mark.parametrize("line", [b"abcdef", b"abc  a.csv", b"MD5 (a) = 00", b"\xff  a", b"0" * 64])
def test_a_line_that_is_no_digest_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "SHA256SUMS").write_bytes(f"{'0' * 64}  a.csv\n".encode() + line)
    with pytest.raises(DataError, match=r"SHA256SUMS, line 2: .* is no digest of a file"):
        layout.read_sha256sums(str(tmp_path))


def test_one_user_is_too_few_for_the_k_core(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", {"A": [("u", f"A{n}", n) for n in range(9)]})
    with pytest.raises(
        DataError,
        match=r"A: the 3-core of 9 interactions is empty; "
        r"the largest data\.k_core that leaves data is 1",
    ):
        build(settings(root, domains=("A",), held_out=()), 0, str(tmp_path / "corpus"), print)


def test_a_domain_without_rows_is_refused(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", shop(("A",)))
    pa.parquet.write_table(
        pa.parquet.read_table(root / "interactions" / "A.parquet").slice(0, 0),
        root / "interactions" / "A.parquet",
    )
    with pytest.raises(
        DataError,
        match=r"A: the 3-core of 0 interactions is empty; "
        r"it holds no interaction that can be used",
    ):
        build(settings(root, domains=("A",), held_out=()), 0, str(tmp_path / "corpus"), print)


def test_a_user_who_leaves_too_few_negatives_is_named(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", shop(("A", "B", "C"), items=11))
    with pytest.raises(
        DataError,
        match=r"A: 11 items, of which user u\d+ interacted with 8: "
        r"3 are left, 4 negatives are wanted",
    ):
        build(settings(root), 0, str(tmp_path / "corpus"), print)
