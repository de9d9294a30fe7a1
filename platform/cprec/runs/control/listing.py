"""How all runs below a storage stand, by one look at each: a few small reads, whatever its length.

A run is a folder that a driver or a controller has written to. Nobody is waited for: what one look
cannot tell is `unknown`, and `cprec.runs.control.status.describe_run` looks longer.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster.errors import CprecError
from cluster.storage import list_names
from cprec.config.recipe import RESERVED_RUN_NAMES
from cprec.runs.checkpoint import checkpoint_uri, is_complete, list_checkpoints
from cprec.runs.control.liveness import Liveness, judge, read_lease
from cprec.runs.control.status import describe_state, read_status
from cprec.runs.json_lines import read_newest_step
from cprec.runs.records import run_folder

READERS = 16
"""Runs that are looked at at a time."""


@dataclass(frozen=True)
class RunOverview:
    """How a run stands; what it has not told is None.

    Attributes:
        run: Name of the run.
        state: What it does, for people: training, waiting, ended, ...
        phase: Phase of the schedule.
        samples: Samples seen.
        planned: Samples of the plan (A).
        loss: Loss of the newest step (nats per supervised token).
        checkpoint: Newest complete checkpoint (URI).
        corpus: Corpus that it trains on (URI).
        corpus_version: Newest corpus version in its plan.
        seen: Its last sign of life (Unix seconds).
    """

    run: str
    state: str
    phase: str | None = None
    samples: int | None = None
    planned: int | None = None
    loss: float | None = None
    checkpoint: str | None = None
    corpus: str | None = None
    corpus_version: int | None = None
    seen: float | None = None


def list_runs(storage: str) -> list[RunOverview]:
    """Lists the runs below a storage (absolute URI), by name."""
    names = [name for name in list_names(storage) if name not in RESERVED_RUN_NAMES]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda name: look_at_run(storage, name), names)
        return [run for run in found if run is not None]


def look_at_run(storage: str, run: str) -> RunOverview | None:
    """Looks at one folder below a storage (absolute URI); None if it is not a run's."""
    run_uri = run_folder(storage, run)
    try:
        lease, status = read_lease(run_uri), read_status(run_uri)
        if lease is None and status is None:
            return None
        liveness = judge(lease)
        unknown = liveness is Liveness.UNKNOWN
        step = read_newest_step(run_uri)
        return RunOverview(
            run,
            # Without the time that it tells: that is `seen`.
            "unknown" if unknown else describe_state(lease, liveness, status).partition(" (")[0],
            None if status is None or status.phase is None else status.phase.value,
            None if status is None else status.samples,
            None if status is None else status.annealing_end,
            None if step is None else step.loss,
            next(_complete_checkpoints(run_uri), None),
            lease.corpus if lease is not None else None if status is None else status.corpus,
            None if status is None else status.corpus_version,
            max(record.time for record in (lease, status) if record is not None),
        )
    except (CprecError, OSError) as error:  # another run's files must not keep the list
        return RunOverview(run, f"unreadable: {error}")


def _complete_checkpoints(run_uri: str) -> Iterator[str]:
    """Yields the complete checkpoints of a run (URIs), the newest first."""
    for name in list_checkpoints(run_uri):
        if is_complete(run_uri, name):
            yield checkpoint_uri(run_uri, name)
