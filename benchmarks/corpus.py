"""Measures builds, appends and inspections of a corpus of simulated interactions.

    python benchmarks/corpus.py [INTERACTIONS ...] [--peers polars,pandas] [--rounds 1]
    python benchmarks/corpus.py --append [300000 3000000] [--rounds 1]
    python benchmarks/corpus.py --on-ray [3000000]
    python benchmarks/corpus.py --inspect [3000000 10000000]

Every build runs in a process of its own, ours and the peers' in turn.

Without an option: the build against the same output by plain polars and plain pandas. A peer does
what one would write first: k-core, leave-one-out, histories as lists (domain by domain and mixed),
19 negatives from a random generator, one parquet file per source. It has no versions, checks
nothing, and keeps more samples, because it lacks the two rules for mixed histories. Prints
`name ours peer ratio` in seconds, CPU seconds and MiB (ratio: peer / ours), and how ours grows from
one size to the next.

--append: appends a domain of 100,000 interactions of 8,000 users to corpora of these sizes; once
the users are the corpus's own, once they are new. Prints the seconds of the append alone, and how
they grow with the corpus.

--on-ray: the build on Ray against the build in one process, then to each the append of one more
domain, as large as the others and of the same users. Prints seconds, the peak MiB of the driver and
of the largest worker (without shared memory, sampled twenty times a second), and whether both wrote
the same files.

--inspect: seconds and peak MiB of checking a finished corpus for leakage and counting its shape.
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
from corpus.store.tables import Corpus, Stream

DOMAINS = ("A", "B", "C")
APPENDED_DOMAIN = "D"
K_CORE = 3
MIN_HISTORY = 3
MAX_HISTORY = 10
NUM_CANDIDATES = 20
UNITS = ("seconds", "cpu_seconds", "MiB")
SPLITS = ("train", "validation", "test")
NEVER = 10**12
"""A number of interactions above which a build runs on Ray that no benchmark reaches."""


def simulate(root: Path, rows: int) -> None:
    """Writes interactions of rows / 12 users over three domains."""
    for seed, domain in enumerate(DOMAINS):
        users = np.arange(rows // 12)
        simulate_domain(root, domain, rows // len(DOMAINS), users, max(rows // 150, 200), seed)


def simulate_domain(
    root: Path, domain: str, rows: int, users: np.ndarray, items: int, seed: int
) -> None:
    """Writes the files of one domain: users drawn evenly, items by a power law, whole days.

    Args:
        root: The data root.
        domain: Name of the domain.
        rows: Number of interactions.
        users: Numbers of the users.
        items: Number of items.
        seed: Seed of the draws.
    """
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


def simulate_appended_domain(root: Path, rows: int) -> None:
    """Writes one more domain, as large as the others and of the same users."""
    users = np.arange(rows // 12)
    items = max(rows // 150, 200)
    seed = len(DOMAINS)
    simulate_domain(root, APPENDED_DOMAIN, rows // len(DOMAINS), users, items, seed)


def build_ours(root: Path, out: Path, distribute_above: int = NEVER) -> int:
    """Builds a corpus; returns its number of samples."""
    settings = DataSettings(root=str(root), domains=DOMAINS, distribute_above=distribute_above)
    return sum(stream.rows for stream in all_streams(build(settings, 0, str(out), ignore)))


def append_ours(root: Path, out: Path, distribute_above: int = NEVER) -> int:
    """Appends a domain to a corpus; returns the number of samples that it adds."""
    settings = DataSettings(
        root=str(root), domains=(APPENDED_DOMAIN,), distribute_above=distribute_above
    )
    corpus = append(settings, 0, str(out), ignore)
    return sum(stream.rows for stream in all_streams(corpus) if stream.version == 1)


def all_streams(corpus: Corpus) -> list[Stream]:
    """Returns the streams of all splits."""
    return [stream for split in SPLITS for stream in corpus.streams(split)]


def ignore(line: str) -> None:
    """Ignores a line of progress."""


def draw_candidates(
    targets: np.ndarray,
    target_users: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
    item_count: int,
) -> np.ndarray:
    """Draws the candidates of each target, as the peers do it.

    Negatives are drawn again where the user has the item or an item stands twice.

    Args:
        targets: The true items [samples].
        target_users: The user of each target [samples].
        users: The user of every interaction [interactions].
        items: The item of every interaction [interactions].
        item_count: Number of items.

    Returns:
        Candidates [samples, NUM_CANDIDATES], shuffled.
    """
    rng = np.random.default_rng(0)
    seen_keys = np.unique(users.astype(np.int64) * item_count + items)
    candidates = rng.integers(0, item_count, (targets.size, NUM_CANDIDATES))
    candidates[:, 0] = targets
    pending = np.arange(targets.size)
    while pending.size:
        part = candidates[pending]
        order = np.argsort(part, axis=1, kind="stable")
        values = np.take_along_axis(part, order, 1)
        repeated = np.zeros_like(part, bool)
        np.put_along_axis(repeated, order[:, 1:], values[:, 1:] == values[:, :-1], 1)
        keys = target_users[pending].astype(np.int64)[:, None] * item_count + part
        places = np.minimum(np.searchsorted(seen_keys, keys), seen_keys.size - 1)
        redraw = repeated | (seen_keys[places] == keys)
        redraw[:, 0] = False
        part[redraw] = rng.integers(0, item_count, int(redraw.sum()))
        candidates[pending] = part
        pending = pending[redraw.any(axis=1)]
    return rng.permuted(candidates, axis=1)


def build_with_polars(root: Path, out: Path) -> int:
    """Builds the same kind of samples with plain polars; returns their number."""
    out.mkdir()
    domain_rows = []
    samples = 0
    first_item = 0
    for domain in DOMAINS:
        rows = pl.read_parquet(root / "interactions" / f"{domain}.parquet").unique()
        while True:
            core = rows.filter(pl.len().over("user_id") >= K_CORE).filter(
                pl.len().over("item_id") >= K_CORE
            )
            if core.height == rows.height:
                break
            rows = core
        ids = rows["item_id"].unique().sort()
        rows = rows.join(
            pl.DataFrame({"item_id": ids, "item": np.arange(ids.len()) + first_item}), on="item_id"
        ).sort("user_id", "timestamp", "item_id")
        rows = rows.with_columns(
            domain=pl.lit(domain),
            place=pl.int_range(pl.len()).over("user_id"),
            size=pl.len().over("user_id"),
        )
        domain_rows.append(rows)
        file = out / f"{domain}.parquet"
        samples += write_polars_samples(rows, rows, first_item, ids.len(), file)
        first_item += ids.len()
    all_rows = pl.concat(domain_rows)
    # Leave-one-out: the last two interactions with each domain are validation and test.
    mixed = all_rows.filter(pl.col("place") < pl.col("size").cast(pl.Int64) - 2).sort(
        "user_id", "timestamp", "domain", "item_id"
    )
    mixed = mixed.with_columns(place=pl.int_range(pl.len()).over("user_id"))
    return samples + write_polars_samples(mixed, all_rows, 0, first_item, out / "mixed.parquet")


def write_polars_samples(
    rows: pl.DataFrame, all_rows: pl.DataFrame, first_item: int, item_count: int, file: Path
) -> int:
    """Writes the samples of one source; returns their number.

    Args:
        rows: Interactions that become targets and histories, by user and time.
        all_rows: Interactions whose items are no negatives of their users.
        first_item: Number of the first item that may be a negative.
        item_count: Number of items that may be negatives.
        file: The file to write.
    """
    previous = [pl.col("item").shift(back).over("user_id") for back in range(MAX_HISTORY, 0, -1)]
    history = pl.concat_list(previous).list.drop_nulls().alias("history")
    samples = rows.with_columns(history).filter(pl.col("place") >= MIN_HISTORY)
    interactions = all_rows.select(
        "user_id", "item", user=pl.col("user_id").rank("dense").cast(pl.Int64)
    )
    user_numbers = interactions.select("user_id", "user").unique()
    target_users = samples.join(user_numbers, on="user_id", how="left", maintain_order="left")[
        "user"
    ]
    candidates = draw_candidates(
        samples["item"].to_numpy() - first_item,
        target_users.to_numpy(),
        interactions["user"].to_numpy(),
        interactions["item"].to_numpy() - first_item,
        item_count,
    )
    samples.with_columns(candidates=pl.Series(candidates + first_item)).write_parquet(file)
    return samples.height


def build_with_pandas(root: Path, out: Path) -> int:
    """Builds the same kind of samples with plain pandas; returns their number."""
    out.mkdir()
    domain_rows = []
    samples = 0
    first_item = 0
    for domain in DOMAINS:
        rows = pd.read_parquet(root / "interactions" / f"{domain}.parquet").drop_duplicates()
        while True:
            core = rows[rows.groupby("user_id")["item_id"].transform("size") >= K_CORE]
            core = core[core.groupby("item_id")["user_id"].transform("size") >= K_CORE]
            if len(core) == len(rows):
                break
            rows = core
        rows = rows.assign(
            item=rows["item_id"].rank(method="dense").astype(int) - 1 + first_item, domain=domain
        )
        rows = rows.sort_values(["user_id", "timestamp", "item_id"])
        by_user = rows.groupby("user_id")
        rows = rows.assign(place=by_user.cumcount(), size=by_user["item"].transform("size"))
        item_count = rows["item_id"].nunique()
        domain_rows.append(rows)
        file = out / f"{domain}.parquet"
        samples += write_pandas_samples(rows, rows, first_item, item_count, file)
        first_item += item_count
    all_rows = pd.concat(domain_rows)
    # Leave-one-out: the last two interactions with each domain are validation and test.
    mixed = all_rows[all_rows["place"] < all_rows["size"] - 2].sort_values(
        ["user_id", "timestamp", "domain", "item_id"]
    )
    mixed = mixed.assign(place=mixed.groupby("user_id").cumcount())
    return samples + write_pandas_samples(mixed, all_rows, 0, first_item, out / "mixed.parquet")


def write_pandas_samples(
    rows: pd.DataFrame, all_rows: pd.DataFrame, first_item: int, item_count: int, file: Path
) -> int:
    """Writes the samples of one source; returns their number. Arguments as with polars."""
    histories = []
    for _, user_items in rows.groupby("user_id", sort=False)["item"]:
        items = user_items.tolist()
        histories += [items[max(0, place - MAX_HISTORY) : place] for place in range(len(items))]
    samples = rows.assign(history=histories)
    samples = samples[samples["place"] >= MIN_HISTORY]
    users, user_ids = pd.factorize(all_rows["user_id"])
    candidates = draw_candidates(
        samples["item"].to_numpy() - first_item,
        user_ids.get_indexer(samples["user_id"]),
        users,
        all_rows["item"].to_numpy() - first_item,
        item_count,
    )
    samples.assign(candidates=list(candidates + first_item)).to_parquet(file)
    return len(samples)


def run_in_process(name: str, root: Path, out: Path, check: bool = True) -> tuple[float, ...]:
    """Runs one measurement of this file in a process of its own.

    Args:
        name: Name of the measurement, as `measure` knows it.
        root: The data root.
        out: Folder of the corpus.
        check: Whether a process that fails is an error.

    Returns:
        Seconds, CPU seconds, peak MiB, number of samples and, on Ray, the peak MiB of the largest
        worker; NaN if the process failed.
    """
    command = [sys.executable, __file__, "--one", name, str(root), str(out)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=check)
    if process.returncode:
        return (float("nan"),) * 4
    return tuple(map(float, process.stdout.split()))


def measure(name: str, root: Path, out: Path) -> None:
    """Does one measurement in this process; prints what `run_in_process` returns."""
    measures_append = name in ("append_known_users", "append_new_users")
    appended_root = out.parent / "more"
    if measures_append:
        first_user = 0 if name == "append_known_users" else 10**9
        users = np.arange(first_user, first_user + 8_000)
        simulate_domain(appended_root, APPENDED_DOMAIN, 100_000, users, 2_000, len(DOMAINS))
        build_ours(root, out)
    began = time.perf_counter()
    cpu_began = time.process_time()
    worker_mib = None
    if measures_append:
        samples = append_ours(appended_root, out)
    elif name == "inspect":
        leaks = inspect_corpus(Corpus.open(str(out))).leak_counts
        samples = sum(leaks[number] for number in LEAK_CHECKS)  # not samples: what must be 0
    elif name == "ray":
        samples, worker_mib = watch_workers(build_ours, root, out)
    elif name == "ray_append":
        samples, worker_mib = watch_workers(append_ours, root, out)
    else:
        run = {
            "ours": build_ours,
            "ours_append": append_ours,
            "polars": build_with_polars,
            "pandas": build_with_pandas,
        }[name]
        samples = run(root, out)
    seconds = time.perf_counter() - began
    cpu_seconds = time.process_time() - cpu_began
    workers = [] if worker_mib is None else [worker_mib]
    print(seconds, cpu_seconds, peak_mib(), samples, *workers)


def peak_mib() -> float:
    """Returns the peak memory of this process [MiB].

    getrusage would not do: it also counts the memory of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    [peak_kib] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peak_kib) / 1024


