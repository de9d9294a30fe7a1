"""What Ray costs: useful tokens/s of jobs/cpt.py against the bare loop on the same samples in the same order.

    python benchmarks/overhead.py --corpus out/corpus [--workers 1,2] [--samples 1024] [--segment 8192] [--rounds 3] [--spare-core]

The bare loop is `cprec.train.loop` and the engine in as many processes, fed from memory: no Ray, no controller, no trace, no MLflow. Both train one
thread per worker. Seconds are the wall time of the steps and of waiting for data, from the trace and from the loop, without the first --skip steps;
starting and saving are not counted. Segments are as long as by default: what beginning one costs is in
benchmarks/controller.py. Rounds are interleaved; each line is `what ours peer ratio`, the ratio being the share of the bare loop's rate.

A GPU node has cores to spare for Ray's own processes; a small machine has none once every core trains. --spare-core makes the difference seen:
workers, on Ray and bare, share the first core, and everything else has the others.
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

import workload  # first: it makes the packages importable
import numpy as np
import psutil
import torch
import torch.distributed as dist

from corpus.store.tables import Corpus
from cprec.model import adapter, backbone
from cprec.config.recipe_file import load_recipe
from cprec.schedule.plan import Plan, global_batches
from cprec.stream.segments import (
    worker_batch_from_row,
    read_plan_rows,
    streams_by_key,
    to_worker_rows,
)
from cprec.encode.title_tokens import CachedPromptEncoder, tokenise_titles
from cprec.train.engine import Engine, micro_batch_spec
from cprec.train.loop import Observer, StepRecord, TrainingStep, train


FIRST, OTHERS = (
    set(part) for part in (sorted(os.sched_getaffinity(0))[:1], sorted(os.sched_getaffinity(0))[1:])
)
"""Cores of workers, and of everything else, with --spare-core."""


class Seconds(Observer):
    """Tokens and seconds of every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float, float]] = []

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        self.steps.append((record.batch.token_count, record.step_s, record.data_wait_s))


def works(
    plan: Plan, corpus: Corpus, words: object, max_tokens: int, batch: int, rank: int, world: int
) -> Iterator[TrainingStep]:
    """One worker's work of a whole plan, as the controller would hand it out."""
    stitcher = CachedPromptEncoder(tokenise_titles(corpus.read_titles(), words), max_tokens)  # type: ignore[arg-type]
    wsa = plan.wsa
    for era in (era for era in plan.eras if era.start < era.stop):
        rows = read_plan_rows(era, streams_by_key(corpus), era.start, era.stop)
        tokens, ids = stitcher.encode_samples(rows), rows["sample_id"].to_numpy().view(np.uint64)
        for start, stop in global_batches(era.start, era.stop, batch):
            piece = slice(start - era.start, stop - era.start)
            row = to_worker_rows(
                start, stop, tokens[piece], ids[piece], rows["source"].to_pylist()[piece], world
            )[rank]
            arrays = {name: np.asarray(row[name]) for name in ("ids", "input_ids")}
            yield TrainingStep(
                worker_batch_from_row({**row, **arrays, "sources": row["sources"]}),
                wsa.lr(start),
                wsa.phase(start),
                wsa.stable_end,
                wsa.annealing_end,
            )


def bare(run: Path, recipe_file: str, rank: int, world: int, meeting: str) -> None:
    """One process of the bare loop, over the plan that a run was trained on. Prints its steps as JSON."""
    recipe = load_recipe(recipe_file)
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    corpus = Corpus.open(recipe.corpus)
    plan = Plan.from_json(json.loads((run / "plan.json").read_text())["plan"])
    base = str(next((Path(recipe.storage) / "bases").iterdir()))
    model, words = backbone.load(base, None, recipe.model.precision)
    engine = Engine(
        adapter.attach(model, recipe.model, recipe.seed), recipe.train, recipe.model.precision
    )
    todo = list(
        works(plan, corpus, words, recipe.model.max_tokens, recipe.train.global_batch, rank, world)
    )
    seen = Seconds()
    train(engine, todo, seen, micro_batch_spec(recipe.train), int(words.eos_token_id), recipe.seed)  # type: ignore[arg-type]
    engine.close()
    print(json.dumps(seen.steps))


