"""The driver of a training run on Ray: starts controller and workers, and follows them."""

import json
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2.api.config import ScalingConfig

from cluster.console import Say
from cluster.errors import PlatformFault, UserError
from cluster.processes.imports import collector_at_rest
from cluster.processes.ray_threads import start_ray_thread
from cluster.ray_session import resolve_address
from cluster.storage import join
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.encode.prompt import PromptTemplate
from cprec.runs.control.lease import HeldLease
from cprec.schedule.objectives import Objectives
from cprec.stream.row_encoder import RowEncoder
from cprec.stream.sharing_groups import TokenSharing
from cprec.train.distributed.controller_actor import start_controller
from cprec.train.distributed.controller_state import ControllerSettings, RunNews
from cprec.train.distributed.elastic import ResizeAfterCheckpoint

NewsCallback = Callable[[RunNews], None]
"""Called on the driver, about once a second."""

POLL_S = 1.0
"""Seconds between two questions to the controller."""

MAX_TEXT_CHARACTERS = 1 << 19
"""Characters of the plain text that are sent to the workers, at most.

They hold more than the tokens that workers measure (`cprec.train.perplexity_monitor`).
"""


@dataclass(frozen=True)
class TrainingJob:
    """The checked inputs of a training run.

    Attributes:
        recipe: The recipe.
        run_uri: Folder of the run.
        base: Base model that workers load.
        corpus: The corpus, at the newest version that the plan has rows of.
        template: Template of the prompts.
        perplexity_text: Plain text whose perplexity is measured on the way; None: none is.
        revision: What the base must be: a commit, or a digest of its files.
    """

    recipe: Recipe
    run_uri: str
    base: str
    corpus: Corpus
    template: PromptTemplate
    perplexity_text: str | None = None
    revision: str | None = None


def build_row_encoder(job: TrainingJob) -> RowEncoder:
    """Encodes the titles of the corpus, inside a Ray session.

    It is done in the driver, where torch and transformers are already imported.
    """
    recipe, train = job.recipe, job.recipe.train
    return RowEncoder.from_corpus(
        job.corpus,
        job.base,
        job.revision,
        recipe.model.max_tokens,
        job.template,
        TokenSharing(train.targets_per_pass, train.shared_candidates),
        Objectives(recipe.seed, recipe.schedule.objectives),
    )


