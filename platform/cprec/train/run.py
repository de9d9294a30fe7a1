"""The training run on Ray: the controller's actor, the group of workers, and what the driver sees of them.

Only this file, `actor.py` and `worker.py` know Ray; what they drive (plan, controller, shares, loop, engine, checkpoints) does not.
"""

import json
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.errors import PlatformFault, UserError
from cluster.storage import join
from corpus.table import Corpus
from cprec.recipe import Recipe
from cprec.schedule.plan import Plan
from cprec.stream.segments import read_positions, streams_of
from cprec.train import actor, checkpoint, worker
from cprec.train.audit import audit
from cprec.train.mailbox import Owner
from cprec.train.record import TRACE, read_lines

Watch = Callable[[list[dict[str, Any]], bool], None]
"""Told now and then, on the driver, of new trace rows, and whether the run waits for new samples."""

POLL_S = 1.0


@dataclass(frozen=True)
class Job:
    """Everything that a training run needs, checked. base: what workers load."""

    recipe: Recipe
    run_uri: str
    base: str
    corpus: Corpus


def fit(job: Job, watch: Watch) -> None:
    """Train what is left of the plan, inside a Ray session. Returns when the last checkpoint is complete.

    Raises the workers' UserError as it was raised, PlatformFault for anything else once train.max_failures restarts are used up.
    """
    recipe = job.recipe
    schedule, train = recipe.schedule, recipe.train
    settings = actor.Settings(
        run=recipe.run,
        run_uri=job.run_uri,
        corpus=job.corpus.uri,
        base=job.base,
        revision=recipe.model.revision,
        max_tokens=recipe.model.max_tokens,
        batch=train.global_batch,
        segment=schedule.segment_samples,
        poll=schedule.poll_samples,
        cap=train.max_samples,
    )
    controller = actor.start(settings, Owner.me())
    trainer = TorchTrainer(
        worker.run,
        train_loop_config={"recipe": json.loads(recipe.model_dump_json()), "run_uri": job.run_uri, "base": job.base, "controller": controller},
        scaling_config=ScalingConfig(
            num_workers=recipe.workers,
            use_gpu=recipe.train.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": recipe.train.cpus_per_worker,
                **({"GPU": recipe.train.gpus_per_worker} if recipe.train.gpus_per_worker else {}),
            },
        ),
        # A name of its own: Ray would otherwise restore its state of an earlier start, and checkpoints are ours alone.
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12], storage_path=join(job.run_uri, "ray"), failure_config=FailureConfig(max_failures=recipe.train.max_failures)
        ),
        torch_config=TorchConfig(backend="nccl" if recipe.train.gpus_per_worker else "gloo"),
    )
    with _Watcher(controller, watch):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from error
        finally:
            # A dead controller must not hide what it died of; its state goes stale by itself.
            with suppress(ray.exceptions.RayError):
                ray.get(controller.end.remote(), timeout=60)


class _Watcher:
    """Polls the controller for new trace rows while a `with` block runs, and once more at its end."""

    def __init__(self, controller: Any, watch: Watch) -> None:
        self._controller, self._watch = controller, watch
        self._seen = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _poll(self) -> None:
        over = False
        while not over:
            over = self._over.wait(POLL_S)
            try:
                rows, waiting = ray.get(self._controller.progress.remote(self._seen), timeout=30)
            except ray.exceptions.RayError:
                continue
            self._seen += len(rows)
            self._watch(rows, waiting)


def _cause(error: BaseException) -> Exception:
    """The error of the user in a failed training if there is one, else a fault that names the root."""
    failures = list(getattr(error, "worker_failures", {}).values())
    roots = [_root(failure) for failure in failures] or [_root(error)]
    for root in roots:
        if isinstance(root, UserError):
            return root
    # When one worker dies the others fail in their collectives: the first error that is not of that kind is the cause.
    telling = next((r for r in roots if isinstance(r, PlatformFault)), roots[0])
    return PlatformFault(f"training failed: {type(telling).__name__}: {telling}")


def _root(error: BaseException) -> BaseException:
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None and cause is not error:
        error = cause
    return error


def audit_run(job: Job, plan: Plan) -> dict[str, Any]:
    """The audit of a run, from its plan, its trace and the corpus."""
    streams = streams_of(Corpus.open(job.corpus.uri))

    def ids_at(start: int, stop: int) -> list[int]:
        rows = read_positions(plan.era(start), streams, start, stop)
        return [int(i) for i in rows["sample_id"].to_numpy().view("uint64")]

    return audit(plan, read_lines(join(job.run_uri, TRACE)), ids_at)


def last_checkpoint(run_uri: str) -> str:
    """The newest valid checkpoint of a run. Raises PlatformFault when there is none."""
    name, ignored = checkpoint.latest(run_uri)
    if name is None:
        raise PlatformFault(f"{run_uri}: no checkpoint was completed; {'; '.join(ignored)}")
    return checkpoint.uri_of(run_uri, name)