def rate(steps: Sequence[Sequence[float]], skip: int) -> tuple[float, float]:
    """Useful tokens per second, and the share of the time that was spent waiting for data. steps: (tokens, step_s, data_wait_s)."""
    counted = steps[skip:]
    waited, seconds = sum(s[2] for s in counted), sum(s[1] + s[2] for s in counted)
    return sum(s[0] for s in counted) / seconds, waited / seconds


def on_ray(recipe: Path, run: Path, world: int, skip: int, spare: bool) -> tuple[float, float]:
    words = [str(recipe), "--run", run.name, "--workers", str(world)]
    job = subprocess.Popen(
        [sys.executable, "jobs/cpt.py", *words], cwd=workload.ROOT, stdout=subprocess.DEVNULL
    )
    if spare:
        os.sched_setaffinity(job.pid, OTHERS)  # what it starts inherits it
    while job.poll() is None:
        if spare:
            pin_workers(job.pid)
        time.sleep(0.5)
    if job.returncode:
        raise SystemExit("jobs/cpt.py failed")
    rows = [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]
    return rate([(row["tokens"], row["step_s"], row["data_wait_s"]) for row in rows], skip)


def pin_workers(job: int) -> None:
    """Let Ray's training workers below a process run on the first core alone, with all their threads."""
    with suppress(psutil.Error, OSError):  # processes and threads come and go
        for process in psutil.Process(job).children(recursive=True):
            if process.cmdline()[:1] == ["ray::RayTrainWorker"]:
                for thread in process.threads():
                    os.sched_setaffinity(thread.id, FIRST)


def on_nothing(recipe: Path, run: Path, world: int, skip: int, spare: bool) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            __file__,
            "--bare",
            str(run),
            str(recipe),
            str(world),
            f"{folder}/meeting",
        ]
        started = [
            subprocess.Popen(
                [*command, str(rank)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(world)
        ]
        for process in started if spare else ():
            os.sched_setaffinity(process.pid, FIRST)
        outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("the bare loop failed")
    return rate(json.loads(outputs[0].splitlines()[-1]), skip)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="a built corpus")
    parser.add_argument("--workers", default="1,2")
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
    if options.spare_core and not OTHERS:
        raise SystemExit("--spare-core needs two cores")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        recipe = place / "recipe.yaml"
        values = {
            "storage": f"{place}/runs",
            "corpus": str(Path(options.corpus).absolute()),
            "tiny": {"hidden": options.hidden, "layers": options.layers, "language_steps": 0},
            "model": {"lora_dropout": 0.0, "max_tokens": 2048},
            "schedule": {"mode": "domain_only", "segment_samples": options.segment},
            "train": {"global_batch": options.batch, "max_samples": options.samples},
            "checkpoint": {"every_samples": 10**9},
            "data": {
                "domains": [source.removeprefix("domain/") for source in domains(options.corpus)]
            },
        }
        recipe.write_text(json.dumps(values))
        for world in map(int, options.workers.split(",")):
            ours, peer = [], []
            for turn in range(options.rounds):
                run = place / "runs" / f"workers-{world}-{turn}"
                ours.append(on_ray(recipe, run, world, options.skip, options.spare_core))
                peer.append(on_nothing(recipe, run, world, options.skip, options.spare_core))
            shares = sorted(a[0] / b[0] for a, b in zip(ours, peer, strict=True))
            rates = [median(seen[0] for seen in found) for found in (ours, peer)]
            print(
                f"Ray against the bare loop, {world} worker(s) {rates[0]:>10,.0f} {rates[1]:>10,.0f} useful tokens/s  ratio {median(shares):.3f}"
                f"  ({shares[0]:.3f} .. {shares[-1]:.3f}); waiting for data {median(seen[1] for seen in ours):.2%}",
                flush=True,
            )


def domains(corpus: str) -> list[str]:
    """The domains that a corpus pre-trains on."""
    return sorted(
        {s.source for s in Corpus.open(corpus).streams() if s.source.startswith("domain/")}
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare(Path(sys.argv[2]), sys.argv[3], int(sys.argv[6]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