def run_training(
    job: TrainingJob, row_encoder: RowEncoder, held: HeldLease, on_news: NewsCallback, say: Say
) -> None:
    """Trains what is left of a plan, inside a Ray session, until the last checkpoint is complete.

    Ctrl-C, or a request to stop, lets the workers save a checkpoint and then raises
    KeyboardInterrupt. A second Ctrl-C raises it at once.

    Args:
        job: The checked inputs.
        row_encoder: Encoder of the corpus's rows.
        held: The lease of the run.
        on_news: Called about once a second.
        say: Takes one line for people.

    Raises:
        LeaseLostError: Another driver has taken over the run.
        UserError: A worker raised it; it is not tried again.
        DivergenceError: The loss or the perplexity is not finite; it is not tried again.
        PlatformFault: Anything else failed, and train.max_failures restarts did not help.
    """
    recipe = job.recipe
    schedule, train = recipe.schedule, recipe.train
    text = job.perplexity_text
    settings = ControllerSettings(
        run=recipe.run,
        run_uri=job.run_uri,
        corpus_uri=job.corpus.uri,
        row_encoder=row_encoder,
        global_batch_size=train.global_batch,
        segment_samples=schedule.segment_samples,
        poll_samples=schedule.poll_samples,
        max_domain_samples=train.max_samples,
        replay_share=schedule.replay_share,
        min_annealing_share=schedule.min_annealing_share,
        annealing_share=schedule.annealing_share,
        passes=schedule.passes,
    )
    controller = start_controller(settings, held.lease)
    resources = {"CPU": train.cpus_per_worker}
    if train.gpus_per_worker:
        resources["GPU"] = train.gpus_per_worker
    is_local = resolve_address(recipe.cluster.address) == "local"
    if shortage := describe_shortage(recipe, ray.cluster_resources()):
        say(shortage)
    trainer = (_LocalTrainer if is_local else _Trainer)(
        _run_worker,
        train_loop_config={
            "recipe": json.loads(recipe.model_dump_json()),
            "base": job.base,
            "revision": job.revision,
            "template": job.template,
            "controller": controller,
            "lease": held.lease,
            "text": None if text is None else text[:MAX_TEXT_CHARACTERS],
        },
        scaling_config=ScalingConfig(
            num_workers=(train.min_workers, recipe.workers)
            if train.min_workers
            else recipe.workers,
            elastic_resize_monitor_interval_s=train.resize_interval_s,
            use_gpu=train.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        # A new name each time: otherwise Ray would restore its own state of an earlier start.
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=join(job.run_uri, "ray"),
            failure_config=FailureConfig(max_failures=train.max_failures),
        ),
        torch_config=TorchConfig(
            backend="nccl" if train.gpus_per_worker else "gloo",
            timeout_s=train.collective_timeout_s,
        ),
    )
    if train.min_workers:
        trainer.elastic_policy = ResizeAfterCheckpoint(trainer.scaling_config, controller, train)
    try:
        _train_and_poll(trainer, controller, held, on_news, say)
        if (failure := ray.get(controller.failure.remote(), timeout=60)) is not None:
            raise failure
    except TrainingFailedError as error:
        raise _training_error(error) from error
    finally:
        # An error here must not hide the one that ended training; the status goes stale by itself.
        with suppress(ray.exceptions.RayError):
            ray.get(controller.end_run.remote(), timeout=60)


def describe_shortage(recipe: Recipe, resources: Mapping[str, float]) -> str | None:
    """Returns why the workers wait before they start; None if there is room for them.

    Without it, workers that leave no CPU to Ray Data wait for samples without a word.

    Args:
        recipe: The recipe.
        resources: What Ray has, as it says itself.
    """
    workers = recipe.train.min_workers or recipe.workers
    needed = recipe.resources_for(workers)
    found = (resources.get("CPU", 0.0), resources.get("GPU", 0.0))
    if all(has >= wants for has, wants in zip(found, needed, strict=True)):
        return None
    wanted = "1 worker" if workers == 1 else f"{workers} workers"
    return (
        f"Ray has {found[0]:g} CPUs and {found[1]:g} GPUs; {wanted} and Ray Data need "
        f"{needed[0]} and {needed[1]}: the run waits until there are more nodes, or give it fewer "
        "workers (workers, train.min_workers, train.stream_cpus)"
    )


class _Trainer(TorchTrainer):
    """Ray's trainer without its process for datasets: the controller issues the segments."""

    elastic_policy: ResizeAfterCheckpoint | None = None
    unneeded: tuple[type, ...] = (DatasetsCallback,)

    def _create_default_callbacks(self) -> list[Any]:
        # mypy takes Ray Train's first version, which is not imported.
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in callbacks if not isinstance(each, self.unneeded)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        parts["scaling_policy"] = self.elastic_policy or parts["scaling_policy"]
        return super()._initialize_and_run_controller(**parts)  # type: ignore[misc]


class _LocalTrainer(_Trainer):
    """The trainer of a session that ends with its driver, and its placement groups with it."""

    unneeded = (*_Trainer.unneeded, PlacementGroupCleanerCallback)


def _run_worker(config: dict[str, Any]) -> None:
    """Runs one training worker; Ray's TorchTrainer calls this in every worker process.

    The worker's module is imported here, because it loads PEFT and DeepSpeed. That is slow, and
    the driver needs neither.
    """
    with collector_at_rest():
        from cprec.train.distributed import worker

    worker.run_worker(config)


