"""What each training worker does: find the checkpoint, build the engine, train on what the controller hands out, save.

The Ray side of it is small: the worker's rank, the controller's handle, the iterators of shares.
"""

import math
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch.distributed as dist

from cluster.errors import RunError, UserError
from cluster.storage import join
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.model import adapter, backbone, fp8
from cprec.runs import checkpoint
from cprec.runs.records import TraceRow
from cprec.schedule.ledger import Ledger
from cprec.train.distributed.controller_state import WorkerGroup
from cprec.train.distributed.feed import training_steps
from cprec.train.distributed.profiling import StepProfiler
from cprec.train.engine import Engine, micro_batch_spec
from cprec.train.loop import DivergenceError, Observer, StepRecord, TrainingStep, train
from cprec.train.perplexity_monitor import PerplexityMonitor


@dataclass(frozen=True)
class StartPoint:
    """What rank 0 found on storage and all workers begin from."""

    group: WorkerGroup
    ledger: Ledger | None


def run_worker(config: dict[str, Any]) -> None:
    """The training function of Ray Train. config: {"recipe": plain data, "run_uri": str, "base": str, "controller": actor handle, "text": str}.

    Ray tries again after whatever is raised here. What would come again is told to the controller, and the next group, if there is one, ends at once.
    """
    try:
        _train_worker(config)
    except UserError as error:  # perhaps of this worker alone: raised, or the others would wait for it in a collective
        _report_failure(config["controller"], error)
        raise


def _report_failure(controller: Any, error: Exception) -> None:
    # Ray's own class of an error that comes from an actor does not travel well; its cause does.
    ray.get(controller.record_failure.remote(getattr(error, "cause", error)))


def _train_worker(config: dict[str, Any]) -> None:
    recipe = validate_recipe(config["recipe"], "the driver's recipe")
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if not recipe.train.gpus_per_worker:
        os.environ["DS_ACCELERATOR"] = "cpu"
    start = _agree_on_start(config["run_uri"], config["controller"], rank, world)
    if start is None:
        return
    model, words = backbone.load(config["base"], recipe.model.revision, recipe.model.precision)
    trained = adapter.attach(model, recipe.model, recipe.seed)
    if recipe.model.fp8:
        fp8.quantise_frozen_layers(trained)
    engine = Engine(trained, recipe.train, recipe.model.precision)
    ledger = start.ledger or Ledger(ray.get(config["controller"].plan.remote()))
    if (source := start.group.checkpoint_uri or recipe.continue_from) is not None:
        _restore_checkpoint(engine, source)
    cut = micro_batch_spec(recipe.train)
    text = (
        None
        if config["text"] is None
        else PerplexityMonitor.from_text(
            config["text"], words, recipe.model.max_tokens, cut, rank, world
        )
    )
    observer = WorkerObserver(
        recipe,
        config["run_uri"],
        config["base"],
        config["controller"],
        start.group,
        ledger,
        rank,
        text,
    )
    try:
        if not ledger.steps:
            observer.measure_perplexity(engine)
        work = training_steps(config["controller"], start.group.attempt, ledger.samples, rank)
        train(engine, work, observer, cut, words.eos_token_id, recipe.seed, ledger.steps)
        observer.finish(engine)
    except DivergenceError as error:  # on all workers alike: losses are summed over them
        _report_failure(config["controller"], error)
    engine.close()


def _restore_checkpoint(engine: Engine, checkpoint_uri: str) -> None:
    try:
        engine.restore_state(checkpoint.load_training_state(checkpoint_uri))
    except ValueError as error:
        raise RunError(
            f"{checkpoint_uri} does not fit this recipe: {error}; model.adapter and model.lora_rank must be those of the checkpoint"
        ) from None


def _agree_on_start(run_uri: str, controller: Any, rank: int, world_size: int) -> StartPoint | None:
    """Rank 0 looks for the newest valid checkpoint and opens the attempt at the controller; the others are told. Errors reach every rank.

    None: the run has failed, and there is nothing to do.
    """
    found: list[Any] = [None]
    if rank == 0:
        try:
            if ray.get(controller.failure.remote()) is None:
                found[0] = _find_start(run_uri, controller, world_size)
        except UserError as error:
            _report_failure(controller, error)
        except Exception as error:  # whatever it is, it is raised on every rank below: the others would wait for ever
            found[0] = error
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], Exception):
        raise found[0]
    start: StartPoint | None = found[0]
    return start


def _find_start(run_uri: str, controller: Any, world_size: int) -> StartPoint:
    name, ignored = checkpoint.find_latest(run_uri)
    attempt = 1 + max((other.attempt for other in checkpoint.list_checkpoints(run_uri)), default=-1)
    uri = checkpoint.checkpoint_uri(run_uri, name) if name else None
    ledger = checkpoint.read_ledger(uri) if uri else None
    group = WorkerGroup(attempt, world_size, ledger.samples if ledger else 0, uri)
    ray.get(controller.begin_attempt.remote(group, ignored))
    return StartPoint(group, ledger)


