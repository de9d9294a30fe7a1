"""What the schedule costs.

    python benchmarks/controller.py            planning at 1e6, 1e8, 1e9 samples; hand-over to 2 and to 512 workers; resume against skipping
    python benchmarks/controller.py --live     also on Ray: gap at a segment switch, latency from an append to its first trained sample

Each line: name, ours, peer or unit, ratio. Medians of interleaved repetitions; no figure is checked against a limit here.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

import ray
import torch
from torch.utils.data import DataLoader, IterableDataset

from cluster.ray_session import ray_session
from corpus import append, build
from corpus.ingest import simulation
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.schedule.controller import Controller, Segment
from cprec.schedule.plan import Plan, Portion
from cprec.schedule.planning import PlanSettings, extend_plan, build_plan
from cprec.stream.segments import read_worker_batches
from cprec.train.distributed import controller_actor
from cprec.runs.control_channel import Owner

SEGMENT, BATCH, REPEATS = 8192, 128, 7


def plan_of(samples: int, domains: int = 20) -> Plan:
    """A plan over domains of falling size, a fifth of it mixed."""
    weights = [1 / (i + 1) for i in range(domains)]
    counts = [int(samples * 0.8 * w / sum(weights)) for w in weights]
    counts[0] += int(samples * 0.8) - sum(counts)
    domain = [Portion(f"domain/{i}", 0, 0, n) for i, n in enumerate(counts)]
    return build_plan(
        PlanSettings(0, 5e-6, 5e-4, 0.05), domain, [Portion("mixed", 0, 0, samples - sum(counts))]
    )


def seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time of a call."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def planning() -> None:
    """Time and memory to make a plan and to order one segment of it, far inside."""
    for samples in (10**6, 10**8, 10**9):
        plan = plan_of(samples)
        start = plan.wsa.stable_end - 3 * SEGMENT
        tracemalloc.start()
        plan.find_era(start).locate_rows(start, start + SEGMENT)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        made, ordered = (
            seconds(lambda n=samples: plan_of(n)),
            seconds(lambda p=plan, s=start: p.find_era(s).locate_rows(s, s + SEGMENT)),
        )
        print(
            f"plan {samples:.0e}: make {made * 1e3:.3f} ms, a segment of {SEGMENT} {ordered * 1e3:.3f} ms, peak {peak / 2**20:.2f} MiB"
        )
    plan = plan_of(10**9)
    for version in range(1, 101):
        plan = extend_plan(
            plan,
            version * SEGMENT + plan.wsa.warmup_end,
            [Portion(f"domain/{version % 20}", version, 0, 10**5)],
            [],
            None,
        )
    start = plan.wsa.stable_end - 3 * SEGMENT
    print(
        f"plan 1e9 after 100 appends: a segment {seconds(lambda: plan.find_era(start).locate_rows(start, start + SEGMENT)) * 1e3:.3f} ms"
    )


def hand_over() -> None:
    """Time for all workers of a group to be told their segment, the state machine alone."""
    plan = plan_of(10**9)
    for world in (2, 512):

        def tell(world: int = world) -> None:
            controller = Controller(plan, BATCH, SEGMENT)
            for _ in range(world):
                segment = controller.issue_segment(0)
                assert isinstance(segment, Segment)

        print(f"hand-over of a segment to {world} workers: {seconds(tell) * 1e3:.3f} ms")


class Rows(IterableDataset):  # type: ignore[type-arg]
    """A stream as a trainer that skips sees it: every sample before the resumed one is made again."""

    def __init__(self, samples: int, tokens: int = 200) -> None:
        self._samples, self._tokens = samples, tokens

    def __iter__(self):  # type: ignore[no-untyped-def]
        for i in range(self._samples):
            yield torch.full((self._tokens,), i % 997)


def resume() -> None:
    """The first batch after a resume at 90 % of an epoch: from the ledger's position, against skipping batches as HF Trainer does."""
    from accelerate import skip_first_batches

    samples = 100_000
    plan = plan_of(samples)
    at = int(0.9 * plan.wsa.stable_end) // BATCH * BATCH

    def ours() -> None:
        segment = Controller(plan, BATCH, SEGMENT, samples=at).issue_segment(at)
        assert isinstance(segment, Segment)
        segment.era.locate_rows(segment.start, segment.start + BATCH)

    def skipping() -> None:
        next(iter(skip_first_batches(DataLoader(Rows(samples), batch_size=BATCH), at // BATCH)))

    own, peer = [], []
    for _ in range(5):
        own.append(seconds(ours, 1))
        peer.append(seconds(skipping, 1))
    a, b = statistics.median(own), statistics.median(peer)
    print(
        f"resume at 90 % of {samples:,} samples: plan {a * 1e3:.2f} ms, skipping {b * 1e3:.0f} ms, ratio {b / a:.0f}"
    )


LIVE = {
    "run": "live",
    "data": {
        "format": "simulated",
        "domains": ["Garden", "Office", "Sports", "Music"],
        "held_out": ["Games"],
    },
    "simulate": {"users": 400, "items_per_domain": 100},
    "model": {"max_tokens": 512},
    "tiny": {"language_steps": 0},
    "schedule": {"segment_samples": 512, "poll_samples": 512},
    "train": {"global_batch": 32},
    "workers": 2,
}


def live() -> None:
    """A run of two workers on Ray: the wait of the step after a segment switch as a share of a step, the time from an append to its first trained
    sample, and what a segment costs from the question to the first batch when nothing was started ahead."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        values = {
            **LIVE,
            "storage": f"{place}/runs",
            "corpus": f"{place}/corpus",
            "data": {**LIVE["data"], "root": f"{place}/shoppers"},
        }  # type: ignore[dict-item]
        whole = validate_recipe(values, "the benchmark")
        simulation.write_data_root(whole.data, whole.simulate, whole.seed)
        values["data"] = {
            "root": f"{place}/shoppers",
            "domains": ["Garden", "Office", "Sports"],
            "held_out": ["Games"],
        }
        recipe = place / "recipe.yaml"
        recipe.write_text(json.dumps(values))
        first = validate_recipe(values, "the benchmark")
        build.build(first.data, first.seed, first.corpus, lambda _: None)
        trace = place / "runs" / "live" / "trace.jsonl"
        with subprocess.Popen(
            [sys.executable, "jobs/cpt.py", str(recipe)], cwd=ROOT, stdout=subprocess.DEVNULL
        ) as process:
            wait_for(lambda: len(rows(trace)) >= 40, process)
            began = time.time()
            joined = validate_recipe(
                {**values, "data": {**values["data"], "domains": ["Music"]}}, "the benchmark"
            )  # type: ignore[dict-item]
            append.append(joined.data, joined.seed, joined.corpus, lambda _: None)
            committed = time.time()
            wait_for(lambda: any("domain/Music" in row["sources"] for row in rows(trace)), process)
            print(
                f"append: commit {committed - began:.1f} s; first trained sample of it {time.time() - committed:.1f} s after the commit"
            )
            process.wait()
        done = rows(trace)
        step = statistics.median(row["step_s"] for row in done)
        waits = [row["data_wait_s"] for row in done[1:] if row["samples"] % 512 == 0]
        wait = statistics.median(waits)
        print(
            f"segment switch: median wait {wait * 1e3:.1f} ms in {len(waits)}, step {step * 1e3:.0f} ms, ratio {wait / step:.3f}"
        )
        asked(first, f"{place}/runs/live")


def asked(recipe: Recipe, run: str) -> None:
    """Two real workers, as Ray actors, ask the controller of a finished run for its first segments, again and again."""
    with ray_session("local", 4):
        settings = controller_actor.ControllerSettings(
            "live",
            run,
            recipe.corpus,
            str(next((Path(run).parent / "bases").iterdir())),
            None,
            512,
            32,
            512,
            512,
            None,
        )
        controller = controller_actor.start_controller(settings, Owner.this_process())
        ray.get(controller.begin_attempt.remote(controller_actor.WorkerGroup(99, 2, 0, None), []))
        workers = [ray.remote(num_cpus=0)(Asker).remote(controller, rank) for rank in range(2)]
        told, streamed = [], []
        for turn in range(REPEATS + 1):
            found = ray.get([worker.ask.remote(512 * turn) for worker in workers])
            if turn:  # the first one starts processes
                told.append(max(seconds for seconds, _ in found))
                streamed.append(max(seconds for _, seconds in found))
        print(
            f"segment on 2 real workers: told after {statistics.median(told) * 1e3:.1f} ms, first batch {statistics.median(streamed) * 1e3:.0f} ms"
        )


class Asker:
    """A worker that asks for segments and reads them."""

    def __init__(self, controller: Any, rank: int) -> None:
        self._controller, self._rank = controller, rank

    def ask(self, position: int) -> tuple[float, float]:
        """Seconds until the controller answered, and until the first batch was there."""
        began = time.perf_counter()
        handed = ray.get(self._controller.issue_segment.remote(99, position, self._rank))
        told = time.perf_counter() - began
        batches = read_worker_batches(handed.iterator, handed.segment, self._rank)
        next(batches)
        first = time.perf_counter() - began
        for _ in batches:
            pass
        return told, first


def rows(trace: Path) -> list[dict[str, Any]]:
    """The trace so far."""
    if not trace.exists():
        return []
    return [
        json.loads(line)
        for line in trace.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]


def wait_for(reached: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Wait for a condition while a process lives."""
    while not reached():
        if process.poll() is not None:
            raise SystemExit(
                f"the run ended with exit code {process.returncode} before what was waited for"
            )
        time.sleep(0.2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--live", action="store_true")
    options = parser.parse_args()
    planning()
    hand_over()
    resume()
    if options.live:
        live()