def run_rounds(rows: int, names: list[str], rounds: int) -> dict[str, tuple[float, ...]]:
    """Simulates interactions and runs measurements in turn; returns their medians by name."""
    results: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        simulate(root, rows)
        for _ in range(rounds):
            for name in names:
                with tempfile.TemporaryDirectory() as out:
                    results[name].append(
                        run_in_process(name, root, Path(out) / "corpus", check=False)
                    )
    return {name: tuple(map(median, zip(*runs, strict=True))) for name, runs in results.items()}


def compare_builds(sizes: list[int], peers: list[str], rounds: int) -> None:
    """Prints our builds of each size against the peers', and how ours grow."""
    rows_before = 0
    ours_before: tuple[float, ...] = ()
    for rows in sizes:
        results = run_rounds(rows, ["ours", *peers], rounds)
        ours = results["ours"]
        figures = (f"{value:,.1f} {unit}" for value, unit in zip(ours, UNITS, strict=False))
        print(f"{rows:,}_interactions_ours {', '.join(figures)}", flush=True)
        for name in peers:
            for our_value, unit, value in zip(ours, UNITS, results[name], strict=False):
                print(
                    f"{rows:,}_interactions_{unit}_vs_{name}"
                    f" {our_value:.1f} {value:.1f} {value / our_value:.2f}",
                    flush=True,
                )
        samples = ", ".join(f"{name} {result[-1]:,.0f}" for name, result in results.items())
        print(f"{rows:,}_interactions_samples {samples}", flush=True)
        if rows_before:
            growth = (
                f"{unit} x{now / before:.1f}"
                for unit, now, before in zip(UNITS, ours, ours_before, strict=False)
            )
            print(f"growth_x{rows / rows_before:.0f} {', '.join(growth)}", flush=True)
        rows_before = rows
        ours_before = ours


