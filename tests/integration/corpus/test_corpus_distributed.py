"""Builds and appends on Ray against the same ones in one process."""

import gzip
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cluster.errors import DataError
from cluster.ray_session import ray_session
from corpus.append import append, preview
from corpus.append_text import append_text
from corpus.build import build, choose_backend
from corpus.distributed import append as ray_append
from corpus.distributed import kcore, prepare, reading, sample_files, user_ranges
from corpus.ingest import quarantine
from corpus.ingest.sources import file_splits
from corpus.local import append as local_append
from corpus.settings import DataSettings
from corpus.store import catalogue, stored_interactions
from corpus.store.statistics import VersionStatistics
from corpus.store.tables import Corpus
from tests.unit.corpus.worlds import Row, settings, shop, write_parquet, write_root

# Ray Data copies its own deprecated settings whenever it makes a dataset.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

LOCALLY = {"distribute_above": 10**12}
ON_RAY = {"distribute_above": 0}


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with ray_session("local", 2):
        yield


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes many ranges, splits, partitioning tasks and sums, of few rows each."""
    monkeypatch.setattr(stored_interactions, "TARGET_FILE_ROWS", 400)
    monkeypatch.setattr(file_splits, "ROWS_PER_SPLIT", 250)
    monkeypatch.setattr(user_ranges, "ROWS_PER_RESULT", 100)
    monkeypatch.setattr(kcore, "COUNTS_PER_TASK", 10)


@pytest.fixture
def rough(tmp_path: Path) -> Path:
    """Writes a data root of three domains with different users, in several files and row groups.

    Users and items have long tails; some rows are repeated, some unusable.
    """
    root, rng = tmp_path / "root", np.random.default_rng(7)
    for number, domain in enumerate(("A", "B", "C")):
        size, items = 900 + 200 * number, 60
        user = 30 * number + (120 * rng.random(size) ** 2).astype(int)
        item = (items * rng.random(size) ** 2.5).astype(int)
        rows = pl.DataFrame(
            {"user_id": user, "item_id": item, "timestamp": rng.integers(0, 300, size)}
        )
        rows = rows.with_columns(
            user_id=pl.format("u{}", "user_id"), item_id=pl.format(domain + "{}", "item_id")
        )
        chain = [
            (f"v{step}", f"{domain}9{step + side:02d}", 5)
            for step in range(16)
            for side in range(3)
        ]  # k-core removes it from its ends, round by round
        unusable = [
            (None, f"{domain}1", 3),
            ("", f"{domain}1", 3),
            ("u1", None, 3),
            ("u1", f"{domain}1", None),
            ("u1", f"{domain}1", -4),
            ("u1", "?", 3),
        ]
        more = pl.DataFrame([*chain, *unusable], schema=rows.schema, orient="row")
        every = pl.concat([rows, more, rows.sample(40, seed=number)]).sample(
            fraction=1, shuffle=True, seed=number
        )
        folder = root / "interactions" / f"{domain}.parquet"
        folder.mkdir(parents=True)
        for part, start in enumerate(range(0, every.height, 400)):
            every.slice(start, 400).write_parquet(
                folder / f"part-{part}.parquet", row_group_size=70
            )
        names = [*(f"{domain}{i}" for i in range(items)), *(f"{domain}9{i:02d}" for i in range(18))]
        write_parquet(
            root / "items" / f"{domain}.parquet",
            {
                "item_id": names,
                "title": [
                    f"Item {{{i}}}" if i % 50 == 7 else f"Item {i % 50}" for i in range(len(names))
                ],
            },
        )
    return root


def files(corpus: Corpus) -> dict[str, bytes]:
    """Returns all files of a corpus except the logs, which record the time."""
    root = Path(corpus.uri)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "_delta_log" not in path.parts
    }


def build_both(data: DataSettings, folder: Path) -> tuple[Corpus, Corpus]:
    """Builds a corpus in one process and on Ray."""
    local, on_ray = (
        build(data.model_copy(update=limit), 0, str(folder / name), print)
        for name, limit in (("local", LOCALLY), ("on_ray", ON_RAY))
    )
    return local, on_ray


def assert_same(local: Corpus, on_ray: Corpus) -> None:
    """Checks that two corpora have the same commits and files."""
    for local_commit, ray_commit in zip(local.commits, on_ray.commits, strict=True):
        assert local_commit.metadata == ray_commit.metadata
    assert files(local) == files(on_ray)


def test_both_backends_write_the_same_files(tmp_path: Path, rough: Path) -> None:
    local, on_ray = build_both(settings(rough, max_per_user=25), tmp_path)
    assert_same(local, on_ray)
    shown = local.statistics()
    reasons = {
        "no_user_id",
        "no_item_id",
        "no_timestamp",
        "timestamp_before_1970",
        "item_without_title",
        "duplicate_interaction",
        "over_user_cap",
        "k_core",
    }
    assert reasons | {"title_made_distinct"} <= set(shown["dropped"])
    assert shown["domains"]["C"]["held_out"]
    assert shown["prompt_injections"] == {
        domain: {"titles": 2, "brace": 2} for domain in ("A", "B", "C")
    }
    assert shown["mixed"]["samples"] > 0
    assert len(local.commits[0].metadata["interactions"]) == 8


@pytest.mark.parametrize("k", [1, 4])
def test_other_cores_are_the_same_on_both_backends(tmp_path: Path, rough: Path, k: int) -> None:
    assert_same(*build_both(settings(rough, k_core=k), tmp_path))


def test_both_backends_read_text_and_ratings_alike(tmp_path: Path, rough: Path) -> None:
    for domain in ("A", "B", "C"):
        folder = rough / "interactions" / f"{domain}.parquet"
        rows = (
            pl.read_parquet(folder)
            .with_row_index()
            .with_columns(rating=pl.col("index") % 10 // 2.0)
            .drop("index")
        )
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        rows.write_csv(rough / "interactions" / f"{domain}.csv")
    local, on_ray = build_both(
        settings(rough, min_rating=1, k_core=2, prompt_injection="drop"), tmp_path
    )
    assert_same(local, on_ray)
    shown = local.statistics()
    assert {"title_with_injection", "item_with_injection"} <= set(shown["dropped"])
    assert shown["prompt_injections"] == {}


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_both_backends_read_lines_in_many_splits_and_blocks_alike(
    tmp_path: Path, rough: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Some lines cannot be read; the reports about them are the same too."""
    root = tmp_path / "lines"
    root.mkdir()
    for domain in ("A", "B", "C"):
        for kind, name in (("interactions", domain), ("items", f"meta_{domain}")):
            rows = pl.read_parquet(rough / kind / f"{domain}.parquet").rename(
                {"item_id": "parent_asin"}
            )
            lines = rows.write_ndjson().splitlines(keepends=True)
            lines[7:7] = ["{cut\n", "\n", "[1]\n"]
            content = "".join(lines).encode()
            (root / f"{name}{suffix}").write_bytes(
                gzip.compress(content) if suffix.endswith(".gz") else content
            )
    monkeypatch.setattr(file_splits, "BYTES_PER_SPLIT", 7_000)
    local, on_ray = build_both(settings(root, format="amazon2023", time_unit="s"), tmp_path)
    assert_same(local, on_ray)
    assert local.statistics()["dropped"]["malformed_line"] == 12
    entries = quarantine.read(local.uri, local.commits[0].metadata["quarantine"])
    assert len(entries or ()) > 12


