"""Measures what Ray costs: jobs/cpt.py against the bare loop on the same samples in the same order.

    python benchmarks/overhead.py --corpus out/corpus [--workers 1,2] [--samples 1024]
        [--segment 8192] [--rounds 3] [--spare-core]

The bare loop is `cprec.train.loop` and the engine in as many processes, fed from memory: no Ray, no
controller, no trace, no MLflow. Each worker trains on one thread. Seconds are the wall time of the
steps and of waiting for data, as the trace and the loop report it, without the first --skip steps.
Starting and saving do not count, nor does the start of a segment, which benchmarks/controller.py
measures. Rounds are interleaved. Each line is `what ours peer ratio`, in useful tokens per second.

A GPU node has cores to spare for Ray's own processes. A small machine has none once every core
trains. --spare-core shows the difference: all workers, on Ray and bare, share the first core, and
everything else runs on the others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from support import workload  # first: it makes the packages importable
import numpy as np
import psutil
import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from corpus.sampling.source import SourceKind
from corpus.store.tables import Corpus
from cprec.encode.prompt import TEMPLATES
from cprec.config.recipe_file import load_recipe
from cprec.encode.title_tokens import CachedPromptEncoder, tokenise_titles
from cprec.model import adapter, backbone
from cprec.schedule.plan import Plan, global_batches
from cprec.stream.worker_rows import worker_batch_from_row, to_worker_rows
from cprec.stream.segments import read_plan_rows
from cprec.train.engine import Engine
from cprec.train.loop import Observer, StepRecord, TrainingStep, train

CORES = sorted(os.sched_getaffinity(0))
WORKER_CORES = set(CORES[:1])
"""Cores of the workers, with --spare-core."""
OTHER_CORES = set(CORES[1:])
"""Cores of everything else, with --spare-core."""


class StepTimes(Observer):
    """Records (tokens, seconds of the step, seconds of waiting for data) of every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float, float]] = []

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        self.steps.append((record.batch.num_tokens, record.step_s, record.data_wait_s))


def training_steps(
    plan: Plan,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    global_batch_size: int,
    rank: int,
    world_size: int,
) -> Iterator[TrainingStep]:
    """Yields one worker's steps of a whole plan, as the controller would hand them out."""
    titles = corpus.read_titles()
    # As the run against which it is timed: that of a corpus of an earlier release is another one.
    template = TEMPLATES[corpus.prompt_template]
    title_tokens = tokenise_titles(titles, tokenizer, template)
    encoder = CachedPromptEncoder(title_tokens, max_tokens)
    streams = corpus.streams_by_key()
    wsa = plan.wsa
    for era in plan.eras:
        if era.start == era.stop:
            continue
        rows = read_plan_rows(era, streams, era.start, era.stop)
        samples = encoder.encode_samples(rows)
        ids = rows["sample_id"].to_numpy().view(np.uint64)
        sources = rows["source"].to_pylist()
        for start, stop in global_batches(era.start, era.stop, global_batch_size):
            batch = slice(start - era.start, stop - era.start)
            row = to_worker_rows(
                start, stop, samples[batch], ids[batch], sources[batch], world_size
            )[rank]
            arrays = {name: np.asarray(row[name]) for name in ("ids", "input_ids")}
            yield TrainingStep(
                worker_batch_from_row({**row, **arrays, "sources": row["sources"]}),
                wsa.lr(start),
                wsa.phase(start),
                wsa.stable_end,
                wsa.annealing_end,
            )


def bare_worker(run: Path, recipe_file: str, rank: int, world_size: int, store: str) -> None:
    """Trains the plan of a finished run in the bare loop; prints its steps as JSON.

    Args:
        run: Folder of the run.
        recipe_file: The recipe of the run.
        rank: Rank of this process.
        world_size: Number of processes.
        store: File through which the processes find each other.
    """
    recipe = load_recipe(recipe_file)
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    corpus = Corpus.open(recipe.corpus)
    plan = Plan.from_json(json.loads((run / "plan.json").read_text())["plan"])
    base = str(next((Path(recipe.storage) / "bases").iterdir()))
    model, tokenizer = backbone.load(base, None, recipe.model.precision)
    engine = Engine(
        adapter.attach(model, recipe.model, recipe.seed), recipe.train, recipe.model.precision
    )
    max_tokens = recipe.model.max_tokens
    batch = recipe.train.global_batch
    steps = list(training_steps(plan, corpus, tokenizer, max_tokens, batch, rank, world_size))
    times = StepTimes()
    spec = engine.micro_batch_spec
    end_token = int(tokenizer.eos_token_id)  # type: ignore[arg-type]
    train(engine, steps, times, spec, end_token, recipe.seed)
    engine.close()
    print(json.dumps(times.steps))


def throughput(steps: Sequence[Sequence[float]], skip: int) -> tuple[float, float]:
    """Returns useful tokens per second, and the fraction of the time spent waiting for data.

    Args:
        steps: (tokens, seconds of the step, seconds of waiting for data) of each step.
        skip: Number of first steps that do not count.
    """
    counted = steps[skip:]
    tokens = sum(step[0] for step in counted)
    wait_s = sum(step[2] for step in counted)
    seconds = sum(step[1] for step in counted) + wait_s
    return tokens / seconds, wait_s / seconds


