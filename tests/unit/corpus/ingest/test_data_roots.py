"""Several data roots make the corpus that one would, or it is said what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cluster.errors import CorpusError, DataError
from corpus.append import append, preview
from corpus.build import build
from corpus.fingerprints import fingerprint
from corpus.ingest.data_roots import find_domains
from corpus.inspect.page import describe_versions
from corpus.settings import DataSettings
from tests.unit.corpus.worlds import all_kept, settings, shop, write_parquet, write_root

DOMAINS = ("A", "B", "C")


def write_csv_root(root: Path, domain: str) -> dict[str, Any]:
    """Writes a domain of `shop` with columns of its own; returns its entry."""
    rows = shop(DOMAINS)[domain]
    items = sorted({item for _, item, _ in rows})
    for name, lines in {
        "interactions": ["who,what,when", *(f"{u},{i},{t}" for u, i, t in rows)],
        "items": ["what,name", *(f"{item},Item {item}" for item in items)],
    }.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{domain}.csv").write_text("\n".join(lines) + "\n")
    columns = {"user_id": "who", "item_id": "what", "timestamp": "when", "title": "name"}
    return {"path": str(root), "columns": columns}


def with_roots(*roots: Any, **changes: Any) -> DataSettings:
    values = settings(**changes).model_dump(mode="json") | {"root": roots}
    return DataSettings.model_validate_json(json.dumps(values))


@pytest.fixture
def roots(tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """A data root of A and C, and the entry of another one, of B in a format of its own."""
    world = shop(DOMAINS)
    first = write_root(tmp_path / "first", {name: world[name] for name in ("A", "C")})
    return str(first), write_csv_root(tmp_path / "second", "B")


def test_several_roots_give_the_samples_of_one(
    roots: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    one = build(settings(write_root(tmp_path / "one", shop(DOMAINS))), 0, f"{tmp_path}/1", print)
    several = build(with_roots(*roots), 0, f"{tmp_path}/2", print)
    for stream in one.streams():
        source = str(stream.source)
        assert several.read_samples(source, "train").equals(one.read_samples(source, "train"))
    assert all_kept(several).equals(all_kept(one))
    said: list[str] = []
    build(with_roots(*reversed(roots)), 0, several.uri, said.append)
    assert "exists already" in said[0]
    shown = describe_versions(several)[0]
    assert shown["root"] == f"{tmp_path}/first, {tmp_path}/second"
    assert shown["domains"] == "A, C, B"


def test_the_same_files_are_the_same_build_in_one_root_and_in_several(tmp_path: Path) -> None:
    world = shop(DOMAINS)
    whole = build(settings(write_root(tmp_path / "one", world)), 0, f"{tmp_path}/corpus", print)
    parts = [write_root(tmp_path / name, {name: world[name]}) for name in DOMAINS]
    said: list[str] = []
    build(with_roots(*map(str, parts)), 0, whole.uri, said.append)
    assert "exists already" in said[0]


def test_an_append_finds_the_root_of_its_domain(
    roots: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    first, second = roots
    corpus = build(settings(first, domains=("A",)), 0, f"{tmp_path}/corpus", print)
    data = with_roots(first, second, domains=("B",))
    assert find_domains(data) == ["A", "B", "C"]
    said: list[str] = []
    preview(data, 0, corpus.uri, said.append)
    assert "320 new interactions" in said[-1]
    grown = append(data, 0, corpus.uri, print)
    assert grown.statistics()["domains"]["B"]["interactions"] == 320
    assert describe_versions(grown)[1]["root"] == second["path"]


def test_users_of_a_platform_are_other_people(tmp_path: Path) -> None:
    world = shop(("A", "B"))
    first = write_root(tmp_path / "first", {"A": world["A"]})
    second = write_root(tmp_path / "second", {"B": world["B"]})
    entry = {"path": str(second), "platform": "shop2"}
    corpus = build(with_roots(str(first), entry, held_out=()), 0, f"{tmp_path}/corpus", print)
    assert corpus.statistics()["mixed"]["samples"] == 0
    assert set(corpus.read_samples("domain/A", "train")["user_id"].to_pylist()) == {
        f"u{number:03d}" for number in range(40)
    }
    assert set(corpus.read_samples("domain/B", "train")["user_id"].to_pylist()) == {
        f"shop2/u{number:03d}" for number in range(40)
    }
    # Newer rows of a platform are of the users that the corpus has.
    newer = write_root(tmp_path / "newer", {"B": [("u001", "B00", 5_000 + n) for n in range(4)]})
    data = settings(newer, domains=("B",), held_out=(), platform="shop2")
    grown = append(data, 0, corpus.uri, print)
    kept = all_kept(grown).filter(pl.col("user_id") == "shop2/u001")
    assert kept.height >= 8 + 1
    assert grown.commits[1].metadata["origin"]["platform"] == "shop2"
    with pytest.raises(DataError, match="B: in this corpus of platform shop2, now of none"):
        preview(settings(newer, domains=("B",), held_out=()), 0, corpus.uri, print)
    with pytest.raises(DataError, match="A: in this corpus of no platform, now of shop2"):
        preview(
            settings(first, domains=("A",), held_out=(), platform="shop2"), 0, corpus.uri, print
        )


def test_rows_without_a_user_have_none_on_a_platform_either(tmp_path: Path) -> None:
    world = {"A": shop(("A",))["A"] + [("nan", "A00", 5)] * 3}
    data = settings(
        write_root(tmp_path / "root", world), domains=("A",), held_out=(), platform="shop2"
    )
    corpus = build(data, 0, f"{tmp_path}/corpus", print)
    assert corpus.statistics()["dropped"]["no_user_id"] == 3


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["first", "first"], "first is there twice"),
        (["first/", "first"], "first is there twice"),
        (["first", "first/interactions"], "first/interactions is below"),
        (["first", "nowhere"], "nowhere: no such data root"),
        (["first", "copy"], "A: several data roots have it: .*first, .*copy"),
        (["copy", "empty"], "C: no data root has it"),
        (["first,copy"], r"several are written as \[a, b\]"),
    ],
)
def test_roots_that_cannot_be_told_apart_or_are_not_there(
    names: list[str], problem: str, tmp_path: Path
) -> None:
    world = shop(DOMAINS)
    write_root(tmp_path / "first", world)
    write_root(tmp_path / "copy", {name: world[name] for name in ("A", "B")})
    (tmp_path / "empty").mkdir()
    data = with_roots(*(f"{tmp_path}/{name}" for name in names))
    with pytest.raises(DataError, match=problem):
        build(data, 0, f"{tmp_path}/corpus", print)
    assert not (tmp_path / "corpus").exists()


def test_a_root_is_read_for_the_domains_that_it_names(tmp_path: Path) -> None:
    world = shop(DOMAINS)
    first = write_root(tmp_path / "first", world)
    newer = write_root(tmp_path / "newer", {"B": shop(("B",), seed=3)["B"]})
    entries = [{"path": str(first), "domains": ["A", "C"]}, str(newer)]
    assert find_domains(with_roots(*entries)) == ["A", "B", "C"]
    build(with_roots(*entries), 0, f"{tmp_path}/corpus", print)


def test_an_incomplete_domain_is_told_by_its_root(tmp_path: Path) -> None:
    world = shop(DOMAINS)
    first = write_root(tmp_path / "first", {name: world[name] for name in ("A", "C")})
    rows: dict[str, list[object]] = {"user_id": ["u"], "item_id": ["i"], "timestamp": [1]}
    write_parquet(tmp_path / "second" / "interactions" / "B.parquet", rows)
    (tmp_path / "second" / "items").mkdir()
    with pytest.raises(DataError, match=r"second/items/B\.parquet: no such file"):
        build(with_roots(str(first), f"{tmp_path}/second"), 0, f"{tmp_path}/corpus", print)


def test_no_corpus_is_made_in_any_root(roots: tuple[str, dict[str, Any]]) -> None:
    with pytest.raises(CorpusError, match="names the data root"):
        build(with_roots(*roots), 0, roots[1]["path"], print)


def test_the_identity_of_one_root_is_that_of_earlier_releases(tmp_path: Path) -> None:
    """So a corpus is found again, and never built a second time from the same files."""
    for name, lines in {
        "interactions": [
            "user_id,item_id,timestamp",
            *(f"u{n % 4},i{n % 5},{n}" for n in range(40)),
        ],
        "items": ["item_id,title", *(f"i{n},Item {n}" for n in range(5))],
    }.items():
        (tmp_path / name).mkdir()
        for domain in "AC":
            (tmp_path / name / f"{domain}.csv").write_text("\n".join(lines) + "\n")
    data = DataSettings(root=str(tmp_path), domains=("A",), held_out=("C",))
    # As the release that took one data root only gave it.
    identity = "bdd399f1a533c07ab32577a4aea70b4ca6a499b23a4552a024e8d28c79b7b9c1"
    assert fingerprint(data, 0) == identity
    assert fingerprint(data.model_copy(update={"root": (str(tmp_path),)}), 0) == identity
    assert fingerprint(data.model_copy(update={"platform": "shop"}), 0) != identity
