"""Files as other tools write them: each is read as it means, or refused by name, reason and form.

Every case is a few bytes in the form of one tool. `READ` says which rows and titles they mean,
`REFUSED` what the message has to say, and `COUNTED` which rows are left out and why.
"""

import bz2
import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.errors import DataError
from tests.unit.corpus.worlds import Domain, Row, domain, settings

T = 1_500_000_000
"""2017-07-14 02:40:00 UTC."""
ROWS: list[Row] = [("u", "a", T), ("u", "b", T + 1), ("v", "a", T)]
TITLES = {"a": "Soap", "b": "Brush"}
BOTH = [("a", "Soap"), ("b", "Brush")]
INTERACTIONS = b"user_id,item_id,timestamp\nu,a,1500000000\nu,b,1500000001\nv,a,1500000000\n"
ITEMS = b"item_id,title\na,Soap\nb,Brush\n"
ZSTD = bytes(pa.compress(INTERACTIONS, "zstd", asbytes=True))
UTF_16 = INTERACTIONS.decode().encode("utf-16")


@dataclass(frozen=True)
class Case:
    """Files of one domain, by path below the data root.

    Attributes:
        files: The files; those of `INTERACTIONS` and `ITEMS` are added where a kind has none.
        rows: The interactions that they mean.
        titles: The items that they mean.
        settings: Changed settings.
    """

    files: Mapping[str, bytes]
    rows: list[Row] = field(default_factory=lambda: ROWS)
    titles: list[tuple[str, str]] = field(default_factory=lambda: BOTH)
    settings: Mapping[str, object] = field(default_factory=dict)


def interactions(
    content: bytes, rows: list[Row] = ROWS, suffix: str = ".csv", **changes: object
) -> Case:
    return Case({f"interactions/A{suffix}": content}, rows=rows, settings=changes)


def items(
    content: bytes, titles: list[tuple[str, str]] = BOTH, suffix: str = ".csv", **changes: object
) -> Case:
    ids = [name for name, _ in titles]
    return Case(
        {f"items/A{suffix}": content},
        rows=[row for row in ROWS if row[1] in ids],
        titles=titles,
        settings=changes,
    )


def times(*texts: str, expected: int = T) -> Case:
    """Interactions of one user at one time, written in several ways."""
    lines = "".join(f'u{i},a,"{text}"\n' for i, text in enumerate(texts))
    return interactions(
        f"user_id,item_id,timestamp\n{lines}".encode(),
        [(f"u{i}", "a", expected) for i in range(len(texts))],
    )


def title(text: str, expected: str) -> Case:
    return items(b"item_id,title\na," + text.encode() + b"\nb,Brush\n", [("a", expected), BOTH[1]])


PART = INTERACTIONS.replace(b"v,a,1500000000\n", b"")
REST = b"user_id,item_id,timestamp\nv,a,1500000000\n"
FOLDER = "interactions/A.csv"

