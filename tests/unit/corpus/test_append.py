"""Appends against an independent, slow reading of what a version adds; and on disk: what is written, refused, left alone and completed."""

import random
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cluster.errors import CommitConflictError, CorpusError, DataError
from corpus import append as appending
from corpus.append import append, append_text, preview, preview_text
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


def slowly(
    versions: Sequence[Mapping[str, Sequence[Row]]], data: DataSettings
) -> list[Counter[Sample]]:
    """What each version adds, by a loop over versions, users and positions."""
    split: dict[tuple[str, str, str, int], str] = {}
    had: set[tuple[str, str, str, int]] = set()
    world: dict[str, list[Row]] = {domain: [] for domain in DOMAINS}
    told = []
    for version in versions:
        adds: Counter[Sample] = Counter()
        world = {domain: [*world[domain], *version.get(domain, ())] for domain in DOMAINS}
        for user in sorted({row[0] for of in version.values() for row in of}):
            mixed = []
            for domain in DOMAINS:
                sequence = sorted((time, item) for u, item, time in world[domain] if u == user)
                fresh = {(item, time) for u, item, time in version.get(domain, ()) if u == user}
                for place, (time, item) in enumerate(sequence):
                    last = {len(sequence) - 1: "test", len(sequence) - 2: "validation"}
                    split.setdefault((user, domain, item, time), last.get(place, "train"))
                training = [(t, i) for t, i in sequence if split[user, domain, i, t] == "train"]
                source = f"{'downstream' if domain in data.held_out else 'domain'}/{domain}"
                for time, item in sequence:
                    if (item, time) not in fresh:
                        continue
                    of = split[user, domain, item, time]
                    before = [
                        i
                        for t, i in (training if of == "train" else sequence)
                        if (t, i) < (time, item)
                    ]
                    if len(before) >= data.min_history:
                        adds[
                            source, of, user, domain, tuple(before[-data.max_history :]), item, time
                        ] += 1
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
                if fits and (user, domain, item, time) not in had:
                    had.add((user, domain, item, time))
                    adds[
                        "mixed", "train", user, domain, tuple(i for *_, i in window), item, time
                    ] += 1
        told.append(adds)
    return told


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, list[Row]]]:
    """A world whose interactions come in up to three versions, in any order of time."""
    world = draw(worlds(DOMAINS, users=4, items=ITEMS, most=8))
    seed = random.Random(draw(st.integers(0, 10_000)))
    late = draw(st.booleans())  # whether a domain is new in the second version
    versions: list[dict[str, list[Row]]] = [{domain: [] for domain in DOMAINS} for _ in range(3)]
    for domain, rows in world.items():
        for row in rows:
            versions[seed.randrange(1 if late and domain == "B" else 0, 3)][domain].append(row)
    return versions


def in_turn(
    versions: Sequence[Mapping[str, Sequence[Row]]], data: DataSettings
) -> Iterable[Samples]:
    """Make the versions one after the other, each from what those before it kept and the users that it brings."""
    there = frame({domain: [] for domain in DOMAINS}, ITEMS)
    for number, version in enumerate(versions):
        new = mark_as_new(
            frame({domain: version.get(domain, []) for domain in DOMAINS}, ITEMS), number
        )
        found = pl.concat(
            [new, there.join(new.select("user_id").unique(), on="user_id", how="semi")]
        )
        made = build_samples(
            EncodedInteractions.from_frame(found.sample(fraction=1.0, shuffle=True, seed=number)),
            catalogue(DOMAINS, ITEMS),
            data,
            seed=3,
        )
        came = (
            pl.DataFrame(made.new_interactions)
            .drop("user_hash")
            .with_columns(version=pl.lit(number, pl.Int32))
        )
        there = pl.concat([there, came.select(there.columns)])
        yield made


@given(histories(), rules)
@hypothesis_settings(max_examples=60)
def test_each_version_adds_what_the_slow_reading_says(
    versions: list[dict[str, list[Row]]], data: DataSettings
) -> None:
    told = slowly(versions, data)
    first: set[str] = set()
    for made, wanted in zip(in_turn(versions, data), told, strict=True):
        seen: Counter[Sample] = Counter()
        for (source, split), table in made.tables.items():
            for row in table.to_pylist():
                history, target = (
                    tuple(map(name, row["history"])),
                    name(row["candidates"][row["target"]]),
                )
                seen[
                    source, split, row["user_id"], row["domain"], history, target, row["timestamp"]
                ] += 1
        assert seen == wanted
        users = {sample[2] for sample in wanted if sample[0] == "mixed"}
        assert made.mixed_users == len(users - first)
        first |= users


@given(histories(), rules)
@hypothesis_settings(max_examples=40)
def test_no_id_comes_twice_in_any_version(
    versions: list[dict[str, list[Row]]], data: DataSettings
) -> None:
    tables = [table for made in in_turn(versions, data) for table in made.tables.values()]
    ids = np.concatenate([table["sample_id"].to_numpy() for table in tables])
    assert np.unique(ids).size == ids.size


