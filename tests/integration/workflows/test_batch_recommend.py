"""A batch of users on real Ray: killed, resumed, and over a whole catalogue."""

from pathlib import Path

import pyarrow.parquet as pq

from corpus.store.tables import Corpus
from tests.integration import jobs


def test_a_killed_batch_goes_on_and_every_user_stands_once(place: Path, whole: Path) -> None:
    corpus = Corpus.open(f"{place}/corpus")
    samples = corpus.read_samples(corpus.find_domain_source("Games", "test"), "test")
    candidates = dict(
        zip(samples["user_id"].to_pylist(), samples["candidates"].to_pylist(), strict=True)
    )
    ids = corpus.read_items()["item_id"].to_pylist()
    arguments = (
        place / "recipe.yaml",
        *("--model", "candidate", "--recommend.domain", "Games", "--workers", "1"),
        *("--recommend.as_of", "test", "--recommend.candidates", "given"),
        *("--recommend.exclude_history", "false", "--recommend.k", "30"),
        *("--recommend.block_users", "1"),
    )

    def blocks() -> dict[Path, int]:
        found = (whole / "recommendations").rglob("rankings/part-*.parquet")
        return {path: path.stat().st_mtime_ns for path in found}

    process = jobs.start("batch_recommend", *arguments)
    jobs.kill_when(process, lambda: bool(blocks()))
    before = blocks()
    assert len(before) < len(candidates)
    folder = next(iter(before)).parent
    assert not (folder.parent / "summary.json").exists()

    resumed = jobs.run("batch_recommend", *arguments).stdout
    assert f"{len(candidates):,} of {len(candidates):,} users ranked" in resumed
    after = blocks()
    assert len(after) == len(candidates)
    # At most the block that was being written is written again.
    assert sum(after[path] != time for path, time in before.items()) <= 1
    rows = pq.read_table(folder).to_pylist()
    assert sorted(row["user_id"] for row in rows) == sorted(candidates)
    for row in rows:
        assert sorted(row["items"]) == sorted(ids[i] for i in candidates[row["user_id"]])
        assert row["scores"] == sorted(row["scores"], reverse=True)
    again = jobs.run_here("batch_recommend", *arguments)
    assert "ranked already, from equal inputs" in again.stdout
    assert blocks() == after


def test_a_batch_over_the_catalogue_recommends_nothing_that_was_bought(
    place: Path, whole: Path
) -> None:
    out = place / "batch"
    printed = jobs.run(
        "batch_recommend",
        place / "recipe.yaml",
        *("--model", "candidate", "--recommend.domain", "Games", "--workers", "1"),
        *("--recommend.out", out, "--recommend.retrieve_k", "8", "--recommend.k", "5"),
        *("--retrieval.sources", "titles"),
    ).stdout
    assert "retrieved 8 of" in printed
    corpus = Corpus.open(f"{place}/corpus")
    ids = corpus.read_items()["item_id"].to_pylist()
    samples = corpus.read_samples(corpus.find_domain_source("Games", "test"), "test").to_pylist()
    (folder,) = out.glob("*/rankings")
    rankings = {row["user_id"]: row for row in pq.read_table(folder).to_pylist()}
    assert set(rankings) == {row["user_id"] for row in samples}
    for row in samples:
        ranked = rankings[row["user_id"]]["items"]
        bought = {ids[i] for i in [*row["history"], row["candidates"][row["target"]]]}
        assert len(ranked) == len(set(ranked)) == 5
        assert not bought & set(ranked)