READ = {
    # Spark
    "spark: escaped quotes": title('"Soap \\"best\\", set"', 'Soap "best", set'),
    "spark: an escaped quote at the end": title('"Soap 15\\""', 'Soap 15"'),
    "spark: escaped backslash": title('"C:\\\\ \\"x\\""', 'C:\\ "x"'),
    "spark: a lone backslash is text": title('"C:\\dir \\"x\\""', 'C:\\dir "x"'),
    "rfc 4180: a backslash is text": title('"C:\\"', "C:\\"),
    "rfc 4180: doubled quotes": title('"the ""best"" \\ soap"', 'the "best" \\ soap'),
    "a quote in a field without quotes": title('15" soap', '15" soap'),
    "spark: parts, markers, checksums and an empty part": Case(
        {
            f"{FOLDER}/part-0-c000.csv": PART,
            f"{FOLDER}/part-1-c000.csv": b"",
            f"{FOLDER}/part-2-c000.csv": REST,
            f"{FOLDER}/part-3-c000.csv": b"user_id,item_id,timestamp\n",
            f"{FOLDER}/_SUCCESS": b"",
            f"{FOLDER}/.part-0-c000.csv.crc": b"crc",
            f"{FOLDER}/part-0-c000.csv.crc": b"crc",
        }
    ),
    "spark: partition folders beside parts": Case(
        {
            f"{FOLDER}/part-0.csv": PART,
            f"{FOLDER}/year=2017/month=7/part-0.csv": REST,
        }
    ),
    "hive: the default partition": Case(
        {
            f"{FOLDER}/day=__HIVE_DEFAULT_PARTITION__/000000_0.csv": PART,
            f"{FOLDER}/day=1/000000_0.csv": REST,
        }
    ),
    "hive: \\x01 between fields": interactions(INTERACTIONS.replace(b",", b"\x01")),
    "spark: a job that has left _temporary behind": Case(
        {
            f"{FOLDER}/part-0.csv": INTERACTIONS,
            f"{FOLDER}/_SUCCESS": b"",
            f"{FOLDER}/_temporary/0/part-0.csv": PART,
        }
    ),
    "object store: folder markers, macOS, Windows": Case(
        {
            f"{FOLDER}/part-0.csv": INTERACTIONS,
            f"{FOLDER}/year=2017_$folder$": b"",
            f"{FOLDER}/.DS_Store": b"\0",
            f"{FOLDER}/._part-0.csv": b"\0",
            f"{FOLDER}/Thumbs.db": b"\0",
            f"{FOLDER}/__MACOSX/._part-0.csv": b"\0",
        }
    ),
    # pandas
    "pandas: an index column": interactions(
        b",user_id,item_id,timestamp\n0,u,a,1500000000\n1,u,b,1500000001\n2,v,a,1500000000\n"
    ),
    "pandas: floats for integers": interactions(
        b"user_id,item_id,timestamp\n1.0,a,1500000000.0\n2.0,a,1500000000.0\n",
        [("1", "a", T), ("2", "a", T)],
    ),
    # separators, line ends, encodings
    "semicolons": interactions(INTERACTIONS.replace(b",", b";")),
    "tabs": interactions(INTERACTIONS.replace(b",", b"\t"), suffix=".tsv"),
    "tabs: quotes mean nothing where they do not fit": items(
        b'item_id\ttitle\na\t"Soap" of yore\nb\tBrush\n',
        [("a", '"Soap" of yore'), BOTH[1]],
        suffix=".tsv",
    ),
    "CRLF": interactions(INTERACTIONS.replace(b"\n", b"\r\n")),
    "byte order mark: csv": interactions(b"\xef\xbb\xbf" + INTERACTIONS),
    "byte order mark: JSON": items(
        b'\xef\xbb\xbf{"item_id": "a", "title": "Soap"}\n{"item_id": "b", "title": "Brush"}\n',
        suffix=".jsonl",
    ),
    # compression
    "gzip of several members": interactions(
        gzip.compress(PART) + gzip.compress(REST.partition(b"\n")[2]), suffix=".csv.gz"
    ),
    "bzip2": interactions(bz2.compress(INTERACTIONS), suffix=".csv.bz2"),
    "zstd": interactions(ZSTD, suffix=".csv.zst"),
    "zstd of several frames": interactions(
        ZSTD + bytes(pa.compress(b"w,a,1500000000\n", "zstd", asbytes=True)),
        [*ROWS, ("w", "a", T)],
        suffix=".csv.zst",
    ),
    # times
    "ISO 8601": times(
        "2017-07-14 02:40:00",
        "2017-07-14T02:40:00Z",
        "2017-07-14T02:40:00.123456Z",
        "2017-07-14T04:40:00+02:00",
        "2017-07-13T22:10:00.5-0430",
        "2017-07-14 02:40",
        "2017-07-14 02:40:00 UTC",
    ),
    "numbers": times("1500000000", " 1500000000", "1500000000.75", "1.500000000e+09"),
    "dates": times("2017-07-14", expected=T - T % 86_400),
    "the form of date(1), as Goodreads has it": times("Fri Jul 14 02:40:00 +0000 2017"),
    "milliseconds with dates among them": interactions(
        b"user_id,item_id,timestamp\nu,a,1500000000000\nv,a,2017-07-14T02:40:00Z\n",
        [("u", "a", T), ("v", "a", T)],
        time_unit="ms",
    ),
    "times that begin at 0": interactions(
        b"user_id,item_id,timestamp\nu,a,0\nu,b,60\n", [("u", "a", 0), ("u", "b", 60)]
    ),
    # what a title is
    "a list of one title": items(
        b'{"item_id": "a", "title": ["Soap"]}\n{"item_id": "b", "title": "Brush"}\n',
        suffix=".json",
    ),
    "marked text": title('"<span id=""t"" class=""x"">Soap &amp; <i>Co</i></span>"', "Soap & Co"),
    "escaped marks": title("&lt;b&gt;Soap&lt;/b&gt;", "Soap"),
    "brackets that are no list": title("[REC]", "[REC]"),
    "signs that are no marks": title("I <3 C++ <vector> & more", "I <3 C++ <vector> & more"),
    "a number": items(
        b'{"item_id": "a", "title": 1984}\n{"item_id": "b", "title": "Brush"}\n',
        [("a", "1984"), BOTH[1]],
        suffix=".json",
    ),
    "a word that is no missing value": title("Nan", "Nan"),
    # data sets
    "goodreads": Case(
        {
            "interactions/A.json": b'{"user_id": "u", "book_id": 7, "rating": 5, "date_added": '
            b'"Fri Jul 14 02:40:00 +0000 2017", "shelves": [{"name": "x"}]}\n',
            "items/A.json.gz": gzip.compress(
                b'{"book_id": "7", "authors": [{"author_id": "1"}], "title": "Dune"}\n'
            ),
        },
        [("u", "7", T)],
        [("7", "Dune")],
        {"columns": {"item_id": "book_id", "timestamp": "date_added"}},
    ),
    "yelp": Case(
        {
            "interactions/A.json": b'{"review_id": "r", "user_id": "u", "business_id": "a", '
            b'"stars": 5.0, "text": "x", "date": "2017-07-14 02:40:00"}\n',
            "items/A.json": b'{"business_id": "a", "name": "Joe\'s", "hours": null}\n',
        },
        [("u", "a", T)],
        [("a", "Joe's")],
        {"columns": {"item_id": "business_id", "timestamp": "date", "title": "name"}},
    ),
    "steam": Case(
        {
            "interactions/A.json": b"{u'username': u'u', u'product_id': u'70', u'hours': 1.5, "
            b"u'date': u'2017-07-14', u'early_access': False}\n",
            "items/A.json": b"{u'id': u'70', u'product_id': u'70', u'title': u'Half-Life'}\n",
        },
        [("u", "70", T - T % 86_400)],
        [("70", "Half-Life")],
        {"columns": {"user_id": "username", "item_id": "product_id", "timestamp": "date"}},
    ),
    "recbole": Case(
        {
            "interactions/A.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
            b"u\ta\t4.0\t1500000000\nv\ta\t3.0\t1500000000.0\n",
            "items/A.item": b"item_id:token\ttitle:token_seq\tgenre:token_seq\na\tToy Story\tC D\n",
        },
        [("u", "a", T), ("v", "a", T)],
        [("a", "Toy Story")],
    ),
    "h&m": Case(
        {
            "interactions/A.csv": b"t_dat,customer_id,article_id,price,sales_channel_id\n"
            b"2017-07-14,u,0108775015,0.05,2\n",
            "items/A.csv": b"article_id,product_code,prod_name\n0108775015,108775,Strap top\n",
        },
        [("u", "0108775015", T - T % 86_400)],
        [("0108775015", "Strap top")],
        {
            "columns": {
                "user_id": "customer_id",
                "item_id": "article_id",
                "timestamp": "t_dat",
                "title": "prod_name",
            }
        },
    ),
    "movielens 1m, in Latin-1": Case(
        {
            "ratings.dat": b"1::2::5::1500000000\r\n",
            "movies.dat": b"2::Mis\xe9rables, Les (1995)::Drama\n",
        },
        [("1", "2", T)],
        [("2", "Misérables, Les (1995)")],
        {"format": "movielens"},
    ),
    "movielens 10m, in UTF-8": Case(
        {
            "ratings.dat": b"1::2::5::1500000000\n",
            "movies.dat": "2::Misérables, Les (1995)::Drama\n".encode(),
        },
        [("1", "2", T)],
        [("2", "Misérables, Les (1995)")],
        {"format": "movielens"},
    ),
    "movielens 25m": Case(
        {
            "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,2,5.0,1500000000\r\n",
            "movies.csv": 'movieId,title,genres\r\n2,"Misérables, Les (1995)",Drama\r\n'.encode(),
        },
        [("1", "2", T)],
        [("2", "Misérables, Les (1995)")],
        {"format": "movielens"},
    ),
    "mysql: outfile with quotes": Case(
        {
            "interactions/A.csv": b'"user_id","item_id","timestamp"\n"u","a","2017-07-14 02:40:00"'
            b'\n"v","a",1500000000\n',
            "items/A.csv": b'"item_id","title","note"\n"a","Soap \\"best\\"\\\nset",\\N\n',
        },
        [("u", "a", T), ("v", "a", T)],
        [("a", 'Soap "best" set')],
    ),
}


