"""Appends against a slow, independent implementation of what a version adds.

The tests below `base` append on disk: what is written, refused, left alone and completed.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cluster import storage
from cluster.errors import CommitConflictError, CorpusError, DataError
from corpus.append import append, preview
from corpus.append_text import append_text, preview_text
from corpus.build import build
from corpus.local.sample_files import write_sample_files
from corpus.sampling.encoded_interactions import EncodedInteractions, mark_as_new
from corpus.sampling.samples import Samples, build_samples
from corpus.settings import DataSettings
from corpus.store import delta
from corpus.store.tables import Corpus
from tests.unit.corpus import brute
from tests.unit.corpus.sampling.test_samples import DOMAINS, ITEMS, name, rules
from tests.unit.corpus.worlds import (
    Row,
    all_kept,
    catalogue,
    frame,
    settings,
    shop,
    worlds,
    write_root,
)

Sample = tuple[str, str, str, str, tuple[str, ...], str, int]
"""source, split, user, domain, history, target, timestamp."""


def slow_samples(
    versions: Sequence[Mapping[str, Sequence[Row]]], data: DataSettings
) -> list[Counter[Sample]]:
    """Returns the samples that each version adds, by a loop over versions, users and positions."""
    split_of: dict[tuple[str, str, str, int], str] = {}
    mixed_targets: set[tuple[str, str, str, int]] = set()
    world: dict[str, list[Row]] = {domain: [] for domain in DOMAINS}
    added_by_version = []
    for version in versions:
        added: Counter[Sample] = Counter()
        world = {domain: [*world[domain], *version.get(domain, ())] for domain in DOMAINS}
        for user in sorted({row[0] for rows in version.values() for row in rows}):
            mixed = []
            for domain in DOMAINS:
                sequence = sorted((time, item) for u, item, time in world[domain] if u == user)
                new = {(item, time) for u, item, time in version.get(domain, ()) if u == user}
                for place, (time, item) in enumerate(sequence):
                    last = {len(sequence) - 1: "test", len(sequence) - 2: "validation"}
                    # An earlier version's split stays.
                    split_of.setdefault((user, domain, item, time), last.get(place, "train"))
                training = [(t, i) for t, i in sequence if split_of[user, domain, i, t] == "train"]
                source = f"{'downstream' if domain in data.held_out else 'domain'}/{domain}"
                for time, item in sequence:
                    if (item, time) not in new:
                        continue
                    split = split_of[user, domain, item, time]
                    earlier = [
                        i
                        for t, i in (training if split == "train" else sequence)
                        if (t, i) < (time, item)
                    ]
                    if len(earlier) >= data.min_history:
                        history = tuple(earlier[-data.max_history :])
                        added[source, split, user, domain, history, item, time] += 1
                mixed += [(t, domain, i) for t, i in training if domain in data.domains]
            mixed.sort()
            for place, (time, domain, item) in enumerate(mixed):
                window = mixed[max(0, place - data.max_history) : place]
                fits = (
                    place >= data.min_history
                    and len({d for _, d, _ in window}) >= data.mixed_min_domains
                )
                fits = (
                    fits and sum(d == domain for _, d, _ in window) >= data.mixed_min_target_domain
                )
                if fits and (user, domain, item, time) not in mixed_targets:
                    mixed_targets.add((user, domain, item, time))
                    history = tuple(i for *_, i in window)
                    added["mixed", "train", user, domain, history, item, time] += 1
        added_by_version.append(added)
    return added_by_version


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, list[Row]]]:
    """Draws a world whose interactions are spread over three versions, in any order of time."""
    world = draw(worlds(DOMAINS, users=4, items=ITEMS, most=8))
    rng = random.Random(draw(st.integers(0, 10_000)))
    late = draw(st.booleans())  # whether domain B is new in the second version
    versions: list[dict[str, list[Row]]] = [{domain: [] for domain in DOMAINS} for _ in range(3)]
    for domain, rows in world.items():
        for row in rows:
            versions[rng.randrange(1 if late and domain == "B" else 0, 3)][domain].append(row)
    return versions


def build_versions(
    versions: Sequence[Mapping[str, Sequence[Row]]], data: DataSettings
) -> Iterable[Samples]:
    """Makes the samples of one version after the other, as an append does.

    Each is made from its own interactions and the stored ones of their users.
    """
    stored = frame({domain: [] for domain in DOMAINS}, ITEMS)
    for number, version in enumerate(versions):
        new = mark_as_new(
            frame({domain: version.get(domain, []) for domain in DOMAINS}, ITEMS), number
        )
        interactions = pl.concat(
            [new, stored.join(new.select("user_id").unique(), on="user_id", how="semi")]
        )
        shuffled = interactions.sample(fraction=1.0, shuffle=True, seed=number)
        samples = build_samples(
            EncodedInteractions.from_frame(shuffled), catalogue(DOMAINS, ITEMS), data, seed=3
        )
        added = (
            pl.DataFrame(samples.new_interactions)
            .drop("user_hash")
            .with_columns(version=pl.lit(number, pl.Int32))
        )
        stored = pl.concat([stored, added.select(stored.columns)])
        yield samples


@given(histories(), rules)
@hypothesis_settings(max_examples=60)
def test_each_version_adds_the_samples_of_the_slow_implementation(
    versions: list[dict[str, list[Row]]], data: DataSettings
) -> None:
    expected_by_version = slow_samples(versions, data)
    users_with_mixed: set[str] = set()
    for samples, expected in zip(build_versions(versions, data), expected_by_version, strict=True):
        counted: Counter[Sample] = Counter()
        for (source, split), table in samples.tables.items():
            for row in table.to_pylist():
                history = tuple(map(name, row["history"]))
                target = name(row["candidates"][row["target"]])
                counted[
                    source, split, row["user_id"], row["domain"], history, target, row["timestamp"]
                ] += 1
        assert counted == expected
        mixed_users = {sample[2] for sample in expected if sample[0] == "mixed"}
        assert samples.mixed_users == len(mixed_users - users_with_mixed)
        users_with_mixed |= mixed_users


@given(histories(), rules)
@hypothesis_settings(max_examples=40)
def test_no_sample_id_occurs_twice_in_any_version(
    versions: list[dict[str, list[Row]]], data: DataSettings
) -> None:
    tables = [
        table for samples in build_versions(versions, data) for table in samples.tables.values()
    ]
    ids = np.concatenate([table["sample_id"].to_numpy() for table in tables])
    assert np.unique(ids).size == ids.size


@given(histories(), rules)
@hypothesis_settings(max_examples=40)
def test_an_interaction_held_out_once_is_no_training_target_of_any_version(
    versions: list[dict[str, list[Row]]], data: DataSettings
) -> None:
    held_out: set[tuple[str, str, int]] = set()
    trained: set[tuple[str, str, int]] = set()
    for samples in build_versions(versions, data):
        held_out |= {
            (r["user_id"], r["item_id"], r["timestamp"])
            for r in samples.new_interactions.to_pylist()
            if r["split"] > 0
        }
        for (source, split), table in samples.tables.items():
            if split == "train" and not source.startswith("downstream/"):
                trained |= {
                    (r["user_id"], name(r["candidates"][r["target"]]), r["timestamp"])
                    for r in table.to_pylist()
                }
    assert not trained & held_out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    place = tmp_path_factory.mktemp("base")
    return build(
        settings(write_root(place / "root", shop(DOMAINS))), 0, str(place / "corpus"), print
    )


@pytest.fixture
def corpus(base: Corpus, tmp_path: Path) -> Corpus:
    shutil.copytree(base.uri, tmp_path / "corpus")
    return Corpus.open(str(tmp_path / "corpus"))


def input_settings(
    tmp_path: Path, world: Mapping[str, Sequence[Row]], **changes: object
) -> DataSettings:
    """Writes the data root of an append, and returns its settings."""
    values: dict[str, object] = {"domains": tuple(world), "held_out": ()}
    return settings(write_root(tmp_path / "more", world), **values | changes)


def rows_of(corpus: Corpus, version: int) -> dict[tuple[str, str], list[dict[str, object]]]:
    """Returns the samples that a version added, by (source, split)."""
    return {
        (stream.source, split): [
            row for file in stream.files for row in delta.open_parquet(file.uri).read().to_pylist()
        ]
        for split in ("train", "validation", "test")
        for stream in corpus.streams(split)
        if stream.version == version
    }


def test_a_new_domain_adds_streams_and_rewrites_nothing(corpus: Corpus, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in Path(corpus.uri).rglob("*.parquet")}
    log = Path(corpus.uri, "samples/_delta_log/00000000000000000000.json").read_bytes()
    said: list[str] = []
    grown = append(input_settings(tmp_path, shop(("D",), seed=5)), 0, corpus.uri, said.append)
    assert said[-1].startswith(f"committed corpus version 1 at {corpus.uri}")
    assert [(s.source, s.version) for s in grown.streams() if s.version == 1] == [
        ("domain/D", 1),
        ("mixed", 1),
    ]
    assert {path: path.read_bytes() for path in before} == before
    assert Path(corpus.uri, "samples/_delta_log/00000000000000000000.json").read_bytes() == log
    assert Corpus.open(corpus.uri, 0).streams() == corpus.streams()
    assert {s.source: s.rows for s in grown.streams("test") if s.version == 1} == {"domain/D": 40}
    titles = grown.read_titles()
    assert titles[: len(corpus.read_titles())] == corpus.read_titles()
    for row in rows_of(grown, 1)["domain/D", "train"]:
        candidates: Any = row["candidates"]
        assert all(titles[candidate].startswith("Item D") for candidate in candidates)
    shown = grown.statistics()
    assert shown["version"] == 1
    assert shown["domains"]["D"]["interactions"] == 320
    assert shown["domains"]["A"] == corpus.statistics()["domains"]["A"]
    assert shown["mixed"]["samples"] == sum(s.rows for s in grown.streams() if s.source == "mixed")
    assert shown["mixed"]["users"] == 40


def test_a_held_out_domain_adds_no_mixed_sample(corpus: Corpus, tmp_path: Path) -> None:
    data = input_settings(tmp_path, shop(("D",), seed=5), domains=(), held_out=("D",))
    grown = append(data, 0, corpus.uri, print, held_out=True)
    assert [(s.source, s.version) for s in grown.streams() if s.version == 1] == [
        ("downstream/D", 1)
    ]
    assert grown.statistics()["mixed"] == corpus.statistics()["mixed"]
    assert grown.statistics()["domains"]["D"]["held_out"]


def test_newer_rows_of_an_old_domain(corpus: Corpus, tmp_path: Path) -> None:
    """Existing users go on: their old test interaction stays held out, and two new ones are."""
    world = {
        "A": [("u000", f"A{item:02d}", 2_000 + item) for item in range(6)],
        "B": [("u001", "B03", 2_000)],
    }
    bought = {(user, item) for user, item, _ in shop(("A", "B", "C"))["A"]}
    not_bought = [row for row in world["A"] if (row[0], row[1]) not in bought]
    world["A"] = [
        *not_bought,
        ("u000", "A00", 3_000),
        ("u000", "A01", 3_001),
        ("u000", "A02", 3_002),
    ]
    grown = append(input_settings(tmp_path, world), 0, corpus.uri, print)
    rows = (
        all_kept(grown)
        .filter(pl.col("user_id") == "u000", pl.col("domain") == "A")
        .sort("timestamp", "item_id")
    )
    assert rows["split"].to_list() == [0] * 6 + [1, 2] + [0] * (rows.height - 10) + [1, 2]
    held_out = set(rows.filter(pl.col("version") == 0, pl.col("split") > 0)["item_index"]) - set(
        rows.filter(pl.col("split") == 0)["item_index"]
    )
    for row in rows_of(grown, 1)["domain/A", "train"]:
        assert not held_out & set(row["history"])  # type: ignore[call-overload]
    assert (
        len(rows_of(grown, 1)["domain/A", "test"])
        == len(rows_of(grown, 1)["domain/B", "test"])
        == 1
    )
    assert grown.statistics()["domains"]["A"]["users"] == 40
    assert grown.statistics()["domains"]["A"]["interactions"] == 320 + len(world["A"])


def test_the_same_append_again_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    data = input_settings(tmp_path, shop(("D",), seed=5))
    append(data, 0, corpus.uri, print)
    log = sorted(Path(corpus.uri, "samples/_delta_log").iterdir())
    Path(corpus.uri, "statistics.json").unlink()
    said: list[str] = []
    again = append(data, 0, corpus.uri, said.append)
    assert again.version == 1
    assert "in the corpus already, since version 1" in said[-1]
    assert sorted(Path(corpus.uri, "samples/_delta_log").iterdir()) == log
    assert Path(corpus.uri, "statistics.json").exists()


def test_a_preview_says_what_would_be_added_and_writes_nothing(
    corpus: Corpus, tmp_path: Path
) -> None:
    data = input_settings(tmp_path, shop(("D",), seed=5))
    before = {path: path.stat().st_mtime_ns for path in Path(corpus.uri).rglob("*")}
    said: list[str] = []
    preview(data, 0, corpus.uri, said.append)
    assert {path: path.stat().st_mtime_ns for path in Path(corpus.uri).rglob("*")} == before
    assert said[-1] == f"would make version 1 of {corpus.uri}: 320 new interactions; dropped: none"
    assert Corpus.open(corpus.uri).version == 0
    with pytest.raises(DataError, match="in this corpus as pre-training data"):
        preview(
            input_settings(
                tmp_path / "held", {"A": shop(DOMAINS)["A"]}, domains=(), held_out=("A",)
            ),
            0,
            corpus.uri,
            print,
            held_out=True,
        )
    append(data, 0, corpus.uri, print)
    preview(data, 0, corpus.uri, said.append)
    assert (
        said[-1] == "these interactions are in the corpus already, since version 1; nothing to do"
    )
    (tmp_path / "prose.txt").write_text("word " * 400)
    preview_text(str(tmp_path / "prose.txt"), corpus.uri, said.append)
    assert said[-1] == f"would make version 2 of {corpus.uri}: 4 windows of text/prose"
    append_text(str(tmp_path / "prose.txt"), corpus.uri, print)
    preview_text(str(tmp_path / "prose.txt"), corpus.uri, said.append)
    assert said[-1] == "this text is in the corpus already, since version 2; nothing to do"
    preview(
        input_settings(tmp_path / "same", {"A": shop(DOMAINS)["A"]}), 0, corpus.uri, said.append
    )
    assert (
        said[-1]
        == "the corpus has all usable interactions of A already; version 2 stays the newest"
    )


def test_interactions_that_the_corpus_has_are_left_out(corpus: Corpus, tmp_path: Path) -> None:
    said: list[str] = []
    same = append(input_settings(tmp_path, {"A": shop(DOMAINS)["A"]}), 0, corpus.uri, said.append)
    assert same.version == 0
    assert (
        said[-1]
        == "the corpus has all usable interactions of A already; version 0 stays the newest"
    )


@given(st.integers(0, 1000))
@hypothesis_settings(max_examples=5)
def test_the_whole_log_again_gives_the_core_of_the_whole_log(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    place = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(seed)
    log = [(f"u{rng.integers(30):02d}", f"A{rng.integers(25):02d}", t) for t in range(200)]
    log = list({(u, i): (u, i, t) for u, i, t in log}.values())
    early = log[: len(log) * 2 // 3]
    build(
        settings(write_root(place / "early", {"A": early}), domains=("A",), held_out=()),
        0,
        str(place / "corpus"),
        print,
    )
    grown = append(
        settings(write_root(place / "log", {"A": log}), domains=("A",), held_out=()),
        0,
        str(place / "corpus"),
        print,
    )
    core = brute.core(log, 3)
    stored = all_kept(grown)
    assert sorted(stored.select("user_id", "item_id", "timestamp").rows()) == sorted(core)
    shown = grown.statistics()["domains"]["A"]
    assert (shown["users"], shown["items"], shown["interactions"]) == (
        len({u for u, *_ in core}),
        len({i for _, i, _ in core}),
        len(core),
    )


def test_titles_of_an_append_differ_from_those_in_the_corpus(
    corpus: Corpus, tmp_path: Path
) -> None:
    world = {"A": [(f"u{user:03d}", "A77", 5_000 + user) for user in range(4)]}
    data = settings(
        write_root(tmp_path / "more", world, {"A77": "item a00"}), domains=("A",), held_out=()
    )
    grown = append(data, 0, corpus.uri, print)
    assert grown.read_titles()[-1] == "item a00 (2)"
    assert grown.statistics()["domains"]["A"]["items"] == 31
    assert grown.statistics()["dropped"]["title_made_distinct"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"min_history": 2},
            r"built with data\.min_history 3 \(asked for: 2\); set the keys as they were",
        ),
        ({"domains": (), "held_out": ()}, r"data\.domains names no domain to append"),
        (
            {"domains": ("C",)},
            r"C: in this corpus as held-out data, which cannot change; append with --held-out",
        ),
        ({"k_core": 3, "num_candidates": 6}, r"data\.num_candidates 5 \(asked for: 6\)"),
        ({"users_together": True}, r"data\.users_together not set \(asked for: True\)"),
        ({"prompt_injection": "drop"}, r"data\.prompt_injection not set \(asked for: drop\)"),
    ],
)
def test_an_append_that_does_not_fit_is_refused(
    corpus: Corpus, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises((CorpusError, DataError), match=message):
        append(input_settings(tmp_path, shop(("C", "D"), seed=5), **changes), 0, corpus.uri, print)
    assert Corpus.open(corpus.uri).version == 0


def test_a_domain_that_is_named_twice_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    data = input_settings(tmp_path, shop(("D",), seed=5)).model_copy(update={"domains": ("D",) * 2})
    for function in (append, preview):
        with pytest.raises(DataError, match=r"\['D'\] more than once in data\.domains"):
            function(data, 0, corpus.uri, print)
    assert Corpus.open(corpus.uri).version == 0


def test_a_domain_of_too_few_rows_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"D: the 3-core of 2 interactions is empty; the largest data\.k_core that leaves "
        r"data is 1, and a corpus keeps the data\.k_core it was built with$",
    ):
        append(
            input_settings(tmp_path, {"D": [("u000", "D00", 1), ("u001", "D01", 2)]}),
            0,
            corpus.uri,
            print,
        )


@pytest.mark.parametrize("others", [(), ("D",)])
def test_a_new_domain_without_usable_rows_is_refused(
    corpus: Corpus, tmp_path: Path, others: tuple[str, ...]
) -> None:
    world: dict[str, list[Row]] = {"E": [("u000", "E00", -1)], **shop(others, seed=5)}
    with pytest.raises(
        DataError,
        match=r"E: the 3-core of 0 interactions is empty; "
        r"it holds no interaction that can be used$",
    ):
        append(input_settings(tmp_path, world, max_quarantined=1.0), 0, corpus.uri, print)
    assert Corpus.open(corpus.uri).version == 0


def test_no_corpus_to_append_to(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no corpus here"):
        append(input_settings(tmp_path, shop(("D",))), 0, str(tmp_path / "none"), print)


class Killed(BaseException):
    pass


def test_an_append_killed_before_its_commit_shows_nothing_and_is_completed(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = input_settings(tmp_path, shop(("D",), seed=5))
    shutil.copytree(corpus.uri, tmp_path / "clean")
    clean = append(data, 0, str(tmp_path / "clean"), print)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("corpus.local.append.write_sample_files", killed)
        with pytest.raises(Killed):
            append(data, 0, corpus.uri, print)
    assert Corpus.open(corpus.uri) == corpus
    assert corpus.read_titles() == Corpus.open(corpus.uri).read_titles()
    again = append(data, 0, corpus.uri, print)
    assert rows_of(again, 1) == rows_of(clean, 1)
    assert again.read_titles() == clean.read_titles()


def test_an_append_that_is_overtaken_builds_on_the_other(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one commits while the samples of this one are being made."""
    said: list[str] = []
    other = input_settings(tmp_path / "other", shop(("E",), seed=6))

    def slow(*arguments: object) -> object:
        samples = write_sample_files(*arguments)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr("corpus.local.append.write_sample_files", write_sample_files)
            append(other, 0, corpus.uri, print)
        monkeypatch.setattr("corpus.local.append.write_sample_files", write_sample_files)
        return samples

    monkeypatch.setattr("corpus.local.append.write_sample_files", slow)
    grown = append(input_settings(tmp_path, shop(("D",), seed=5)), 0, corpus.uri, said.append)
    assert grown.version == 2
    assert any("another process made version 1 in the meantime" in line for line in said)
    assert {s.source for s in grown.streams() if s.version == 1} == {"domain/E", "mixed"}
    assert {s.source for s in grown.streams() if s.version == 2} == {"domain/D", "mixed"}
    ids = np.concatenate(
        [
            grown.read_samples(source, "train")["sample_id"].to_numpy()
            for source in {s.source for s in grown.streams()}
        ]
    )
    assert np.unique(ids).size == ids.size