def write_as_other_tools(root: Path, world: Mapping[str, pl.DataFrame], form: str) -> Path:
    """Writes domains as other tools do, with times of today and a few words for missing values.

    Args:
        root: Folder of the data root.
        world: Interactions of each domain.
        form: The tool.
    """
    for domain, rows in world.items():
        known = rows.with_columns(timestamp=pl.col("timestamp") + 1_500_000_000)
        folder = root / "interactions" / f"{domain}.csv"
        names = rows["item_id"].drop_nulls().unique().sort().to_list()
        (root / "items").mkdir(parents=True, exist_ok=True)
        if form == "spark":
            (folder / "year=2017").mkdir(parents=True)
            iso = known.with_columns(
                timestamp=pl.from_epoch("timestamp", "s").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
            ).with_columns(user_id=pl.col("user_id").fill_null("\\N"))
            iso[: rows.height // 2].write_csv(folder / "part-0.csv")
            (folder / "part-1.csv").touch()
            iso[rows.height // 2 :].write_csv(folder / "year=2017" / "part-0.csv")
            titles = "".join(f'{name},"Item \\"{name}\\", new"\n' for name in names)
            (root / "items" / f"{domain}.csv").write_text(f"item_id,title\n{titles}x,nan\n")
        else:
            zeros = known.with_columns(
                timestamp=pl.when(pl.int_range(pl.len()) % 50 == 7).then(0).otherwise("timestamp")
            )
            header = "user_id:token,item_id:token,timestamp:float"
            table = zeros.with_columns(pl.col("timestamp").cast(pl.Float64))
            folder.parent.mkdir(parents=True)
            folder.with_suffix(".inter.gz").write_bytes(
                gzip.compress(
                    (header.replace(",", "\t") + "\n").encode()
                    + table.write_csv(separator="\t", include_header=False).encode()
                )
            )
            lines = [{"item_id": name, "title": [f"Item {name}"]} for name in names]
            (root / "items" / f"{domain}.jsonl").write_text(
                "".join(f"{json.dumps(line)}\n" for line in lines)
                + '{"item_id": "x", "title": {"raw": "Item x"}}\n'
            )
    return root


@pytest.mark.parametrize("form", ["spark", "recbole"])
def test_files_of_other_tools_are_the_same_on_both_backends(
    tmp_path: Path, rough: Path, form: str
) -> None:
    world = {
        domain: pl.read_parquet(rough / "interactions" / f"{domain}.parquet")
        for domain in ("A", "B")
    }
    roots = [write_as_other_tools(tmp_path / name, {name: world[name]}, form) for name in world]
    local, on_ray = build_both(settings(roots[0], domains=("A",), held_out=()), tmp_path)
    assert_same(local, on_ray)
    dropped = local.statistics()["dropped"]
    assert dropped["title_is_no_text"] == 1
    assert dropped["timestamp_is_zero" if form == "recbole" else "no_user_id"] > 0
    assert append_both(roots[1], local, on_ray, domains=("B",))["domains"]["B"]["interactions"]


def append_both(root: Path, local: Corpus, on_ray: Corpus, **changes: object) -> VersionStatistics:
    """Previews an append and appends, in one process and on Ray, to two corpora that are the same.

    Checks that they are the same afterwards, and returns their statistics.
    """
    said: list[list[str]] = [[], []]
    grown = []
    for corpus, limit, lines in zip((local, on_ray), (LOCALLY, ON_RAY), said, strict=True):
        data = settings(root, **({"held_out": ()} | changes), **limit)
        preview(data, 0, corpus.uri, lines.append, held_out=bool(data.held_out))
        grown.append(append(data, 0, corpus.uri, lines.append, held_out=bool(data.held_out)))
    assert [line for line in said[1] if "building on Ray" not in line] == [
        line.replace(local.uri, on_ray.uri) for line in said[0]
    ]
    assert len(said[1]) == len(said[0]) + 2
    assert_same(*grown)
    return grown[0].statistics()


def test_an_append_is_the_same_on_both_backends(tmp_path: Path, rough: Path) -> None:
    """Appends a new domain, and an old log with newer rows.

    The newer rows are of old and new users. Some of their items have a title in the corpus only.
    """
    local, on_ray = build_both(settings(rough), tmp_path)
    more = write_root(tmp_path / "more", shop(("D", "E"), users=60, seed=3))
    rng = np.random.default_rng(8)
    log = pl.read_parquet(rough / "interactions" / "B.parquet")
    newer = log.sample(300, seed=1).with_columns(
        timestamp=pl.lit(1_000) + pl.Series(rng.integers(0, 90, 300))
    )
    others = log.sample(500, seed=2).with_columns(
        user_id="n" + pl.col("user_id"), item_id=pl.col("item_id").str.replace("B2", "Bn")
    )
    single = pl.DataFrame(
        {"user_id": ["s1", "s2"], "item_id": ["B1", "Bs"], "timestamp": [5, 5]}, schema=log.schema
    )
    pl.concat([log, newer, others, single]).write_parquet(
        more / "interactions" / "B.parquet", row_group_size=70
    )
    # Of the other items, most have a title in the corpus.
    names = [*(f"Bn{i}" for i in range(10)), "Bn", "Bs", *(f"B{i}" for i in range(7))]
    write_parquet(
        more / "items" / "B.parquet",
        {
            "item_id": names,
            "title": [f"Item {i}" if i else "Item {0}" for i in range(len(names))],
        },
    )

    before = local.statistics()["domains"]
    shown = append_both(more, local, on_ray, domains=("D", "B"))
    assert shown["prompt_injections"] == {"B": {"titles": 1, "brace": 1}}
    assert set(shown["domains"]) == {"A", "B", "C", "D"}
    assert shown["domains"]["B"]["users"] > before["B"]["users"]
    assert {
        "already_in_corpus",
        "item_without_title",
        "k_core",
        "duplicate_interaction",
        "title_made_distinct",
        "no_user_id",
    } <= set(shown["dropped"])
    assert shown["mixed"]["samples"] > local.statistics()["mixed"]["samples"]

    assert append_both(more, local, on_ray, domains=(), held_out=("E",))["domains"]["E"]["held_out"]
    newest = pl.concat([log.head(200), newer.head(100)]).with_columns(
        timestamp=pl.col("timestamp") + 2_000
    )
    newest.write_parquet(more / "interactions" / "B.parquet", row_group_size=30)
    assert append_both(more, local, on_ray, domains=("B",), k_core=3)["version"] == 3
    # The same append again has nothing to do.
    assert append_both(more, local, on_ray, domains=("B",), k_core=3)["version"] == 3
    newest.head(50).write_parquet(more / "interactions" / "B.parquet")
    assert append_both(more, local, on_ray, domains=("B",))["version"] == 3  # no row is new
    newest.head(50).with_columns(timestamp=9_000).write_parquet(more / "interactions" / "B.parquet")
    assert append_both(more, local, on_ray, domains=("B",))["version"] == 4
    commits = Corpus.open(on_ray.uri).commits
    # The one file of the last version gets the interactions of several blocks.
    assert [len(commit.metadata["interactions"]) for commit in commits] == [16, 4, 2, 1, 1]


def test_an_append_on_ray_that_is_overtaken_starts_again(
    tmp_path: Path, rough: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text is committed after the append has been compared with the version before it."""
    local, on_ray = build_both(settings(rough), tmp_path)
    more = write_root(tmp_path / "more", shop(("D",), users=60, seed=3))
    prose = tmp_path / "prose.txt"
    add_items = catalogue.add_items
    said: list[str] = []
    prose.write_text("word " * 400)
    append_text(str(prose), local.uri, print)

    def slow(*arguments: Any) -> Any:
        if Corpus.open(on_ray.uri).version == 0:
            append_text(str(prose), on_ray.uri, print)
        return add_items(*arguments)

    grown = append(settings(more, domains=("D",), held_out=(), **LOCALLY), 0, local.uri, print)
    monkeypatch.setattr(catalogue, "add_items", slow)
    assert_same(
        grown,
        append(settings(more, domains=("D",), held_out=(), **ON_RAY), 0, on_ray.uri, said.append),
    )
    assert any("the append starts again" in line for line in said)


def test_few_interactions_whose_users_have_many_are_appended_on_ray(
    tmp_path: Path, rough: Path
) -> None:
    local = build(settings(rough, **LOCALLY), 0, str(tmp_path / "one"), print)
    rows: list[Row] = [
        (f"u{user}", f"D{item}", item) for user in range(40) for item in range(user % 3, 10, 2)
    ]
    more = write_root(tmp_path / "more", {"D": rows})
    num_new, grown, used_ray = len(rows), [], []
    num_existing = stored_interactions.count_user_interactions(
        local, pl.Series([f"u{user}" for user in range(40)])
    )
    assert num_existing > 2 * num_new
    for above in (num_new + num_existing, num_new + num_existing - 1):
        shutil.copytree(local.uri, tmp_path / str(above))
        said: list[str] = []
        grown.append(
            append(
                settings(more, domains=("D",), held_out=(), distribute_above=above),
                0,
                str(tmp_path / str(above)),
                said.append,
            )
        )
        used_ray.append(any("building on Ray" in line for line in said))
    assert used_ray == [False, True]
    assert_same(*grown)


def test_both_backends_refuse_an_append_alike(tmp_path: Path, rough: Path) -> None:
    local, on_ray = build_both(settings(rough), tmp_path)
    more = write_root(
        tmp_path / "more",
        {
            "D": [("u1", "D1", 1), ("u2", "D2", 1), ("u2", "D1", 2)],
            **shop(("E",), users=10, items=11),
        },
    )
    part = more / "interactions" / "E.parquet"

    def refused(**changes: object) -> str:
        messages = []
        for corpus, limit in ((local, LOCALLY), (on_ray, ON_RAY)):
            before = files(corpus)
            with pytest.raises(DataError) as caught:
                append(settings(more, **({"held_out": ()} | limit | changes)), 0, corpus.uri, print)
            assert {
                name
                for name in files(corpus).keys() - before.keys()
                if not name.startswith("items/")
            } == set()
            assert Corpus.open(corpus.uri).version == 0
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
        return messages[0]

    assert (
        "the 3-core of 3 interactions is empty; the largest data.k_core that leaves data is 1, "
        "and a corpus keeps" in refused(domains=("D",))
    )
    assert "in this corpus as held-out data" in refused(domains=("C", "E"))
    assert "3 are left, 4 negatives are wanted" in refused(domains=("E",))
    pl.read_parquet(part).with_columns(item_id=pl.lit("?")).write_parquet(part)
    assert "\n  item_without_title 80 in " in refused(domains=("E",))
    part.write_bytes(b"")
    assert "empty (0 bytes)" in refused(domains=("E",))
    write_root(tmp_path / "more", {"F": [("u0", "F0", -1)]})
    assert "it holds no interaction that can be used" in refused(
        domains=("F",), max_quarantined=1.0
    )


def test_a_worker_that_is_killed_costs_time_only(
    tmp_path: Path, rough: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process of a task dies once in each step, of a build and of an append."""
    more = write_root(tmp_path / "more", shop(("D",), users=60, seed=3))
    local = build(settings(rough, **LOCALLY), 0, str(tmp_path / "one"), print)
    append(settings(more, domains=("D",), held_out=(), **LOCALLY), 0, local.uri, print)
    marks = tmp_path / "marks"
    marks.mkdir()

    def once(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def task(*arguments: Any) -> Any:
            if not (marks / name).exists():
                (marks / name).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return task

    def once_between(
        name: str, function: Callable[..., Iterator[Any]]
    ) -> Callable[..., Iterator[Any]]:
        """Dies after it has reported on a block, before it yields the block's rows."""

        def task(*arguments: Any) -> Iterator[Any]:
            for result in function(*arguments):
                yield result
                if not (marks / name).exists():
                    (marks / name).touch()
                    os.kill(os.getpid(), signal.SIGKILL)

        return task

    monkeypatch.setattr(
        reading, "_read_file_split", once_between("split", reading._read_file_split)
    )
    block_processor, file_writer = sample_files._block_processor, sample_files._file_writer
    for module, name in (
        (user_ranges, "_deduplicate_and_cap"),
        (kcore, "_run_round"),
        (prepare, "_build_block"),
        (ray_append, "_read_existing"),
        (local_append, "find_new_interactions"),
    ):
        monkeypatch.setattr(module, name, once(f"{module.__name__}.{name}", getattr(module, name)))
    monkeypatch.setattr(
        sample_files,
        "_block_processor",
        lambda *arguments: once("samples", block_processor(*arguments)),
    )
    monkeypatch.setattr(
        sample_files, "_file_writer", lambda *arguments: once("files", file_writer(*arguments))
    )
    on_ray = build(settings(rough, **ON_RAY), 0, str(tmp_path / "many"), print)
    append(settings(more, domains=("D",), held_out=(), **ON_RAY), 0, on_ray.uri, print)
    assert len(list(marks.iterdir())) == 8
    assert_same(Corpus.open(local.uri), Corpus.open(on_ray.uri))


def test_both_backends_refuse_a_build_alike(tmp_path: Path, rough: Path) -> None:
    part = rough / "interactions" / "B.parquet" / "part-1.parquet"
    whole, rows = part.read_bytes(), pl.read_parquet(part)
    numbers = rows.with_columns(item_id=pl.int_range(rows.height))

    def refused(**changes: object) -> str:
        messages = []
        for limit in (LOCALLY, ON_RAY):
            data = settings(rough, **limit, **changes)
            with pytest.raises(DataError) as caught, choose_backend(data, print) as backend:
                backend.prepare(data, print)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
        return messages[0]

    assert "the largest data.k_core that leaves data is" in refused(k_core=90)
    assert "cannot be used" in refused(max_quarantined=0.0)
    assert "negatives are wanted" in refused(num_candidates=50)
    for damaged, message in ((b"", "empty (0 bytes)"), (whole[:-50], "not a whole parquet file")):
        part.write_bytes(damaged)
        assert message in refused()
        assert str(part) in refused()
    rows.drop("timestamp").write_parquet(part)
    assert "no column timestamp" in refused()
    numbers.write_parquet(part)
    assert "give all files of a domain one type" in refused()


def test_the_backend_is_chosen_by_footers_and_sizes(rough: Path) -> None:
    rows = sum(
        pl.scan_parquet(rough / "interactions" / f"{domain}.parquet")
        .select(pl.len())
        .collect()
        .item()
        for domain in ("A", "B", "C")
    )
    for above, on_ray in ((rows, False), (rows - 1, True)):
        with choose_backend(settings(rough, distribute_above=above), print) as backend:
            assert (backend.prepare is prepare.prepare_domains) == on_ray