def write(root: Path, case: Case) -> None:
    files = dict(case.files)
    if "format" not in case.settings:
        for kind, content in (("interactions", INTERACTIONS), ("items", ITEMS)):
            if not any(path.startswith(kind) for path in files):
                files[f"{kind}/A.csv"] = content
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def read(root: Path, case: Case, said: list[str] | None = None, **changes: object) -> Domain:
    write(root, case)
    say = (said if said is not None else []).append
    return domain(settings(root, **{"max_quarantined": 0.0, **case.settings, **changes}), "A", say)


@pytest.mark.parametrize("case", READ.values(), ids=READ.keys())
def test_read_as_it_means(tmp_path: Path, case: Case) -> None:
    result = read(tmp_path, case)
    assert result.rows() == sorted(case.rows)
    assert result.titles() == case.titles
    assert not result.left_out()


def test_an_empty_part_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    read(tmp_path, READ["spark: parts, markers, checksums and an empty part"], said)
    assert said == [
        f"{tmp_path}/{FOLDER}/part-1-c000.csv: the file is empty (0 bytes), so it adds nothing"
    ]


DELTA = {f"{FOLDER}/part-0.csv": INTERACTIONS, f"{FOLDER}/_delta_log/0.json": b"{}"}
REFUSED = {
    "a quote behind which text goes on": (
        items(b'item_id,title\na,"Soap" of yore\nb,Brush\n'),
        r"items/A\.csv: line 2 has a quote that neither opens nor closes a field: "
        r"'a,\"Soap\" of yore'; write quotes within a quoted field twice, or the file as parquet",
    ),
    "both ways of quoting": (
        items(b'item_id,title\na,"C:\\"\nb,"the \\"best\\" brush"\n'),
        r"items/A\.csv: line 3 has a quote that neither opens nor closes",
    ),
    "a part without header": (
        Case({f"{FOLDER}/0.csv": PART, f"{FOLDER}/1.csv": b"v,a,1500000000\n"}),
        r"A\.csv/1\.csv: no column user_id, item_id, timestamp; it has v, a, 1500000000",
    ),
    "last.fm: no header": (
        interactions(b"user_1\t2009-05-04T23:08:57Z\tid\tDeep Dish\t\tFuck Me\n", suffix=".tsv"),
        r"A\.tsv: no column user_id, item_id, timestamp; it has user_1, 2009-05-04T23:08:57Z",
    ),
    "hive: files without suffix": (
        Case({f"{FOLDER}/part-0.csv": INTERACTIONS, f"{FOLDER}/000000_0": b"v\x01a\x011\n"}),
        r"A\.csv/000000_0: ends in none of \.parquet, \.csv",
    ),
    "a folder that is no partition": (
        Case({f"{FOLDER}/part-0.csv": INTERACTIONS, f"{FOLDER}/old/part-0.csv": PART}),
        r"A\.csv/old: a folder among data files, but no partition such as year=2017",
    ),
    "a partition column": (
        Case({f"{FOLDER}/item_id=a/part-0.csv": b"user_id,timestamp\nu,1500000000\n"}),
        r"no column item_id; .*item_id is in the name of a folder, where it is not read",
    ),
    "a job that has not finished": (
        Case({f"{FOLDER}/part-0.csv": INTERACTIONS, f"{FOLDER}/_temporary/0/part-1.csv": PART}),
        r"A\.csv: holds _temporary and no _SUCCESS, so the job that writes it has not finished",
    ),
    "a Delta table": (Case(DELTA), r"A\.csv: a Delta table, which keeps rows of earlier versions"),
    "all parts empty": (
        Case({f"{FOLDER}/part-0.csv": b"", f"{FOLDER}/part-1.csv": b""}),
        r"part-0\.csv: the file is empty \(0 bytes\); write it again",
    ),
    "an empty file": (interactions(b""), r"A\.csv: the file is empty \(0 bytes\)"),
    "a column twice": (
        items(b"item_id,title,title\na,Soap,Brush\n"),
        r"items/A\.csv: column title is there more than once; rename one of them",
    ),
    "CR alone": (
        interactions(INTERACTIONS.replace(b"\n", b"\r")),
        r"A\.csv: .*its lines end in CR alone; write it again with line feeds",
    ),
    "UTF-16": (interactions(UTF_16), r"A\.csv: its content is UTF-16; write it in UTF-8"),
    "UTF-16 without mark": (
        interactions(INTERACTIONS.decode().encode("utf-16-le")),
        r"A\.csv: its content is binary or UTF-16; write it in UTF-8",
    ),
    "latin-1": (
        items("item_id,title\na,Café\n".encode("latin-1")),
        r"items/A\.csv: not a csv file in UTF-8 with one header",
    ),
    "gzip by another name": (
        interactions(gzip.compress(INTERACTIONS)),
        r"A\.csv: its content is gzip; name it \.gz",
    ),
    "a zip archive": (interactions(b"PK\x03\x04rest"), r"A\.csv: its content is a zip archive"),
    "parquet by another name": (interactions(b"PAR1..PAR1"), r"A\.csv: its content is parquet"),
    "a cut gzip file": (
        interactions(gzip.compress(INTERACTIONS * 500)[:-9], suffix=".csv.gz"),
        r"A\.csv\.gz: not a whole gzip file",
    ),
    "a cut bzip2 file": (
        interactions(bz2.compress(INTERACTIONS)[:-9], suffix=".csv.bz2"),
        r"A\.csv\.bz2: not a whole",
    ),
    "a cut zstd file": (
        interactions(ZSTD[:-5], suffix=".csv.zst"),
        r"A\.csv\.zst: not a whole \.zst file",
    ),
    "a zip archive by its own name": (
        interactions(b"PK\x03\x04rest", suffix=".zip"),
        r"interactions/A\.parquet: no such file, .*; \S+/interactions has A\.zip;",
    ),
    "dates as numbers": (
        interactions(INTERACTIONS.replace(b"150000000", b"2017071")),
        r"A\.csv: every timestamp is a date written as one number, such as 20170714",
    ),
    "an array of objects": (
        items(b'[{"item_id": "a", "title": "Soap"}]\n', suffix=".json"),
        r"items/A\.json: no line has a field item_id",
    ),
    "day first": (
        interactions(b"user_id,item_id,timestamp\nu,a,14/07/2017\n"),
        r"; times are integers, whole numbers such as 1500000000\.0, or dates such as "
        r"2017-07-14T02:40:00Z\n  no_timestamp 1 in .*timestamp '14/07/2017'",
    ),
    "an object as the time, as MongoDB exports it": (
        interactions(
            b'{"user_id": "u", "item_id": "a", "timestamp": {"$date": "2017-07-14T02:40:00Z"}}\n',
            suffix=".json",
        ),
        r"; times are integers, .*\n  no_timestamp 1 in .*A\.json, .*timestamp '\{",
    ),
    "digits lost in a spreadsheet": (
        interactions(b"user_id,item_id,timestamp\nu,a,1.5E+09\n"),
        r"no_timestamp 1 in .*timestamp '1\.5E\+09'",
    ),
    "leading zeros lost on one side": (
        interactions(b"user_id,item_id,timestamp\nu,0108775015,1500000000\n"),
        r"; 2 items have a title, such as 'a'\n  item_without_title 1 in .*item_id '0108775015'",
    ),
    "titles that are objects": (
        items(b'{"item_id": "a", "title": {"raw": "Soap"}}\n', suffix=".json"),
        r"; no item has a title\n  item_without_title 3 in .*"
        r"\n  title_is_no_text 1 in .*items/A\.json, first in row 1: item_id 'a', title '\{\"raw\"",
    ),
}


