"""The training run on Ray: the controller's actor, the group of workers, and what the driver sees of them.

Only this file, `actor.py`, `worker.py` and `feed.py` know Ray; what they drive (plan, controller, shares, loop, engine, checkpoints) does not.
"""

import json
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.console import Say
from cluster.errors import PlatformFault, UserError
from cluster.storage import join
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.runs import checkpoint
from cprec.runs.audit import audit
from cprec.runs.json_lines import read_trace
from cprec.runs.records import AuditReport, PerplexityMeasured, TraceRow
from cprec.runs.status import current_owner
from cprec.schedule.plan import Plan
from cprec.stream.segments import read_plan_rows, streams_by_key
from cprec.stream.token_sharing import TokenSharing
from cprec.train.distributed.controller_actor import start_controller
from cprec.train.distributed.controller_state import ControllerSettings

ProgressCallback = Callable[[list[TraceRow], list[PerplexityMeasured], bool], None]
"""Told now and then, on the driver, of new trace rows and perplexities (events), and whether the run waits for new samples."""

POLL_S = 1.0

MAX_TEXT_CHARACTERS = 1 << 19
"""Of the text whose perplexity is measured, what is sent to the workers: more than the tokens that they measure (train.monitor)."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a training run needs, checked. base: what workers load; text: whose perplexity is measured on the way."""

    recipe: Recipe
    run_uri: str
    base: str
    corpus: Corpus
    perplexity_text: str | None = None


def run_training(job: TrainingJob, on_progress: ProgressCallback, say: Say) -> None:
    """Train what is left of the plan, inside a Ray session. Returns when the last checkpoint is complete.

    Ctrl-C saves a checkpoint and then raises KeyboardInterrupt; the second one raises it at once.
    Raises the workers' UserError or Diverged as it was raised, without trying again; PlatformFault for anything else once train.max_failures restarts
    are used up.
    """
    recipe = job.recipe
    schedule, train = recipe.schedule, recipe.train
    settings = ControllerSettings(
        run=recipe.run,
        run_uri=job.run_uri,
        corpus_uri=job.corpus.uri,
        base=job.base,
        revision=recipe.model.revision,
        max_tokens=recipe.model.max_tokens,
        token_sharing=TokenSharing(train.targets_per_pass, train.shared_candidates),
        global_batch_size=train.global_batch,
        segment_samples=schedule.segment_samples,
        poll_samples=schedule.poll_samples,
        max_domain_samples=train.max_samples,
        replay_fraction=schedule.replay_share,
    )
    controller = start_controller(settings, current_owner())
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={
            "recipe": json.loads(recipe.model_dump_json()),
            "run_uri": job.run_uri,
            "base": job.base,
            "controller": controller,
            "text": None
            if job.perplexity_text is None
            else job.perplexity_text[:MAX_TEXT_CHARACTERS],
        },
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
            name=uuid.uuid4().hex[:12],
            storage_path=join(job.run_uri, "ray"),
            failure_config=FailureConfig(max_failures=recipe.train.max_failures),
        ),
        torch_config=TorchConfig(backend="nccl" if recipe.train.gpus_per_worker else "gloo"),
    )
    try:
        _train_and_poll(trainer, controller, on_progress, say)
        if (failure := ray.get(controller.failure.remote(), timeout=60)) is not None:
            raise failure
    except TrainingFailedError as error:
        raise _training_error(error) from error
    finally:
        # A dead controller must not hide what it died of; its state goes stale by itself.
        with suppress(ray.exceptions.RayError):
            ray.get(controller.end_run.remote(), timeout=60)


def _run_worker(config: dict[str, Any]) -> None:
    """A worker's part. Its imports are its own: PEFT, DeepSpeed and a model's code are seconds that the driver need not wait for."""
    from cprec.train.distributed import worker

    worker.run_worker(config)


def _train_and_poll(
    trainer: TorchTrainer, controller: Any, on_progress: ProgressCallback, say: Say
) -> None:
    """Train to the end, and meanwhile ask the controller for new trace rows.

    Training has a thread of its own: in the main thread Ray would take Ctrl-C for itself, and end the workers at once.
    """
    failures: list[BaseException] = []

    def train() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            failures.append(error)

    training = threading.Thread(target=train, daemon=True)
    training.start()
    seen, stopping = (0, 0), False
    with _catch_interrupts() as interrupted:
        while training.is_alive():
            training.join(POLL_S)
            if interrupted.is_set() and not stopping:
                stopping = True
                controller.stop.remote()
                say("interrupted: saving a checkpoint; once more ends at once")
            seen = _report_progress(controller, seen, on_progress)
    _report_progress(controller, seen, on_progress)
    if failures:
        raise failures[0]
    if stopping:
        raise KeyboardInterrupt


def _report_progress(
    controller: Any, reported: tuple[int, int], on_progress: ProgressCallback
) -> tuple[int, int]:
    """Show the trace rows and perplexities that were not seen yet. seen: their numbers; returns these as they are now."""
    try:
        rows, measured, waiting = ray.get(controller.progress.remote(*reported), timeout=30)
    except ray.exceptions.RayError:
        return reported  # it is being started again, or over; what it knew is on storage
    on_progress(rows, measured, waiting)
    return reported[0] + len(rows), reported[1] + len(measured)


@contextmanager
def _catch_interrupts() -> Iterator[threading.Event]:
    """While a `with` block runs, the first Ctrl-C (or SIGTERM, as of `ray job stop`) sets the event; the second ends the process as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _training_error(error: BaseException) -> Exception:
    """The error of the user in a failed training if there is one, else a fault that names the root."""
    failures = list(getattr(error, "worker_failures", {}).values())
    roots = [_root_cause(failure) for failure in failures] or [_root_cause(error)]
    for root in roots:
        if isinstance(root, UserError):
            return root
    # When one worker dies the others fail in their collectives: the first error that is not of that kind is the cause.
    telling = next((r for r in roots if isinstance(r, PlatformFault)), roots[0])
    return PlatformFault(f"training failed: {type(telling).__name__}: {telling}")


def _root_cause(error: BaseException) -> BaseException:
    while (
        cause := getattr(error, "cause", None) or error.__cause__
    ) is not None and cause is not error:
        error = cause
    return error


def audit_run(job: TrainingJob, plan: Plan) -> AuditReport:
    """The audit of a run, from its plan, its trace and the corpus."""
    streams = streams_by_key(Corpus.open(job.corpus.uri))

    def ids_at(start: int, stop: int) -> list[int]:
        rows = read_plan_rows(plan.find_era(start), streams, start, stop)
        return [int(i) for i in rows["sample_id"].to_numpy().view("uint64")]

    return audit(plan, read_trace(job.run_uri), ids_at)


def latest_checkpoint_uri(run_uri: str) -> str:
    """The newest valid checkpoint of a run. Raises PlatformFault when there is none."""
    name, ignored = checkpoint.find_latest(run_uri)
    if name is None:
        raise PlatformFault(f"{run_uri}: no checkpoint was completed; {'; '.join(ignored)}")
    return checkpoint.checkpoint_uri(run_uri, name)