def _train_and_poll(
    trainer: TorchTrainer, controller: Any, held: HeldLease, on_news: NewsCallback, say: Say
) -> None:
    """Trains to the end, and meanwhile reports the news that the controller has.

    Ray's trainer runs in another thread. In the main thread it would handle Ctrl-C itself, and end
    the workers at once.
    """
    failures: list[BaseException] = []

    def train() -> None:
        try:
            trainer.fit()
        except ray.exceptions.RayActorError as error:
            failures.append(name_lost_trainer(error))
        except BaseException as error:  # whatever it is, the main thread raises it below
            failures.append(error)

    ended = start_ray_thread(train)
    reported = (0, 0)
    stopping = notices_said = False
    with _catch_interrupts() as interrupted:
        while not ended.is_set():
            ended.wait(POLL_S)
            if held.lost.is_set():
                held.lease.require()
            if interrupted.is_set() and not stopping:
                stopping = True
                controller.stop.remote()
                say("interrupted: saving a checkpoint; interrupt again to end at once")
            reported = _report_news(controller, reported, on_news)
            notices_said = notices_said or _say_notices(controller, say)
    if not notices_said:
        _say_notices(controller, say)
    _report_news(controller, reported, on_news)
    if failures:
        raise failures[0]
    if stopping or _was_asked_to_stop(controller):
        raise KeyboardInterrupt


def name_lost_trainer(error: ray.exceptions.RayActorError) -> PlatformFault:
    """Returns the fault of a run whose process of Ray Train died, which leads the workers."""
    return PlatformFault(
        "the process of Ray Train that starts the workers died, and they with it; often its node, "
        f"which is that of this job, was out of memory ({' '.join(str(error).split())})"
    )


def _was_asked_to_stop(controller: Any) -> bool:
    """Returns whether a request stopped the run; a controller that has died knows of none."""
    with suppress(ray.exceptions.RayError):
        return bool(ray.get(controller.stop_requested.remote(), timeout=30))
    return False


def _report_news(
    controller: Any, reported: tuple[int, int], on_news: NewsCallback
) -> tuple[int, int]:
    """Reports new trace rows and events.

    Args:
        controller: Handle of the controller.
        reported: Indices of the first trace row and of the first event to report.
        on_news: Receives them.

    Returns:
        The same indices for the next call.
    """
    try:
        news: RunNews = ray.get(controller.news.remote(*reported), timeout=30)
    except ray.exceptions.RayError:
        return reported  # the controller is starting again, or ended; its records are on storage
    on_news(news)
    return news.next_row, news.next_event


def _say_notices(controller: Any, say: Say) -> bool:
    """Says how the workers train, where that is worth a word; returns whether it was said."""
    try:
        notices: list[str] = ray.get(controller.notices.remote(), timeout=30)
    except ray.exceptions.RayError:
        return False
    for notice in notices:
        say(notice)
    return bool(notices)


@contextmanager
def _catch_interrupts() -> Iterator[threading.Event]:
    """Catches the first Ctrl-C, or SIGTERM as `ray job stop` sends it, while a `with` block runs.

    Yields the event that it sets. The second one raises KeyboardInterrupt.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may set handlers
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _training_error(error: BaseException) -> Exception:
    """Returns the UserError that made training fail, or else a fault that names the cause."""
    failures = list(getattr(error, "worker_failures", {}).values())
    causes = [_root_cause(failure) for failure in failures] or [_root_cause(error)]
    for cause in causes:
        if isinstance(cause, UserError):
            return cause
    # When one worker dies, the others fail in their collectives: prefer an error of our own.
    likeliest = next((cause for cause in causes if isinstance(cause, PlatformFault)), causes[0])
    return PlatformFault(f"training failed: {type(likeliest).__name__}: {likeliest}")


def _root_cause(error: BaseException) -> BaseException:
    """Follows the causes of an error, Ray's own attribute `cause` first, to the last one."""
    while True:
        cause = getattr(error, "cause", None) or error.__cause__
        if cause is None or cause is error:
            return error
        error = cause
