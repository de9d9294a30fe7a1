"""Measures what a fleet asks of one controller, and what one unit of everything else costs.

    python benchmarks/fleet.py                     all
    python benchmarks/fleet.py workers reading     these parts

docs/scale.md multiplies these figures. Times are given twice, by the clock and by the CPU that this
process used: on a machine that does other work too, the second is nearer to the truth.
"""

import argparse
import json
import pickle
import shutil
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

import numpy as np
import pyarrow as pa
from mlflow.entities import Metric

from cluster.storage import join
from corpus import build
from corpus.ingest.simulation import simulate_shoppers
from corpus.settings import SimulateSettings
from corpus.sampling.schemas import SAMPLE_SCHEMA
from corpus.sampling.source import Source
from corpus.store import tables
from corpus.store.commits import DataFile
from corpus.store.tables import Corpus, FileKey, Stream, read_rows, write_samples
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.encode.prompt import TABLE1
from cprec.encode.title_encoding import build_title_encoding
from cprec.encode.title_tokens import FORM_COUNT
from cprec.model import tiny
from cprec.runs.control.lease import claim
from cprec.runs.json_lines import open_trace
from cprec.runs.records import TraceRow
from cprec.runs.events import CheckpointSaved
from cprec.runs.run_planning import create_run_plan
from cprec.schedule.ledger import Ledger
from cprec.schedule.plan import Plan, Portion
from cprec.schedule.planning import PlanSettings, build_plan, extend_plan
from cprec.stream import segments
from cprec.stream.row_encoder import RowEncoder
from cprec.tracking.registry import Registry
from cprec.train.distributed.controller_actor import ControllerActor
from cprec.train.distributed.controller_state import ControllerSettings, WorkerGroup

WORKERS = 1024
DOMAINS = 100
SAMPLES = 10**9
BATCH = 8 * WORKERS
"""Samples of a global batch: eight for each worker."""
SAMPLES_PER_S = 39 * WORKERS
"""Samples a second: each worker trains 27,100 tokens/s of 690 a sample (docs/benchmarks.md)."""

RECIPE: dict[str, Any] = {
    "run": "fleet",
    "data": {"format": "simulated", "domains": ["Garden", "Office"], "held_out": ["Games"]},
    "simulate": {"users": 60, "items_per_domain": 60},
}


