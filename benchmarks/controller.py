"""What the schedule costs.

    python benchmarks/controller.py            planning at 1e6, 1e8, 1e9 samples; hand-over to 2 and to 512 workers; resume against skipping
    python benchmarks/controller.py --live     also on Ray: gap at a segment switch, latency from an append to its first trained sample

Each line: name, ours, peer or unit, ratio. Medians of interleaved repetitions; no figure is checked against a limit here.
"""

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "platform")]

import torch
from torch.utils.data import DataLoader, IterableDataset

from cprec.schedule.controller import Controller, Segment
from cprec.schedule.plan import Plan, Portion
from cprec.schedule.planning import Rules, adopt, make

SEGMENT, BATCH, REPEATS = 8192, 128, 7


def plan_of(samples: int, domains: int = 20) -> Plan:
    """A plan over domains of falling size, a fifth of it mixed."""
    weights = [1 / (i + 1) for i in range(domains)]
    counts = [int(samples * 0.8 * w / sum(weights)) for w in weights]
    counts[0] += int(samples * 0.8) - sum(counts)
    domain = [Portion(f"domain/{i}", 0, 0, n) for i, n in enumerate(counts)]
    return make(Rules(0, 5e-6, 5e-4, 0.05), domain, [Portion("mixed", 0, 0, samples - sum(counts))])


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
        plan.era(start).order(start, start + SEGMENT)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        made, ordered = seconds(lambda n=samples: plan_of(n)), seconds(lambda p=plan, s=start: p.era(s).order(s, s + SEGMENT))
        print(f"plan {samples:.0e}: make {made * 1e3:.3f} ms, a segment of {SEGMENT} {ordered * 1e3:.3f} ms, peak {peak / 2**20:.2f} MiB")
    plan = plan_of(10**9)
    for version in range(1, 101):
        plan = adopt(plan, version * SEGMENT + plan.wsa.warmup_end, [Portion(f"domain/{version % 20}", version, 0, 10**5)], [], None)
    start = plan.wsa.stable_end - 3 * SEGMENT
    print(f"plan 1e9 after 100 appends: a segment {seconds(lambda: plan.era(start).order(start, start + SEGMENT)) * 1e3:.3f} ms")


def hand_over() -> None:
    """Time for all workers of a group to be told their segment, the state machine alone."""
    plan = plan_of(10**9)
    for world in (2, 512):

        def tell(world: int = world) -> None:
            controller = Controller(plan, BATCH, SEGMENT)
            for _ in range(world):
                segment = controller.segment(0)
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
        segment = Controller(plan, BATCH, SEGMENT, samples=at).segment(at)
        assert isinstance(segment, Segment)
        segment.era.order(segment.start, segment.start + BATCH)

    def skipping() -> None:
        next(iter(skip_first_batches(DataLoader(Rows(samples), batch_size=BATCH), at // BATCH)))

    own, peer = [], []
    for _ in range(5):
        own.append(seconds(ours, 1))
        peer.append(seconds(skipping, 1))
    a, b = statistics.median(own), statistics.median(peer)
    print(f"resume at 90 % of {samples:,} samples: plan {a * 1e3:.2f} ms, skipping {b * 1e3:.0f} ms, ratio {b / a:.0f}")


def live() -> None:
    """A run on Ray with simulated shoppers: the wait at segment switches as a share of a step, and the latency of an append."""
    from benchmarks.controller_live import measure

    measure()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", action="store_true")
    options = parser.parse_args()
    planning()
    hand_over()
    resume()
    if options.live:
        live()
