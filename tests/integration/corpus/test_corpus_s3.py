"""A corpus on an object store: reads raw data from it, writes the corpus, reads it back."""

import gzip
import json
import threading
from pathlib import Path

import pytest

from cluster import storage
from cluster.errors import CorpusError
from corpus.build import build
from corpus.ingest.sources import file_splits, reader, text_files
from corpus.store.tables import Corpus, read_rows
from tests.unit.corpus.worlds import settings, shop, write_root

DOMAINS = ("A", "B", "C")


def test_the_same_corpus_as_on_a_disk(s3: str, tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", shop(DOMAINS))
    storage.upload(root, f"{s3}/root")
    local = build(settings(root), 0, str(tmp_path / "corpus"), print)
    said: list[str] = []
    remote = build(settings(f"{s3}/root"), 0, f"{s3}/corpora/one", said.append)
    assert said[-1].startswith(f"committed corpus version 0 at {s3}/corpora/one")
    names = [
        [file.file.uri.removeprefix(corpus.uri) for file in corpus.commits[0].added]
        for corpus in (local, remote)
    ]
    assert names[0] == names[1]
    assert remote.read_titles() == local.read_titles()
    assert remote.statistics() == local.statistics()
    stream = remote.streams()[0]
    assert stream.files[0].uri.startswith("s3://")
    assert read_rows(stream, 3, 50).equals(read_rows(local.streams()[0], 3, 50))
    assert (
        storage.read_text(f"{s3}/corpora/one/statistics.json")
        == Path(local.uri, "statistics.json").read_text()
    )

    build(settings(f"{s3}/root"), 0, f"{s3}/corpora/one", said.append)
    assert "exists already" in said[-1]


# Ray Data copies its own deprecated settings whenever it makes a dataset.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_the_same_corpus_on_ray(s3: str, tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", shop(DOMAINS, users=20))
    storage.upload(root, f"{s3}/root")
    one = build(settings(root), 0, str(tmp_path / "one"), print)
    many = build(settings(f"{s3}/root", distribute_above=0), 0, f"{s3}/many", print)
    names = [
        [file.file.uri.removeprefix(corpus.uri) for file in corpus.commits[0].added]
        for corpus in (one, many)
    ]  # names hold a digest of the content
    assert names[0] == names[1]
    assert one.statistics() == many.statistics()


def test_lines_of_an_object_store(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain lines are read in splits by bytes, packed ones from the start, both in many blocks."""
    monkeypatch.setattr(file_splits, "BYTES_PER_SPLIT", 3_000)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1_000)
    rows = [{"u": f"u{number}", "i": "item", "t": number} for number in range(600)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    storage.write_bytes(f"{s3}/lines/A.json", content)
    storage.write_bytes(f"{s3}/lines/A.json.gz", gzip.compress(content))
    splits = file_splits.split_file(f"{s3}/lines/A.json")
    assert len(splits) == -(-len(content) // 3_000)
    for file_parts in (splits, file_splits.split_file(f"{s3}/lines/A.json.gz")):
        read = [
            block.table
            for part in file_parts
            for block in reader.read_blocks(
                part, {"user_id": "u", "item_id": "i", "timestamp": "t"}, 1
            )
        ]
        assert len(read) > 10
        assert [tuple(row.values()) for table in read for row in table.to_pylist()] == [
            tuple(row.values()) for row in rows
        ]


def test_a_missing_corpus_is_reported(s3: str) -> None:
    with pytest.raises(CorpusError, match="no corpus here"):
        Corpus.open(f"{s3}/none")


def test_of_two_builds_at_once_one_commits_and_the_other_fails(s3: str, tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", shop(DOMAINS, users=20))
    outcomes: list[str] = []

    def build_once(seed: int) -> None:
        try:
            build(settings(root), seed, f"{s3}/raced", print)
            outcomes.append("committed")
        except CorpusError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=build_once, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("committed") == 1
    other = next(outcome for outcome in outcomes if outcome != "committed")
    assert "another process" in other or "rules or seed" in other
    assert Corpus.open(f"{s3}/raced").version == 0
