"""Measures what the schedule costs.

    python benchmarks/controller.py            planning, segments, 1,024 workers, resuming
    python benchmarks/controller.py --live     also on Ray: segment switches and an append

Without Ray: planning at 1e6, 1e8 and 1e9 samples, handing a segment to 2 and to 512 workers, the
controller of a run with 1,024 simulated workers (fleet.py), and the first batch after a resume
against skipping batches. With --live: calls of a controller, the wait at a segment switch, the time
from an append to its first trained sample, and a segment that nobody requested ahead.
Prints medians; no figure is checked against a limit.
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
from corpus.store.tables import Corpus
from cprec.config.recipe_file import validate_recipe
from cprec.config.recipe import Recipe
from cprec.encode.prompt import TABLE1
from cprec.runs.control.lease import claim
from cprec.schedule.controller import Controller, Segment
from cprec.schedule.plan import Plan, Portion
from cprec.schedule.planning import PlanSettings, build_plan, extend_plan
from cprec.stream.row_encoder import RowEncoder
from cprec.stream.segments import read_worker_batches
from cprec.train.distributed.controller_actor import start_controller
from cprec.train.distributed.controller_state import ControllerSettings, WorkerGroup

from fleet import benchmark_workers

SEGMENT = 8192
"""Samples of a segment."""
BATCH = 128
"""Samples of a global batch."""
REPEATS = 7


def example_plan(samples: int, domains: int = 20) -> Plan:
    """Returns a plan over domains of falling size; a fifth of its samples are mixed."""
    weights = [1 / (i + 1) for i in range(domains)]
    counts = [int(samples * 0.8 * w / sum(weights)) for w in weights]
    counts[0] += int(samples * 0.8) - sum(counts)
    portions = [Portion(f"domain/{i}", 0, 0, n) for i, n in enumerate(counts)]
    mixed = Portion("mixed", 0, 0, samples - sum(counts))
    return build_plan(PlanSettings(0, 5e-6, 5e-4, 0.05), portions, [mixed])


def median_seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Returns the median wall time of a call [seconds]."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def order_segment(plan: Plan, start: int) -> None:
    """Computes the rows of the segment at a position of the plan."""
    plan.find_era(start).locate_rows(start, start + SEGMENT)


def benchmark_planning() -> None:
    """Prints time and memory of making a plan, and of ordering one segment deep inside it."""
    for samples in (10**6, 10**8, 10**9):
        plan = example_plan(samples)
        start = plan.wsa.stable_end - 3 * SEGMENT
        tracemalloc.start()
        order_segment(plan, start)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        plan_s = median_seconds(lambda n=samples: example_plan(n))
        segment_s = median_seconds(lambda p=plan, s=start: order_segment(p, s))
        print(
            f"plan {samples:.0e}: make {plan_s * 1e3:.3f} ms,"
            f" a segment of {SEGMENT} {segment_s * 1e3:.3f} ms, peak {peak_bytes / 2**20:.2f} MiB"
        )
    plan = example_plan(10**9)
    for version in range(1, 101):
        plan = extend_plan(
            plan,
            version * SEGMENT + plan.wsa.warmup_end,
            [Portion(f"domain/{version % 20}", version, 0, 10**5)],
            [],
            None,
        )
    start = plan.wsa.stable_end - 3 * SEGMENT
    segment_s = median_seconds(lambda: order_segment(plan, start))
    print(f"plan 1e9 after 100 appends: a segment {segment_s * 1e3:.3f} ms")


def benchmark_hand_over() -> None:
    """Prints the time to hand a segment to every worker of a group: the state machine alone."""
    plan = example_plan(10**9)
    for world_size in (2, 512):

        def hand_over(world_size: int = world_size) -> None:
            controller = Controller(plan, BATCH, SEGMENT)
            for _ in range(world_size):
                segment = controller.issue_segment(0)
                assert isinstance(segment, Segment)

        seconds = median_seconds(hand_over)
        print(f"hand-over of a segment to {world_size} workers: {seconds * 1e3:.3f} ms")


class Rows(IterableDataset):  # type: ignore[type-arg]
    """A stream of samples of which a trainer that resumes has to produce and skip the first."""

    def __init__(self, samples: int, tokens: int = 200) -> None:
        self._samples = samples
        self._tokens = tokens

    def __iter__(self):  # type: ignore[no-untyped-def]
        for i in range(self._samples):
            yield torch.full((self._tokens,), i % 997)


def benchmark_resume() -> None:
    """Prints the time to the first batch after a resume at 90 % of an epoch.

    Ours computes it from the position in the ledger; the peer skips batches, as Hugging Face's
    Trainer does.
    """
    from accelerate import skip_first_batches

    samples = 100_000
    plan = example_plan(samples)
    position = int(0.9 * plan.wsa.stable_end) // BATCH * BATCH

    def compute_position() -> None:
        segment = Controller(plan, BATCH, SEGMENT, samples=position).issue_segment(position)
        assert isinstance(segment, Segment)
        segment.era.locate_rows(segment.start, segment.start + BATCH)

    def skip_batches() -> None:
        loader = DataLoader(Rows(samples), batch_size=BATCH)
        next(iter(skip_first_batches(loader, position // BATCH)))

    our_times = []
    peer_times = []
    for _ in range(5):
        our_times.append(median_seconds(compute_position, 1))
        peer_times.append(median_seconds(skip_batches, 1))
    ours = statistics.median(our_times)
    peer = statistics.median(peer_times)
    print(
        f"resume at 90 % of {samples:,} samples: plan {ours * 1e3:.2f} ms,"
        f" skipping {peer * 1e3:.0f} ms, ratio {peer / ours:.0f}"
    )


LIVE_SEGMENT = 1024
LIVE_BATCH = 32
LIVE_RECIPE: dict[str, Any] = {
    "run": "live",
    "data": {
        "format": "simulated",
        "domains": ["Garden", "Office", "Sports", "Music"],
        "held_out": ["Games"],
    },
    "simulate": {"users": 400, "items_per_domain": 100},
    "model": {"max_tokens": 512},
    "tiny": {"language_steps": 0},
    "schedule": {"segment_samples": LIVE_SEGMENT, "poll_samples": LIVE_SEGMENT},
    "train": {"global_batch": LIVE_BATCH},
    "workers": 2,
}


def benchmark_live() -> None:
    """Trains with two workers on Ray, appends a domain meanwhile, and prints what they waited for.

    That is: the wait of the step after a segment switch as a fraction of a step; the time from the
    append to its first trained sample; and the time from a request for a segment to its first batch
    if nothing was started ahead.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = f"{folder}/shoppers"

        def recipe_with(**data: Any) -> dict[str, Any]:
            """Returns the values of the recipe with another section `data`."""
            storage = {"storage": f"{folder}/runs", "corpus": f"{folder}/corpus"}
            return {**LIVE_RECIPE, **storage, "data": {"root": root, **data}}

        # All four domains are simulated; the corpus begins with three of them.
        everything = validate_recipe(recipe_with(**LIVE_RECIPE["data"]), "the benchmark")
        simulation.write_data_root(everything.data, everything.simulate, everything.seed)
        values = recipe_with(domains=["Garden", "Office", "Sports"], held_out=["Games"])
        recipe_file = folder / "recipe.yaml"
        recipe_file.write_text(json.dumps(values))
        recipe = validate_recipe(values, "the benchmark")
        build.build(recipe.data, recipe.seed, recipe.corpus, lambda _: None)
        trace = folder / "runs" / "live" / "trace.jsonl"
        with subprocess.Popen(
            [sys.executable, "jobs/cpt.py", str(recipe_file)], cwd=ROOT, stdout=subprocess.DEVNULL
        ) as process:
            wait_for(lambda: len(read_trace(trace)) >= 40, process)
            began = time.time()
            appended = validate_recipe(
                recipe_with(domains=["Music"], held_out=["Games"]), "the benchmark"
            )
            append.append(appended.data, appended.seed, appended.corpus, lambda _: None)
            committed = time.time()
            wait_for(
                lambda: any("domain/Music" in row["sources"] for row in read_trace(trace)), process
            )
            print(
                f"append: commit {committed - began:.1f} s;"
                f" first trained sample of it {time.time() - committed:.1f} s after the commit"
            )
            process.wait()
        rows = read_trace(trace)
        step = statistics.median(row["step_s"] for row in rows)
        waits = [row["data_wait_s"] for row in rows[1:] if row["samples"] % LIVE_SEGMENT == 0]
        wait = statistics.median(waits)
        print(
            f"segment switch: median wait {wait * 1e3:.1f} ms in {len(waits)},"
            f" step {step * 1e3:.0f} ms, ratio {wait / step:.3f}"
        )
        benchmark_requests(recipe, f"{folder}/runs/live")


