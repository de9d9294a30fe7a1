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
import polars as pl
import psutil

from corpus.append import append
from corpus.build import build
from corpus.inspect.inspection import inspect_corpus
from corpus.inspect.leakage import LEAK_CHECKS
from corpus.settings import DataSettings
from corpus.store.tables import Corpus, Stream
from peers.plain_builds import (
    DOMAINS,
    build_with_pandas,
    build_with_polars,
)

APPENDED_DOMAIN = "D"
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