def example_plan(appends: int = 0) -> Plan:
    """Returns a plan of SAMPLES over DOMAINS; a fifth of its samples are mixed."""
    count = SAMPLES * 4 // 5 // DOMAINS
    portions = [Portion(f"domain/domain-{i:03}", 0, 0, count) for i in range(DOMAINS)]
    plan = build_plan(
        PlanSettings(0, 5e-6, 5e-4, 0.05), portions, [Portion("mixed", 0, 0, SAMPLES // 5)]
    )
    for version in range(1, appends + 1):
        position = version * BATCH + plan.wsa.warmup_end
        added = [Portion(f"domain/domain-{version % DOMAINS:03}", version, 0, 10**6)]
        plan = extend_plan(plan, position, added, [], None)
    return plan


def trace_row(step: int) -> TraceRow:
    """Returns a row of the trace of a step with samples of all domains."""
    return TraceRow(
        step=step,
        samples=step * BATCH,
        batch_samples=BATCH,
        phase="stable",
        lr=1.2345e-4,
        loss=1.23456789,
        supervised_tokens=26 * BATCH,
        tokens=690 * BATCH,
        step_s=0.21,
        data_wait_s=0.001,
        sources={f"domain/domain-{i:03}": BATCH // DOMAINS for i in range(DOMAINS)},
        ids_digest="0123456789abcdef",
    )


@contextmanager
def example_corpus() -> Iterator[tuple[Path, Recipe, Corpus]]:
    """Yields a temporary folder, a recipe, and its small corpus."""
    with tempfile.TemporaryDirectory() as name:
        places = {"storage": f"{name}/runs", "corpus": f"{name}/corpus"}
        data = {**RECIPE["data"], "root": f"{name}/shoppers"}
        recipe = validate_recipe({**RECIPE, **places, "data": data}, "the benchmark")
        corpus = build.simulate_and_build(
            recipe.data, recipe.simulate, recipe.seed, recipe.corpus, lambda _: None
        )
        yield Path(name), recipe, corpus


def median_times(call: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """Returns the median time of a call by the clock, and that of the CPU [seconds]."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return statistics.median(t for t, _ in times), statistics.median(t for _, t in times)


def benchmark_workers() -> None:
    """Serves 1,024 simulated workers from the controller of a run, and prints its margin.

    It is the controller of a run on a disk: it writes trace, events and status, and looks at the
    corpus. Ray is left out: the execution that a segment starts, and what Ray does for a call
    (`controller.py --live`). What a worker is sent is pickled.
    """
    with example_corpus() as (folder, recipe, corpus):
        for batches in (1, 8, 64):
            run_uri = str(folder / "runs" / f"{batches}")
            plan = replace(create_run_plan(recipe, corpus), plan=example_plan())
            plan.write(run_uri)
            with (
                claim(run_uri, "fleet", corpus.uri, lambda _: None) as held,
                patch.object(segments, "configure_ray_data"),
                patch.object(RowEncoder, "with_titles_of", lambda encoder, _: encoder),
                patch.object(segments, "stream_segment", lambda *given: [None] * given[-1]),
            ):
                settings = ControllerSettings(
                    run="fleet",
                    run_uri=run_uri,
                    corpus_uri=corpus.uri,
                    row_encoder=RowEncoder("", None, 512, TABLE1, cast("Any", None)),
                    global_batch_size=BATCH,
                    segment_samples=batches * BATCH,
                    poll_samples=batches * BATCH,
                    max_domain_samples=None,
                    replay_share=0.0,
                    min_annealing_share=0.0,
                )
                actor = ControllerActor(settings, held.lease)
                actor.begin_attempt(WorkerGroup(0, WORKERS, 0, None), [])
                serve = partial(serve_segment, actor, iter(range(10**6)), batches)
                seconds, cpu_s = median_times(serve)
            calls = WORKERS + batches + 1
            needed = calls * SAMPLES_PER_S / (batches * BATCH)
            print(
                f"{WORKERS:,} workers, segments of {batches} batches of {BATCH:,}:"
                f" {needed:,.0f} calls/s needed; served {calls / seconds:,.0f}/s by the clock,"
                f" {calls / cpu_s:,.0f}/s by CPU; margin {calls / seconds / needed:.1f},"
                f" {calls / cpu_s / needed:.1f}"
            )


def serve_segment(actor: ControllerActor, steps: Iterator[int], batches: int) -> None:
    """Answers all that workers and driver ask for one segment."""
    numbers = [next(steps) for _ in range(batches)]
    for rank in range(WORKERS):
        pickle.dumps(actor.issue_segment(0, numbers[0] * BATCH, rank))
    for number in numbers:
        actor.record_step(0, trace_row(number))
    pickle.dumps(actor.news(numbers[0], 0))


def measure_records() -> None:
    """Prints sizes of the records of a run, and what its controller keeps of them."""
    row = len(json.dumps(trace_row(10**5).to_json(), separators=(",", ":"))) + 1
    event = CheckpointSaved(samples=10**9, checkpoint="s3://bucket/runs/cpt/checkpoints/10-0")
    tracemalloc.start()
    rows = [trace_row(step) for step in range(1000)]
    kept = tracemalloc.get_traced_memory()[0] / len(rows)
    tracemalloc.stop()
    print(
        f"trace row of {DOMAINS} sources {row:,} bytes, {kept:,.0f} in memory;"
        f" event {len(json.dumps(event.to_json())):,} bytes"
    )
    for appends in (0, 100):
        ledger = Ledger(example_plan(appends)).to_json()
        print(
            f"{DOMAINS} domains, {appends} appends: plan {len(json.dumps(ledger['plan'])):,} bytes,"
            f" ledger {len(json.dumps(ledger)):,} bytes"
        )
    with tempfile.TemporaryDirectory() as folder:
        trace = open_trace(f"{folder}/run")
        for trace_step in rows:
            trace.append(trace_step)
        trace.flush()
        seconds, cpu_s = median_times(lambda: open_trace(f"{folder}/run").read())
    print(
        f"reading a trace: {seconds / len(rows) * 1e6:,.0f} us a row by the clock,"
        f" {cpu_s / len(rows) * 1e6:,.0f} by CPU"
    )


def measure_corpus(files: int = 8192) -> None:
    """Prints what opening a corpus costs by the number of its files."""
    with example_corpus() as (folder, _, corpus):
        log = Path(corpus.uri) / "samples" / "_delta_log" / f"{0:020d}.json"
        lines = log.read_text().splitlines()
        adds = [line for line in lines if line.startswith('{"add"')]
        rest = [line for line in lines if not line.startswith('{"add"')]
        many = [
            adds[i % len(adds)].replace("part-", f"part-{i // len(adds):05d}-")
            for i in range(files)
        ]
        copies = [folder / f"copy-{i}" for i in range(3)]
        for copy in copies:
            shutil.copytree(corpus.uri, copy)
            place = copy / "samples" / "_delta_log" / log.name
            place.write_text("\n".join([*rest, *many]) + "\n")
        left = iter(copies)  # a process reads a file of the log once
        seconds, cpu_s = median_times(lambda: Corpus.open(str(next(left))), len(copies))
        opened = Corpus.open(str(copies[0]))
        assert sum(len(commit.added) for commit in opened.commits) == files
        size = len("\n".join(many)) / files
        sent = len(pickle.dumps(opened.streams_by_key())) / sum(
            len(stream.files) for stream in opened.streams()
        )
        print(
            f"opening a corpus of {files:,} files: {seconds / files * 1e6:,.0f} us a file by the"
            f" clock, {cpu_s / files * 1e6:,.0f} by CPU; {size:,.0f} bytes of log a file,"
            f" {sent:,.0f} in what each read task is sent"
        )


def measure_reading(rows: int = 1 << 18, part: int = BATCH // DOMAINS) -> None:
    """Prints what one domain's part of a global batch costs to read, from a disk."""
    generator = np.random.default_rng(0)

    def lists(length: int) -> pa.ListArray:
        values = pa.array(generator.integers(0, 10**6, rows * length))
        return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * length, pa.int32()), values)

    table = pa.Table.from_arrays(
        [
            pa.array(np.sort(generator.integers(0, 1 << 62, rows))),
            pa.array(["domain-000"] * rows),
            pa.array([f"user-{i:09}" for i in generator.integers(0, 10**8, rows)]),
            lists(10),
            lists(20),
            pa.array(generator.integers(0, 20, rows).astype("int8")),
            pa.array(generator.integers(10**9, 2 * 10**9, rows)),
        ],
        schema=SAMPLE_SCHEMA,
    )
    with tempfile.TemporaryDirectory() as folder:
        written = write_samples(folder, FileKey("domain/domain-000", "train", 0), [table])
        file = DataFile(f"{folder}/samples/{written.name}", rows)
        stream = Stream(Source.parse("domain/domain-000"), 0, (file,))
        starts = iter(generator.integers(0, rows - part, 1000).tolist())

        def read(is_open: bool) -> None:
            if not is_open:
                tables._open_cached.cache_clear()
            start = next(starts)
            read_rows(stream, start, start + part)

        read(False)
        for is_open in (False, True):
            seconds, cpu_s = median_times(partial(read, is_open), 50)
            print(
                f"reading {part} of {rows:,} rows of a file {'again' if is_open else 'anew'}:"
                f" {seconds * 1e3:.1f} ms by the clock, {cpu_s * 1e3:.1f} by CPU"
            )
        print(f"a file of {rows:,} rows: {written.size / rows:.0f} bytes a row")


def measure_titles(items: int = 20_000) -> None:
    """Prints what the tokens of titles cost."""
    settings = SimulateSettings(users=10, items_per_domain=items // 2)
    shelves = simulate_shoppers(("Garden", "Games"), settings, 0).shelves
    titles = [title for shelf in shelves for title in shelf.titles]
    tokenizer = tiny.train_tokenizer(titles, 800, TABLE1)
    tracemalloc.start()
    copies = [f"{title}." for title in titles]
    text_bytes = tracemalloc.get_traced_memory()[0] / len(copies)
    tracemalloc.stop()
    encoding = build_title_encoding(titles, tokenizer, TABLE1)
    tokens = encoding.title_tokens
    assert tokens is not None
    seconds, cpu_s = median_times(lambda: build_title_encoding(titles, tokenizer, TABLE1), 3)
    print(
        f"{len(titles):,} titles of {len(tokens.ids) / FORM_COUNT / len(titles):.1f} tokens:"
        f" {(tokens.ids.nbytes + tokens.offsets.nbytes) / len(titles):.0f} bytes each as tokens"
        f" ({tokens.ids.itemsize} a token, {FORM_COUNT} forms), {text_bytes:.0f} as text in Python;"
        f" {seconds / len(titles) * 1e6:.0f} us each by the clock,"
        f" {cpu_s / len(titles) * 1e6:.0f} by CPU"
    )


def measure_mlflow(metrics: int = 1000) -> None:
    """Prints what metrics cost in MLflow on SQLite."""
    with tempfile.TemporaryDirectory() as storage:
        recipe = validate_recipe({"storage": storage}, "the benchmark")
        registry = Registry.from_recipe(recipe)
        run_id = registry.start_run(join(storage, "fleet"), "fleet")
        numbers = iter(range(100))

        def log() -> None:
            step = next(numbers)
            batch = [Metric(f"metric-{i % 10}", 1.0, step, i // 10) for i in range(metrics)]
            registry.client.log_batch(run_id, metrics=batch)

        seconds, cpu_s = median_times(log)
        print(
            f"MLflow on SQLite: {metrics / seconds:,.0f} metrics/s by the clock,"
            f" {metrics / cpu_s:,.0f} by CPU"
        )


PARTS: dict[str, Callable[[], None]] = {
    "workers": benchmark_workers,
    "records": measure_records,
    "corpus": measure_corpus,
    "reading": measure_reading,
    "titles": measure_titles,
    "mlflow": measure_mlflow,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parts = parser.parse_args().parts
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"no part {unknown[0]}; there are {', '.join(PARTS)}")
    for part in parts or PARTS:
        PARTS[part]()