def compare_appends(sizes: list[int], rounds: int) -> None:
    """Prints the appends to corpora of each size, and how their time grows."""
    names = ["append_known_users", "append_new_users"]
    results = [run_rounds(rows, names, rounds) for rows in sizes]
    for name in names:
        seconds = [result[name][0] for result in results]
        figures = ", ".join(
            f"{rows:,}: {result[name][0]:.2f} s, {result[name][-1]:,.0f} samples"
            for rows, result in zip(sizes, results, strict=True)
        )
        print(
            f"{name} {figures}; corpus x{sizes[-1] / sizes[0]:.0f},"
            f" time x{seconds[-1] / seconds[0]:.2f}",
            flush=True,
        )


def compare_with_ray(rows: int) -> None:
    """Prints a build and an append in one process and on Ray, and whether the files are equal."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        simulate(root, rows)
        simulate_appended_domain(root, rows)
        for name in ("ours", "ray", "ours_append", "ray_append"):
            out = Path(place) / name.removesuffix("_append")
            seconds, _, driver_mib, _, *workers = run_in_process(name, root, out)
            worker = f", largest worker {workers[0]:,.0f} MiB" if workers else ""
            print(
                f"{rows:,}_interactions_{name} {seconds:.1f} seconds,"
                f" driver {driver_mib:,.0f} MiB{worker}",
                flush=True,
            )
        ours, on_ray = (file_digests(Path(place) / name) for name in ("ours", "ray"))
        print(f"files {len(ours)}, the same {ours == on_ray}", flush=True)


def measure_inspections(sizes: list[int]) -> None:
    """Prints the inspection of a corpus of each size."""
    for rows in sizes:
        with tempfile.TemporaryDirectory() as place:
            root = Path(place) / "root"
            out = Path(place) / "corpus"
            simulate(root, rows)
            run_in_process("ours", root, out)
            seconds, _, mib, leaks = run_in_process("inspect", root, out)
        print(
            f"{rows:,}_interactions_inspect {seconds:.1f} seconds, {mib:,.0f} MiB,"
            f" leaks {leaks:.0f}",
            flush=True,
        )


def file_digests(out: Path) -> dict[str, str]:
    """Returns the digest of every file but Delta's log, whose commits hold the time."""
    files = [path for path in out.rglob("*") if path.is_file() and "_delta_log" not in path.parts]
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def watch_workers(
    job: Callable[[Path, Path, int], int], root: Path, out: Path
) -> tuple[int, float]:
    """Runs a job on Ray and watches its workers.

    Returns:
        The result of the job, and the peak memory of the largest worker without shared memory
        [MiB].
    """
    peak = 0.0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        memory = process.memory_info()
                        peak = max(peak, (memory.rss - memory.shared) / 2**20)
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return job(root, out, 0), peak
    finally:
        ended.set()
        watcher.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", type=int, help="numbers of interactions")
    parser.add_argument("--peers", default="polars,pandas")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--on-ray", action="store_true")
    parser.add_argument("--inspect", action="store_true")
    options = parser.parse_args()
    if options.on_ray:
        for rows in options.sizes or [3_000_000]:
            compare_with_ray(rows)
    elif options.inspect:
        measure_inspections(options.sizes or [3_000_000, 10_000_000])
    elif options.append:
        compare_appends(options.sizes or [300_000, 3_000_000], options.rounds)
    else:
        compare_builds(
            options.sizes or [3_000_000, 30_000_000],
            [name for name in options.peers.split(",") if name],
            options.rounds,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
