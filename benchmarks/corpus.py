"""A corpus of simulated interactions: time and peak memory of the build against the same output by plain polars and plain pandas.

    python benchmarks/corpus.py [INTERACTIONS ...] [--peers polars,pandas] [--rounds 1]
    python benchmarks/corpus.py --append [300000 3000000] [--rounds 1]
    python benchmarks/corpus.py --on-ray [3000000]
    python benchmarks/corpus.py --inspect [3000000 10000000]

Every build is a process of its own, ours and the peers' in turn. A peer does what one would write down first: k-core,
leave-one-out, histories as lists (domain by domain and mixed, without the two rules for mixed histories, so it keeps more), 19 negatives, one parquet
file per source. It has no versions, checks nothing, and draws candidates from a generator.
Prints `name ours peer ratio` in seconds, CPU seconds and MiB (ratio: peer / ours), and how ours grows from one size to the next.

With --append: a domain of 100,000 interactions of 8,000 users, those of the corpus or new ones, appended to corpora of these sizes: seconds of the
append alone, and how they grow with the corpus.

With --on-ray: the build on Ray against the build in one process, then the append of one more domain to each (as large as those there, of the same
users): seconds, peak MiB of the driver and of the largest worker (memory that is its own, looked at twenty times a second), and whether both wrote
the same files.

With --inspect: seconds and peak MiB of reading a corpus that is there: leakage and shape.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

import numpy as np
import pandas as pd
import polars as pl
import psutil

from corpus.append import append
from corpus.build import build
from corpus.inspect.inspection import inspect_corpus
from corpus.inspect.leakage import LEAK_CHECKS
from corpus.settings import DataSettings
from corpus.store.tables import Corpus

DOMAINS = ("A", "B", "C")
K, LOW, HIGH, COUNT = 3, 3, 10, 20
UNITS = ("seconds", "cpu_seconds", "MiB")


def simulate(root: Path, rows: int) -> None:
    """Interactions of rows / 12 users over three domains."""
    for seed, domain in enumerate(DOMAINS):
        _domain(
            root, domain, rows // len(DOMAINS), np.arange(rows // 12), max(rows // 150, 200), seed
        )


def _domain(root: Path, domain: str, rows: int, users: np.ndarray, items: int, seed: int) -> None:
    """One domain's files: users alike, items by a power law, times in whole days."""
    rng = np.random.default_rng(seed)
    for folder in ("interactions", "items"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    item = (items * rng.random(rows) ** 2).astype(np.int64)
    day = 1_300_000_000 // 86400 + rng.integers(0, 2000, rows)
    frame = pl.DataFrame(
        {"user_id": rng.choice(users, rows), "item_id": item, "timestamp": day * 86400}
    )
    frame = frame.with_columns(
        pl.format("u{}", "user_id").alias("user_id"),
        pl.format(domain + "{}", "item_id").alias("item_id"),
    )
    frame.write_parquet(root / "interactions" / f"{domain}.parquet")
    ids = pl.Series("item_id", [f"{domain}{i}" for i in range(items)])
    pl.DataFrame({"item_id": ids, "title": "Item " + ids}).write_parquet(
        root / "items" / f"{domain}.parquet"
    )


def ours(root: Path, out: Path, above: int = 10**12) -> int:
    corpus = build(
        DataSettings(root=str(root), domains=DOMAINS, distribute_above=above),
        0,
        str(out),
        lambda line: None,
    )
    return sum(
        stream.rows for split in ("train", "validation", "test") for stream in corpus.streams(split)
    )


def more(root: Path, out: Path, above: int = 10**12) -> int:
    """Samples of the domain D, appended to a corpus."""
    corpus = append(
        DataSettings(root=str(root), domains=("D",), distribute_above=above),
        0,
        str(out),
        lambda line: None,
    )
    return sum(
        stream.rows
        for split in ("train", "validation", "test")
        for stream in corpus.streams(split)
        if stream.version == 1
    )


def negatives(
    target: np.ndarray, user: np.ndarray, item: np.ndarray, of: np.ndarray, items: int
) -> np.ndarray:
    """Candidates [n, COUNT], redrawn where the user has the item or one comes twice. user, item: all interactions; of: each target's user."""
    rng = np.random.default_rng(0)
    had = np.unique(user.astype(np.int64) * items + item)
    drawn = rng.integers(0, items, (target.size, COUNT))
    drawn[:, 0] = target
    todo = np.arange(target.size)
    while todo.size:
        part = drawn[todo]
        ordered = np.argsort(part, axis=1, kind="stable")
        values = np.take_along_axis(part, ordered, 1)
        twice = np.zeros_like(part, bool)
        np.put_along_axis(twice, ordered[:, 1:], values[:, 1:] == values[:, :-1], 1)
        key = of[todo].astype(np.int64)[:, None] * items + part
        bad = twice | (had[np.minimum(np.searchsorted(had, key), had.size - 1)] == key)
        bad[:, 0] = False
        part[bad] = rng.integers(0, items, int(bad.sum()))
        drawn[todo] = part
        todo = todo[bad.any(axis=1)]
    return rng.permuted(drawn, axis=1)


def polars(root: Path, out: Path) -> int:
    out.mkdir()
    found, total, first = [], 0, 0
    for domain in DOMAINS:
        rows = pl.read_parquet(root / "interactions" / f"{domain}.parquet").unique()
        while True:
            kept = rows.filter(pl.len().over("user_id") >= K).filter(pl.len().over("item_id") >= K)
            if kept.height == rows.height:
                break
            rows = kept
        ids = rows["item_id"].unique().sort()
        rows = rows.join(
            pl.DataFrame({"item_id": ids, "item": np.arange(ids.len()) + first}), on="item_id"
        ).sort("user_id", "timestamp", "item_id")
        rows = rows.with_columns(
            domain=pl.lit(domain),
            place=pl.int_range(pl.len()).over("user_id"),
            size=pl.len().over("user_id"),
        )
        found.append(rows)
        total += _polars_samples(rows, rows, first, ids.len(), out / f"{domain}.parquet")
        first += ids.len()
    mixed = (
        pl.concat(found)
        .filter(pl.col("place") < pl.col("size").cast(pl.Int64) - 2)
        .sort("user_id", "timestamp", "domain", "item_id")
    )
    mixed = mixed.with_columns(place=pl.int_range(pl.len()).over("user_id"))
    return total + _polars_samples(mixed, pl.concat(found), 0, first, out / "mixed.parquet")


def _polars_samples(
    rows: pl.DataFrame, every: pl.DataFrame, first: int, items: int, file: Path
) -> int:
    lags = [pl.col("item").shift(back).over("user_id") for back in range(HIGH, 0, -1)]
    history = pl.concat_list(lags).list.drop_nulls().alias("history")
    made = rows.with_columns(history).filter(pl.col("place") >= LOW)
    codes = every.select("user_id", "item", user=pl.col("user_id").rank("dense").cast(pl.Int64))
    of = made.join(
        codes.select("user_id", "user").unique(), on="user_id", how="left", maintain_order="left"
    )["user"]
    drawn = (
        negatives(
            made["item"].to_numpy() - first,
            codes["user"].to_numpy(),
            codes["item"].to_numpy() - first,
            of.to_numpy(),
            items,
        )
        + first
    )
    made.with_columns(candidates=pl.Series(drawn)).write_parquet(file)
    return made.height


def pandas(root: Path, out: Path) -> int:
    out.mkdir()
    found, total, first = [], 0, 0
    for domain in DOMAINS:
        rows = pd.read_parquet(root / "interactions" / f"{domain}.parquet").drop_duplicates()
        while True:
            kept = rows[rows.groupby("user_id")["item_id"].transform("size") >= K]
            kept = kept[kept.groupby("item_id")["user_id"].transform("size") >= K]
            if len(kept) == len(rows):
                break
            rows = kept
        rows = rows.assign(
            item=rows["item_id"].rank(method="dense").astype(int) - 1 + first, domain=domain
        )
        rows = rows.sort_values(["user_id", "timestamp", "item_id"])
        by_user = rows.groupby("user_id")
        rows = rows.assign(place=by_user.cumcount(), size=by_user["item"].transform("size"))
        items = rows["item_id"].nunique()
        found.append(rows)
        total += _pandas_samples(rows, rows, first, items, out / f"{domain}.parquet")
        first += items
    every = pd.concat(found)
    mixed = every[every["place"] < every["size"] - 2].sort_values(
        ["user_id", "timestamp", "domain", "item_id"]
    )
    mixed = mixed.assign(place=mixed.groupby("user_id").cumcount())
    return total + _pandas_samples(mixed, every, 0, first, out / "mixed.parquet")


def _pandas_samples(
    rows: pd.DataFrame, every: pd.DataFrame, first: int, items: int, file: Path
) -> int:
    histories = []
    for _, of in rows.groupby("user_id", sort=False)["item"]:
        values = of.tolist()
        histories += [values[max(0, place - HIGH) : place] for place in range(len(values))]
    made = rows.assign(history=histories)
    made = made[made["place"] >= LOW]
    codes, names = pd.factorize(every["user_id"])
    of = names.get_indexer(made["user_id"])
    drawn = (
        negatives(
            made["item"].to_numpy() - first, codes, every["item"].to_numpy() - first, of, items
        )
        + first
    )
    made.assign(candidates=list(drawn)).to_parquet(file)
    return len(made)


def measured(name: str, root: Path) -> tuple[float, ...]:
    """Seconds, CPU seconds, peak MiB, samples of one build in a process of its own; NaN if it died."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--one", name, str(root), str(Path(out) / "made")]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return tuple(map(float, told.stdout.split())) if not told.returncode else (float("nan"),) * 4


def one(name: str, root: Path, out: Path) -> None:
    if name.startswith("append"):
        first = 0 if name == "append_known_users" else 10**9
        _domain(
            out.parent / "more", "D", 100_000, np.arange(first, first + 8_000), 2_000, len(DOMAINS)
        )
        ours(root, out)
    started, of_processor = time.perf_counter(), time.process_time()
    if name.startswith("append"):
        samples = more(out.parent / "more", out)
    elif name == "inspect":
        leaks = inspect_corpus(Corpus.open(str(out))).leak_counts
        samples = sum(leaks[number] for number in LEAK_CHECKS)
    elif name.startswith("ray"):
        samples, worker = watched(more if name == "ray_append" else ours, root, out)
    else:
        samples = {"ours": ours, "ours_append": more, "polars": polars, "pandas": pandas}[name](
            root, out
        )
    took = time.perf_counter() - started, time.process_time() - of_processor
    print(*took, peak(), samples, *([worker] if name.startswith("ray") else []))


def peak() -> float:
    """The most memory that this process had, in MiB. Its own: getrusage would also tell what the process had that started it."""
    return (
        next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM:")
        )
        / 1024
    )


def runs(rows: int, names: list[str], rounds: int) -> dict[str, tuple[float, ...]]:
    """Medians of what `measured` gives, by name."""
    with tempfile.TemporaryDirectory() as place:
        simulate(Path(place) / "root", rows)
        found: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                found[name].append(measured(name, Path(place) / "root"))
    return {name: tuple(map(median, zip(*of, strict=True))) for name, of in found.items()}


def compare(sizes: list[int], peers: list[str], rounds: int) -> None:
    before: tuple[int, tuple[float, ...]] | None = None
    names = ["ours", *peers]
    for rows in sizes:
        of = runs(rows, names, rounds)
        print(
            f"{rows:,}_interactions_ours {', '.join(f'{seen:,.1f} {unit}' for seen, unit in zip(of['ours'], UNITS, strict=False))}",
            flush=True,
        )
        for name in peers:
            for seen, unit, peer in zip(of["ours"], UNITS, of[name], strict=False):
                print(
                    f"{rows:,}_interactions_{unit}_vs_{name} {seen:.1f} {peer:.1f} {peer / seen:.2f}",
                    flush=True,
                )
        print(
            f"{rows:,}_interactions_samples {', '.join(f'{name} {of[name][-1]:,.0f}' for name in names)}",
            flush=True,
        )
        if before is not None:
            growth = (
                f"{unit} x{now / then:.1f}"
                for unit, now, then in zip(UNITS, of["ours"], before[1], strict=False)
            )
            print(f"growth_x{rows / before[0]:.0f} {', '.join(growth)}", flush=True)
        before = rows, of["ours"]


def appends(sizes: list[int], rounds: int) -> None:
    names = ["append_known_users", "append_new_users"]
    by_size = [runs(rows, names, rounds) for rows in sizes]
    for name in names:
        seconds = [of[name][0] for of in by_size]
        told = ", ".join(
            f"{rows:,}: {took:.2f} s, {of[name][-1]:,.0f} samples"
            for rows, took, of in zip(sizes, seconds, by_size, strict=True)
        )
        print(
            f"{name} {told}; corpus x{sizes[-1] / sizes[0]:.0f}, time x{seconds[-1] / seconds[0]:.2f}",
            flush=True,
        )


def on_ray(rows: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        simulate(root, rows)
        _domain(
            root,
            "D",
            rows // len(DOMAINS),
            np.arange(rows // 12),
            max(rows // 150, 200),
            len(DOMAINS),
        )
        for name in ("ours", "ray", "ours_append", "ray_append"):
            command = [
                sys.executable,
                __file__,
                "--one",
                name,
                str(root),
                str(Path(place) / name.removesuffix("_append")),
            ]
            told = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True
            ).stdout.split()
            seconds, _, peak, _ = map(float, told[:4])
            worker = f", largest worker {float(told[4]):,.0f} MiB" if name.startswith("ray") else ""
            print(
                f"{rows:,}_interactions_{name} {seconds:.1f} seconds, driver {peak:,.0f} MiB{worker}",
                flush=True,
            )
        digests = [_digests(Path(place) / name) for name in ("ours", "ray")]
        print(f"files {len(digests[0])}, the same {digests[0] == digests[1]}", flush=True)


def inspections(sizes: list[int]) -> None:
    for rows in sizes:
        with tempfile.TemporaryDirectory() as place:
            simulate(Path(place) / "root", rows)
            for name in ("ours", "inspect"):
                command = [
                    sys.executable,
                    __file__,
                    "--one",
                    name,
                    str(Path(place) / "root"),
                    str(Path(place) / "made"),
                ]
                told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds, _, peak, leaks = map(float, told.stdout.split())
        print(
            f"{rows:,}_interactions_inspect {seconds:.1f} seconds, {peak:,.0f} MiB, leaks {leaks:.0f}",
            flush=True,
        )


def _digests(out: Path) -> dict[str, str]:
    """Of all files but the log, whose commits tell the time."""
    files = [path for path in out.rglob("*") if path.is_file() and "_delta_log" not in path.parts]
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def watched(job: Callable[[Path, Path, int], int], root: Path, out: Path) -> tuple[int, float]:
    """Samples of a job on Ray, and the most memory of its own that one of Ray's workers had, in MiB."""
    most, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        memory = process.memory_info()
                        most[0] = max(most[0], (memory.rss - memory.shared) / 2**20)
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return job(root, out, 0), most[0]
    finally:
        ended.set()
        watcher.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", type=int)
    parser.add_argument("--peers", default="polars,pandas")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--on-ray", action="store_true")
    parser.add_argument("--inspect", action="store_true")
    options = parser.parse_args()
    if options.on_ray:
        for rows in options.sizes or [3_000_000]:
            on_ray(rows)
    elif options.inspect:
        inspections(options.sizes or [3_000_000, 10_000_000])
    elif options.append:
        appends(options.sizes or [300_000, 3_000_000], options.rounds)
    else:
        compare(
            options.sizes or [3_000_000, 30_000_000],
            [name for name in options.peers.split(",") if name],
            options.rounds,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