def run_on_ray(
    recipe: Path, run: Path, world_size: int, skip: int, spare_core: bool
) -> tuple[float, float]:
    """Runs jobs/cpt.py; returns its throughput."""
    arguments = [str(recipe), "--run", run.name, "--workers", str(world_size)]
    job = subprocess.Popen(
        [sys.executable, "jobs/cpt.py", *arguments], cwd=workload.ROOT, stdout=subprocess.DEVNULL
    )
    if spare_core:
        os.sched_setaffinity(job.pid, OTHER_CORES)  # its child processes inherit it
    while job.poll() is None:
        if spare_core:
            pin_ray_workers(job.pid)
        time.sleep(0.5)
    if job.returncode:
        raise SystemExit("jobs/cpt.py failed")
    rows = [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]
    return throughput([(row["tokens"], row["step_s"], row["data_wait_s"]) for row in rows], skip)


def pin_ray_workers(driver_pid: int) -> None:
    """Moves all threads of a driver's Ray training workers to the cores of the workers."""
    with suppress(psutil.Error, OSError):  # processes and threads end at any time
        for process in psutil.Process(driver_pid).children(recursive=True):
            if process.cmdline()[:1] == ["ray::RayTrainWorker"]:
                for thread in process.threads():
                    os.sched_setaffinity(thread.id, WORKER_CORES)


def run_bare(
    recipe: Path, run: Path, world_size: int, skip: int, spare_core: bool
) -> tuple[float, float]:
    """Trains the plan of a finished run in the bare loop; returns the throughput of rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        command = [
            sys.executable,
            __file__,
            "--bare",
            str(run),
            str(recipe),
            str(world_size),
            store,
        ]
        workers = [
            subprocess.Popen(
                [*command, str(rank)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(world_size)
        ]
        for worker in workers if spare_core else ():
            os.sched_setaffinity(worker.pid, WORKER_CORES)
        outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit("the bare loop failed")
    return throughput(json.loads(outputs[0].splitlines()[-1]), skip)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="a built corpus")
    parser.add_argument("--workers", default="1,2", help="numbers of workers to measure")
    for name, value in (
        ("samples", 1024),
        ("batch", 32),
        ("segment", 8192),
        ("hidden", 128),
        ("layers", 2),
        ("rounds", 3),
        ("skip", 4),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--spare-core",
        action="store_true",
        help="workers share one core, Ray's own processes have the others",
    )
    options = parser.parse_args()
    if options.spare_core and not OTHER_CORES:
        raise SystemExit("--spare-core needs two cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        values = {
            "storage": f"{folder}/runs",
            "corpus": str(Path(options.corpus).absolute()),
            "tiny": {"hidden": options.hidden, "layers": options.layers, "language_steps": 0},
            "model": {"lora_dropout": 0.0, "max_tokens": 2048},
            "schedule": {"mode": "domain_only", "segment_samples": options.segment},
            "train": {"global_batch": options.batch, "max_samples": options.samples},
            "checkpoint": {"every_samples": 10**9},
            "data": {"domains": pretraining_domains(options.corpus)},
        }
        recipe.write_text(json.dumps(values))
        for world_size in map(int, options.workers.split(",")):
            ours = []
            peer = []
            for round_number in range(options.rounds):
                run = folder / "runs" / f"workers-{world_size}-{round_number}"
                arguments = (recipe, run, world_size, options.skip, options.spare_core)
                ours.append(run_on_ray(*arguments))
                peer.append(run_bare(*arguments))
            print_comparison(world_size, ours, peer)


def print_comparison(
    world_size: int, ours: Sequence[tuple[float, float]], peer: Sequence[tuple[float, float]]
) -> None:
    """Prints the line of a number of workers; ours and peer hold one throughput per round."""
    ratios = sorted(a[0] / b[0] for a, b in zip(ours, peer, strict=True))
    our_rate, peer_rate = (median(rate for rate, _ in side) for side in (ours, peer))
    waiting = median(fraction for _, fraction in ours)
    print(
        f"Ray against the bare loop, {world_size} worker(s) {our_rate:>10,.0f} {peer_rate:>10,.0f}"
        f" useful tokens/s  ratio {median(ratios):.3f}  ({ratios[0]:.3f} .. {ratios[-1]:.3f});"
        f" waiting for data {waiting:.2%}",
        flush=True,
    )


def pretraining_domains(corpus_uri: str) -> list[str]:
    """Returns the domains that a corpus holds for pre-training."""
    sources = {stream.source for stream in Corpus.open(corpus_uri).streams()}
    return sorted(source.name for source in sources if source.kind is SourceKind.DOMAIN)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        run_folder, recipe_path, workers, store_file, own_rank = sys.argv[2:7]
        bare_worker(Path(run_folder), recipe_path, int(own_rank), int(workers), store_file)
    else:
        main()