@pytest.mark.parametrize(("case", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_by_name_reason_and_form(tmp_path: Path, case: Case, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, case)
    assert str(tmp_path) in str(error.value)


COUNTED = {
    "ids that stand for none": (
        interactions(
            INTERACTIONS + b'nan,a,1\nNone,a,1\n\\N,a,1\n1.23e+17,a,1\n,a,1\n"",a,1\nu,null,1\n'
        ),
        {"no_user_id": 6, "no_item_id": 1},
    ),
    "objects as ids": (
        interactions(
            b'{"user_id": "u", "item_id": "a", "timestamp": 1500000000}\n'
            b'{"user_id": {"$oid": "5f"}, "item_id": "a", "timestamp": 1500000000}\n',
            [("u", "a", T)],
            suffix=".json",
        ),
        {"no_user_id": 1},
    ),
    "0 for a missing time": (
        interactions(INTERACTIONS + b"w,a,0\n"),
        {"timestamp_is_zero": 1},
    ),
    "times before 1970 and after the end of time": (
        interactions(INTERACTIONS + b"w,a,-1\nw,a,2099-12-31\nw,a,0000-00-00 00:00:00\n"),
        {"timestamp_before_1970": 1, "timestamp_in_future": 1, "no_timestamp": 1},
    ),
    "titles that stand for none": (
        items(ITEMS + b"c,nan\nd,None\ne,N/A\nf,\\N\ng,NULL\n"),
        {"title_is_no_text": 5},
    ),
    "page source": (
        items(
            ITEMS + b'c,"var aPageStart = (new Date()).getTime();"\nd,<div>Soap</div>\n'
            b"e,<script>x</script>\nf,.a-size {color: red}\ng,&lt;img src=x&gt; Soap\n"
            b'h,"<span class=""x"">Soap"\n'
        ),
        {"title_is_no_text": 6},
    ),
    "lists and objects": (
        items(
            b'{"item_id": "a", "title": "Soap"}\n{"item_id": "b", "title": "Brush"}\n'
            b'{"item_id": "c", "title": []}\n{"item_id": "d", "title": ["x", "y"]}\n'
            b'{"item_id": "e", "title": {"raw": "x"}}\n{"item_id": "f", "title": false}\n',
            suffix=".json",
        ),
        {"title_is_no_text": 4},
    ),
    "bytes that are not UTF-8 in JSON": (
        items(
            b'{"item_id": "a", "title": "Soap"}\n{"item_id": "b", "title": "Brush"}\n'
            b'{"item_id": "c", "title": "Caf\xe9"}\n',
            suffix=".json",
        ),
        {"malformed_line": 1},
    ),
    "rows of more fields": (
        interactions(INTERACTIONS + b"u,a,1,2\n"),
        {"malformed_line": 1},
    ),
}


@pytest.mark.parametrize(("case", "left_out"), COUNTED.values(), ids=COUNTED.keys())
def test_rows_that_are_left_out_are_counted(
    tmp_path: Path, case: Case, left_out: Mapping[str, int]
) -> None:
    result = read(tmp_path, case, max_quarantined=1.0)
    assert result.rows() == sorted(case.rows)
    assert result.titles() == case.titles
    assert result.left_out() == left_out
    assert len(result.quarantined()) == len(left_out)