class WorkerObserver(Observer):
    """The observer of a Ray worker: tells the controller of each step; when it is due, measures the perplexity of the text and saves a checkpoint."""

    def __init__(
        self,
        recipe: Recipe,
        run_uri: str,
        base: str,
        controller: Any,
        group: WorkerGroup,
        ledger: Ledger,
        rank: int,
        monitor: PerplexityMonitor | None,
    ) -> None:
        self._recipe, self._run_uri, self._base, self._controller = (
            recipe,
            run_uri,
            base,
            controller,
        )
        self._group, self._ledger, self._rank = group, ledger, rank
        self._profiler = StepProfiler(
            0 if rank else recipe.train.profile,
            join(run_uri, "profile", f"{group.attempt}.json.gz"),
        )
        self._saved_samples = ledger.samples
        self._phase_ends: tuple[int, ...] = ()
        self._stop_reply: Any = None
        self._monitor = monitor

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        """Trace the step; save where a checkpoint is due."""
        batch = record.batch
        self._profiler.on_step_end()
        self._ledger = self._ledger.add_step(batch.sample_count, batch.ids_digest)
        if self._rank == 0:
            self._stop_reply = self._controller.record_step.remote(
                trace_row(record, step.annealing_end)
            )
        self._phase_ends = (step.stable_end, step.annealing_end)
        if checkpoint.is_due(
            batch.start, batch.stop, self._recipe.checkpoint.every_samples, self._phase_ends
        ):
            self._save(engine)

    def should_stop(self) -> bool:
        """Whether the controller said so when it was told of an earlier step; its answer to the last one is not waited for."""
        return (
            self._stop_reply is not None
            and bool(ray.wait([self._stop_reply], timeout=0)[0])
            and bool(ray.get(self._stop_reply))
        )

    def measure_perplexity(self, engine: Engine) -> None:
        """Tell the controller the perplexity of the text as the model stands. Collective."""
        if self._monitor is None:
            return
        value = self._monitor.measure(engine)
        if not math.isfinite(value):
            raise DivergenceError(
                f"the perplexity of evaluate.text is {value} at {self._ledger.samples} samples; lower schedule.lr_max"
            )
        if self._rank == 0:
            self._controller.record_perplexity.remote(self._ledger.samples, value)

    def finish(self, engine: Engine) -> None:
        """Training stopped: save what is not saved yet. Collective."""
        if self._ledger.samples > self._saved_samples:
            self._save(engine)

    def _save(self, engine: Engine) -> None:
        """Measure and gather on all workers, write on rank 0. The others meet it again at the next step's collective.

        The perplexity is told before the checkpoint is complete: a run that goes on from there does not measure it again.
        """
        self.measure_perplexity(engine)
        state = engine.gather_state()
        self._saved_samples = self._ledger.samples
        if self._rank:
            return
        name = checkpoint.CheckpointName(self._ledger.samples, self._group.attempt)
        uri = checkpoint.checkpoint_uri(self._run_uri, name)
        ledger = replace(self._ledger, plan=ray.get(self._controller.prepare_checkpoint.remote()))
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            adapter.save(
                engine.model,
                state.weights,
                directory / checkpoint.ADAPTER,
                self._base,
                self._recipe.model.revision,
            )
            checkpoint.save_training_state(state, directory)
            checkpoint.commit(directory, uri, ledger)
        ray.get(self._controller.record_checkpoint.remote(ledger.samples, uri))
        checkpoint.prune(self._run_uri, self._recipe.checkpoint.keep, self._phase_ends, name)


def trace_row(record: StepRecord, planned_samples: int) -> TraceRow:
    """Builds the trace row of a step.

    Args:
        record: The step as it was done.
        planned_samples: Samples of the plan (A) when the step was issued.
    """
    batch = record.batch
    return TraceRow(
        step=record.step,
        samples=batch.start,
        batch_samples=batch.sample_count,
        phase=record.phase,
        lr=record.lr,
        loss=record.loss,
        grad_norm=record.grad_norm,
        supervised_tokens=batch.supervised_tokens,
        tokens=batch.token_count,
        dropped_titles=batch.dropped_titles,
        computed_tokens=record.computed_tokens,
        imbalance=round(record.imbalance, 4),
        tflops=round(record.operations / record.step_s / 1e12, 4),
        memory_gb=round(record.peak_memory_bytes / 1e9, 3),
        step_s=round(record.step_s, 4),
        data_wait_s=round(record.data_wait_s, 4),
        sources=dict(batch.samples_by_source),
        ids_digest=f"{batch.ids_digest:016x}",
        planned=planned_samples,
    )