def benchmark_requests(recipe: Recipe, run_uri: str) -> None:
    """Lets two Ray actors request the first segments of a finished run, one after the other."""
    with ray_session("local", 4), claim(run_uri, "live", recipe.corpus, print) as held:
        settings = ControllerSettings(
            run="live",
            run_uri=run_uri,
            corpus_uri=recipe.corpus,
            row_encoder=RowEncoder.from_corpus(
                Corpus.open(recipe.corpus),
                str(next((Path(run_uri).parent / "bases").iterdir())),
                None,
                512,
                TABLE1,
            ),
            global_batch_size=LIVE_BATCH,
            segment_samples=LIVE_SEGMENT,
            poll_samples=LIVE_SEGMENT,
            max_domain_samples=None,
            replay_share=0.0,
            min_annealing_share=0.0,
        )
        controller = start_controller(settings, held.lease)
        group = WorkerGroup(attempt=99, world_size=2, samples=0, checkpoint_uri=None)
        ray.get(controller.begin_attempt.remote(group, []))
        benchmark_calls(controller)
        requesters = [
            ray.remote(num_cpus=0)(Requester).remote(controller, group.attempt, rank)
            for rank in range(group.world_size)
        ]
        answer_s = []
        first_batch_s = []
        for round_number in range(REPEATS + 1):
            position = LIVE_SEGMENT * round_number
            times = ray.get([requester.request.remote(position) for requester in requesters])
            if round_number:  # the first round starts processes
                answer_s.append(max(answered for answered, _ in times))
                first_batch_s.append(max(first_batch for _, first_batch in times))
        print(
            "segment on 2 real workers:"
            f" handed out after {statistics.median(answer_s) * 1e3:.1f} ms,"
            f" first batch {statistics.median(first_batch_s) * 1e3:.0f} ms"
        )


