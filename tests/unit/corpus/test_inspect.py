"""A corpus is told of, checked for leakage, and shown; the check finds what is planted."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from corpus import delta, leakage, page
from corpus.append import append
from corpus.build import build
from corpus.shape import LENGTHS, classes, shape
from corpus.table import Corpus
from tests.unit.corpus.worlds import Row, frame, settings, shop, worlds, write_root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two versions; users have repeated purchases and ties."""
    place = tmp_path_factory.mktemp("inspected")
    world = shop(("A", "B", "C"), users=30)
    world["A"] += [("u000", "A00", 2_000 + n) for n in range(4)]
    first = build(settings(write_root(place / "root", world)), 0, str(place / "corpus"), print)
    more = shop(("D",), users=30, seed=1) | {"A": [("u001", f"A{n:02d}", 3_000 + n) for n in range(5)]}
    return append(settings(write_root(place / "more", more), domains=("A", "D"), held_out=()), 0, first.uri, print)


def test_a_sound_corpus_leaks_nothing(corpus: Corpus) -> None:
    found = leakage.check(corpus)
    assert {name: found[name] for name in leakage.SOUND} == dict.fromkeys(leakage.SOUND, 0)
    assert found["test_items_bought_before"] > 0


@pytest.mark.parametrize("planted", ["training_targets_held_out", "history_items_held_out", "rows_of_held_out_domains", "sample_ids_twice"])
def test_what_is_planted_is_found(corpus: Corpus, tmp_path: Path, planted: str) -> None:
    """A row of the mixed source is spoilt in one way, and its file written over."""
    shutil.copytree(corpus.uri, tmp_path / "spoilt")
    spoilt = Corpus.open(str(tmp_path / "spoilt"))
    train, test = (
        next(s.files[0].path for s in spoilt.streams(split) if s.source == source) for split, source in (("train", "mixed"), ("test", "domain/A"))
    )
    held_out = next(s.files[0].path for s in spoilt.streams("test") if s.source == "downstream/C")
    rows = delta.open_parquet(train).read().to_pylist()
    row = delta.open_parquet(held_out if planted == "rows_of_held_out_domains" else test).read().to_pylist()[0]
    if planted == "training_targets_held_out":
        rows[0] |= {key: row[key] for key in ("user_id", "domain", "candidates", "target", "timestamp")}
    elif planted == "history_items_held_out":
        train_items = {r["candidates"][r["target"]] for r in rows if r["user_id"] == row["user_id"]} | {i for r in rows for i in r["history"]}
        tests = delta.open_parquet(test).read().to_pylist()
        row = next(r for r in tests if r["candidates"][r["target"]] not in {i for x in rows if x["user_id"] == r["user_id"] for i in x["history"]})
        assert train_items
        rows[0] |= {"user_id": row["user_id"], "history": [row["candidates"][row["target"]]] * 3}
    elif planted == "rows_of_held_out_domains":
        rows[0] |= {"history": row["history"]}
    else:
        rows[0] |= {"sample_id": rows[1]["sample_id"]}
    pa.parquet.write_table(pa.Table.from_pylist(rows, schema=delta.open_parquet(train).schema_arrow), train)
    assert leakage.check(spoilt)[planted] > 0


def test_the_page_shows_everything_and_escapes_it(corpus: Corpus) -> None:
    shown = page.render(corpus, leakage.check(corpus) | {"<script>": 1})
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    for word in (
        "domain/A",
        "downstream/C",
        "mixed",
        "training_targets_held_out",
        "short_history",
        "Users in two domains",
        "<svg",
        "Corpus version 1",
    ):
        assert word in shown
    assert "http" not in shown
    assert [of["version"] for of in page.versions(corpus)] == [0, 1]
    assert page.versions(corpus)[1]["domains"] == "A, D"
    assert page.sources(corpus)[0][:2] == ("domain/A", 0)


@given(worlds())
@hypothesis_settings(max_examples=40)
def test_the_shape_of_interactions(world: dict[str, list[Row]]) -> None:
    found = shape(frame(world, 14))
    for domain, rows in world.items():
        if not rows:
            continue
        users = [row[0] for row in rows]
        sizes = np.array([users.count(user) for user in set(users)])
        assert sum(found.lengths[domain]) == sizes.size
        assert found.lengths[domain][3] == ((sizes >= LENGTHS[3]) & (sizes < LENGTHS[4])).sum()
        assert found.ties[domain] == pytest.approx(1 - len({(u, t) for u, _, t in rows}) / len(rows))
        assert found.overlap[domain, domain] == sizes.size
        assert list(found.popularity[domain]) == sorted(found.popularity[domain])
    assert classes()[:4] == ("1", "2", "3-4", "5-8")


def test_bars_fill_their_chart() -> None:
    assert page.bars((0, 5, 10), width=30, height=10) == [(1.0, 10.0, 8.0, 0.0), (11.0, 5.0, 8.0, 5.0), (21.0, 0.0, 8.0, 10.0)]
    assert pl.DataFrame(page.bars((0, 0))).height == 4