@given(histories(), rules)
@hypothesis_settings(max_examples=40)
def test_what_is_held_out_once_is_in_no_training_sample_of_any_version(
    versions: list[dict[str, list[Row]]], data: DataSettings
) -> None:
    out: set[tuple[str, str, int]] = set()
    trained: list[tuple[str, list[str], str, int]] = []
    for made in in_turn(versions, data):
        out |= {
            (r["user_id"], r["item_id"], r["timestamp"])
            for r in made.new_interactions.to_pylist()
            if r["split"] > 0
        }
        for (source, split), table in made.tables.items():
            if split == "train" and not source.startswith("downstream/"):
                trained += [
                    (r["user_id"], [], name(r["candidates"][r["target"]]), r["timestamp"])
                    for r in table.to_pylist()
                ]
    assert not {(user, target, time) for user, _, target, time in trained} & out


# On disk.


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


def more(tmp_path: Path, world: Mapping[str, Sequence[Row]], **changes: object) -> DataSettings:
    values: dict[str, object] = {"domains": tuple(world), "held_out": ()}
    return settings(write_root(tmp_path / "more", world), **values | changes)


def rows_of(corpus: Corpus, version: int) -> dict[tuple[str, str], list[dict[str, object]]]:
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
    grown = append(more(tmp_path, shop(("D",), seed=5)), 0, corpus.uri, said.append)
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
        assert all(titles[c].startswith("Item D") for c in row["candidates"])  # type: ignore[attr-defined]
    found = grown.statistics()
    assert found["version"] == 1
    assert found["domains"]["D"]["interactions"] == 320
    assert found["domains"]["A"] == corpus.statistics()["domains"]["A"]
    assert found["mixed"]["samples"] == sum(s.rows for s in grown.streams() if s.source == "mixed")
    assert found["mixed"]["users"] == 40


def test_a_held_out_domain_adds_no_mixed_sample(corpus: Corpus, tmp_path: Path) -> None:
    data = more(tmp_path, shop(("D",), seed=5), domains=(), held_out=("D",))
    grown = append(data, 0, corpus.uri, print, held_out=True)
    assert [(s.source, s.version) for s in grown.streams() if s.version == 1] == [
        ("downstream/D", 1)
    ]
    assert grown.statistics()["mixed"] == corpus.statistics()["mixed"]
    assert grown.statistics()["domains"]["D"]["held_out"]


def test_newer_rows_of_an_old_domain(corpus: Corpus, tmp_path: Path) -> None:
    """Old users go on; their old test interaction stays held out, and two new ones are."""
    world = {
        "A": [("u000", f"A{item:02d}", 2_000 + item) for item in range(6)],
        "B": [("u001", "B03", 2_000)],
    }
    free = [
        row
        for row in world["A"]
        if (row[0], row[1]) not in {(u, i) for u, i, _ in shop(("A", "B", "C"))["A"]}
    ]
    world["A"] = [*free, ("u000", "A00", 3_000), ("u000", "A01", 3_001), ("u000", "A02", 3_002)]
    grown = append(more(tmp_path, world), 0, corpus.uri, print)
    rows = (
        all_kept(grown)
        .filter(pl.col("user_id") == "u000", pl.col("domain") == "A")
        .sort("timestamp", "item_id")
    )
    assert rows["split"].to_list() == [0] * 6 + [1, 2] + [0] * (rows.height - 10) + [1, 2]
    out = set(rows.filter(pl.col("version") == 0, pl.col("split") > 0)["item_index"]) - set(
        rows.filter(pl.col("split") == 0)["item_index"]
    )
    for row in rows_of(grown, 1)["domain/A", "train"]:
        assert not out & set(row["history"])  # type: ignore[call-overload]
    assert (
        len(rows_of(grown, 1)["domain/A", "test"])
        == len(rows_of(grown, 1)["domain/B", "test"])
        == 1
    )
    assert grown.statistics()["domains"]["A"]["users"] == 40
    assert grown.statistics()["domains"]["A"]["interactions"] == 320 + len(world["A"])


def test_the_same_append_again_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    data = more(tmp_path, shop(("D",), seed=5))
    append(data, 0, corpus.uri, print)
    log = sorted(Path(corpus.uri, "samples/_delta_log").iterdir())
    Path(corpus.uri, "statistics.json").unlink()
    said: list[str] = []
    again = append(data, 0, corpus.uri, said.append)
    assert again.version == 1
    assert "in the corpus already, since version 1" in said[-1]
    assert sorted(Path(corpus.uri, "samples/_delta_log").iterdir()) == log
    assert Path(corpus.uri, "statistics.json").exists()