def benchmark_calls(controller: Any, calls: int = 2000) -> None:
    """Prints how many calls a second a controller on Ray answers that has nothing to do for them.

    One process sends them, all at once.
    """
    ray.get(controller.notices.remote())
    seconds = median_seconds(
        lambda: ray.get([controller.notices.remote() for _ in range(calls)]), repeats=3
    )
    print(f"calls of a controller on Ray: {calls / seconds:,.0f}/s")


class Requester:
    """A worker that requests segments and reads them without training."""

    def __init__(self, controller: Any, attempt: int, rank: int) -> None:
        self._controller = controller
        self._attempt = attempt
        self._rank = rank

    def request(self, position: int) -> tuple[float, float]:
        """Requests the segment at a position and reads it to its end.

        Returns:
            Seconds until the controller answered, and until the first batch arrived.
        """
        began = time.perf_counter()
        assigned = ray.get(
            self._controller.issue_segment.remote(self._attempt, position, self._rank)
        )
        answered = time.perf_counter() - began
        batches = read_worker_batches(assigned.iterator, assigned.segment, self._rank)
        next(batches)
        first_batch = time.perf_counter() - began
        for _ in batches:
            pass
        return answered, first_batch


def read_trace(trace: Path) -> list[dict[str, Any]]:
    """Returns the rows of a trace so far; a last line that is still being written is left out."""
    if not trace.exists():
        return []
    return [
        json.loads(line)
        for line in trace.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Waits until a condition holds; fails if the process ends before."""
    while not condition():
        if process.poll() is not None:
            raise SystemExit(
                f"jobs/cpt.py ended with exit code {process.returncode} before the benchmark could"
                " measure it"
            )
        time.sleep(0.2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--live", action="store_true", help="also measure a run on Ray")
    options = parser.parse_args()
    benchmark_planning()
    benchmark_hand_over()
    benchmark_workers()
    benchmark_resume()
    if options.live:
        benchmark_live()