def test_statistics_that_are_written_last_have_all_versions(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another append commits, and writes its statistics, just before this one writes its own."""
    (tmp_path / "prose.txt").write_text("word " * 400)
    write_text = storage.write_text

    def slow(uri: str, content: str) -> None:
        monkeypatch.setattr(storage, "write_text", write_text)
        append_text(str(tmp_path / "prose.txt"), corpus.uri, print)
        write_text(uri, content)

    monkeypatch.setattr(storage, "write_text", slow)
    grown = append(input_settings(tmp_path, shop(("D",), seed=5)), 0, corpus.uri, print)
    assert (grown.version, Corpus.open(corpus.uri).version) == (1, 2)
    shown = json.loads(Path(corpus.uri, "statistics.json").read_text())
    assert [version["version"] for version in shown] == [0, 1, 2]


def test_an_append_that_is_always_overtaken_gives_up(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*_: object, **__: object) -> None:
        raise CommitConflictError("another process was faster")

    monkeypatch.setattr("corpus.append.commit_version", overtaken)
    monkeypatch.setattr("corpus.versions.MAX_ATTEMPTS", 2)
    with pytest.raises(
        CommitConflictError,
        match="other processes committed 2 times in the meantime; start the append again",
    ):
        append(input_settings(tmp_path, shop(("D",), seed=5)), 0, corpus.uri, print)