def test_a_preview_says_what_would_come_in_and_writes_nothing(
    corpus: Corpus, tmp_path: Path
) -> None:
    data = more(tmp_path, shop(("D",), seed=5))
    before = {path: path.stat().st_mtime_ns for path in Path(corpus.uri).rglob("*")}
    said: list[str] = []
    preview(data, 0, corpus.uri, said.append)
    assert {path: path.stat().st_mtime_ns for path in Path(corpus.uri).rglob("*")} == before
    assert said[-1] == f"would make version 1 of {corpus.uri}: 320 new interactions; dropped: none"
    assert Corpus.open(corpus.uri).version == 0
    with pytest.raises(DataError, match="in this corpus as pre-training data"):
        preview(
            more(tmp_path / "held", {"A": shop(DOMAINS)["A"]}, domains=(), held_out=("A",)),
            0,
            corpus.uri,
            print,
            held_out=True,
        )
    append(data, 0, corpus.uri, print)
    preview(data, 0, corpus.uri, said.append)
    assert said[-1] == "these behaviours are in the corpus already, since version 1; nothing to do"
    (tmp_path / "prose.txt").write_text("word " * 400)
    preview_text(str(tmp_path / "prose.txt"), corpus.uri, said.append)
    assert said[-1] == f"would make version 2 of {corpus.uri}: 4 windows of text/prose"
    append_text(str(tmp_path / "prose.txt"), corpus.uri, print)
    preview_text(str(tmp_path / "prose.txt"), corpus.uri, said.append)
    assert said[-1] == "this text is in the corpus already, since version 2; nothing to do"
    preview(more(tmp_path / "same", {"A": shop(DOMAINS)["A"]}), 0, corpus.uri, said.append)
    assert (
        said[-1]
        == "the corpus has all usable interactions of A already; version 2 stays the newest"
    )


def test_rows_that_are_there_already_are_left_out(corpus: Corpus, tmp_path: Path) -> None:
    said: list[str] = []
    same = append(more(tmp_path, {"A": shop(DOMAINS)["A"]}), 0, corpus.uri, said.append)
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
    found = all_kept(grown)
    assert sorted(found.select("user_id", "item_id", "timestamp").rows()) == sorted(core)
    told = grown.statistics()["domains"]["A"]
    assert (told["users"], told["items"], told["interactions"]) == (
        len({u for u, *_ in core}),
        len({i for _, i, _ in core}),
        len(core),
    )


def test_items_of_an_append_have_titles_distinct_from_those_there(
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
        ({"domains": ("C",)}, r"C: in this corpus as held-out data, which cannot change; append with --held-out"),
        ({"k_core": 3, "num_candidates": 6}, r"data\.num_candidates 5 \(asked for: 6\)"),
        ({"users_together": True}, r"data\.users_together not set \(asked for: True\)"),
    ],
)
def test_what_cannot_be_appended_is_said(
    corpus: Corpus, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises((CorpusError, DataError), match=message):
        append(more(tmp_path, shop(("C", "D"), seed=5), **changes), 0, corpus.uri, print)
    assert Corpus.open(corpus.uri).version == 0


def test_a_domain_of_too_few_rows_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"D: the 3-core of 2 interactions is empty; the largest data\.k_core that leaves data is 1",
    ):
        append(
            more(tmp_path, {"D": [("u000", "D00", 1), ("u001", "D01", 2)]}), 0, corpus.uri, print
        )


@pytest.mark.parametrize("others", [(), ("D",)])
def test_a_new_domain_without_usable_rows_is_refused(
    corpus: Corpus, tmp_path: Path, others: tuple[str, ...]
) -> None:
    world: dict[str, list[Row]] = {"E": [("u000", "E00", -1)], **shop(others, seed=5)}
    with pytest.raises(
        DataError,
        match=r"E: the 3-core of 0 interactions is empty; it holds no interaction that can be used$",
    ):
        append(more(tmp_path, world, max_quarantined=1.0), 0, corpus.uri, print)
    assert Corpus.open(corpus.uri).version == 0


def test_no_corpus_to_append_to(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no corpus here"):
        append(more(tmp_path, shop(("D",))), 0, str(tmp_path / "none"), print)


class Killed(BaseException):
    pass


def test_an_append_killed_before_its_commit_shows_nothing_and_is_completed(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = more(tmp_path, shop(("D",), seed=5))
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


def test_one_that_is_overtaken_builds_on_the_other(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other lands while the samples of this one are being made."""
    said: list[str] = []
    other = more(tmp_path / "other", shop(("E",), seed=6))

    def slow(*arguments: object) -> object:
        made = write_sample_files(*arguments)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr("corpus.local.append.write_sample_files", write_sample_files)
            append(other, 0, corpus.uri, print)
        monkeypatch.setattr("corpus.local.append.write_sample_files", write_sample_files)
        return made

    monkeypatch.setattr("corpus.local.append.write_sample_files", slow)
    grown = append(more(tmp_path, shop(("D",), seed=5)), 0, corpus.uri, said.append)
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


def test_one_that_is_always_overtaken_is_told_to_try_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*_: object, **__: object) -> None:
        raise CommitConflictError("another process was faster")

    monkeypatch.setattr("corpus.build.commit_version", overtaken)
    monkeypatch.setattr(appending, "MAX_ATTEMPTS", 2)
    with pytest.raises(
        CommitConflictError,
        match="other processes committed 2 times in the meantime; start the append again",
    ):
        append(more(tmp_path, shop(("D",), seed=5)), 0, corpus.uri, print)
