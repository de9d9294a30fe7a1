"""Appends that race on an object store, and appends whose process is killed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from corpus.append import append
from corpus.build import build
from corpus.store import delta
from corpus.store.tables import Corpus
from tests.integration import jobs
from tests.unit.corpus import brute
from tests.unit.corpus.worlds import all_kept, settings, shop, write_root

BASE = ("A", "B", "C")
RACERS = tuple(f"R{number:02d}" for number in range(8))


def test_eight_appends_at_once_lose_no_row(s3: str, tmp_path: Path) -> None:
    """Two processes append four domains each, all at once, for the same users."""
    world = shop((*BASE, *RACERS), users=12, items=14)
    root = str(write_root(tmp_path / "root", world))
    uri = f"{s3}/corpus"
    build(settings(root), 0, uri, print)
    command = [sys.executable, "-m", "tests.integration.corpus.append_worker", uri, root]
    halves = [
        subprocess.Popen(
            [*command, ",".join(RACERS[half::2])], cwd=jobs.ROOT, stdout=subprocess.PIPE, text=True
        )
        for half in range(2)
    ]
    said = [process.communicate(timeout=jobs.LIMIT_S)[0] for process in halves]
    assert [process.returncode for process in halves] == [0, 0], said
    versions = sorted(int(version) for out in said for version in out.splitlines()[-1].split())
    assert versions == list(range(1, 9))

    corpus = Corpus.open(uri)
    assert corpus.version == 8
    assert {s.source for s in corpus.streams("test")} == {
        "domain/A",
        "domain/B",
        "downstream/C",
        *(f"domain/{name}" for name in RACERS),
    }
    tables = [
        corpus.read_samples(source, "train")
        for source in sorted({s.source for s in corpus.streams()})
    ]
    ids = np.concatenate([table["sample_id"].to_numpy() for table in tables])
    assert np.unique(ids).size == ids.size
    cores = {name: len(brute.core(rows, 3)) for name, rows in world.items()}
    assert all_kept(corpus).height == sum(cores.values())
    shown = corpus.statistics()
    interactions = {name: counts["interactions"] for name, counts in shown["domains"].items()}
    assert interactions == cores
    assert shown["mixed"]["samples"] == corpus.read_samples("mixed", "train").num_rows
    # Every training interaction is a mixed target at most once, whatever the order of the appends.
    mixed = corpus.read_samples("mixed", "train").to_pylist()
    targets = {
        (row["user_id"], row["candidates"][row["target"]], row["timestamp"]) for row in mixed
    }
    assert len(targets) == len(mixed)


@pytest.mark.parametrize(
    "reached",
    ["items/_delta_log/00000000000000000001.json", "samples/*/D/*/*.parquet"],
    ids=["items committed", "first file"],
)
def test_an_append_that_is_killed_leaves_the_table_as_it_was_and_is_completed(
    tmp_path: Path, reached: str
) -> None:
    root = write_root(tmp_path / "root", shop((*BASE, "D"), users=6_000, items=300))
    uri = str(tmp_path / "corpus")
    before = build(settings(root), 0, uri, print)
    data = {
        "root": str(root),
        "format": "root",
        "domains": ["D"],
        "held_out": [],
        "num_candidates": 5,
        "max_history": 4,
    }
    recipe = jobs.recipe(tmp_path, data=data)
    with jobs.start("append_domain", recipe) as process:
        # The items are committed first, and the samples only made afterwards.
        jobs.kill_when(process, lambda: any(Path(uri).glob(reached)))
    assert Corpus.open(uri) == before
    finished = jobs.run("append_domain", recipe)
    assert f"corpus version 1 at {uri}" in finished.stdout.splitlines()
    whole = append(
        settings(root, domains=("D",), held_out=()),
        0,
        build(settings(root), 0, str(tmp_path / "clean"), print).uri,
        print,
    )
    names = [
        [added.file.uri.removeprefix(corpus.uri) for added in corpus.commits[1].added]
        for corpus in (Corpus.open(uri), whole)
    ]
    assert names[0] == names[1]
    again = jobs.run("append_domain", recipe)
    assert "since version 1; nothing to do" in again.stdout
    assert len(delta.read_commits(f"{uri}/samples")) == 2
