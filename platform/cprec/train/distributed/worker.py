"""A training worker on Ray: finds the checkpoint, builds the engine, trains, and saves.

What it trains is in the segments that the controller issues (`cprec.train.distributed.feed`).
"""

import math
import os
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
from torch.distributed import distributed_c10d

from cluster.errors import RunError, UserError
from cluster.storage import download, join
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.encode.prompt import PromptTemplate
from cprec.model import adapter, backbone
from cprec.model.adapter_config import is_bare_adapter
from cprec.model.kernels import fp8
from cprec.runs import checkpoint
from cprec.runs.control.lease import Lease
from cprec.runs.records import TraceRow
from cprec.schedule.ledger import Ledger
from cprec.train.distributed.controller_state import StepReply, WorkerGroup
from cprec.train.distributed.failures import report_failure, report_fault
from cprec.train.distributed.feed import training_steps
from cprec.train.distributed.preemption import PreemptionNotices
from cprec.train.distributed.profiling import StepProfiler
from cprec.train.distributed.start_point import StartPoint, agree_on_start
from cprec.train.engine import Engine
from cprec.train.loop import DivergenceError, Observer, StepRecord, TrainingStep, train
from cprec.train.memory import SUPERVISED_FRACTION
from cprec.train.perplexity_monitor import PerplexityMonitor


def run_worker(config: dict[str, Any]) -> None:
    """Runs a worker: the training function of Ray Train.

    Ray starts the group again after whatever is raised here. An error that a restart would meet
    again is therefore reported to the controller, and the next group ends at once.

    Args:
        config: {"recipe": plain data, "base": str, "revision": str or None,
            "template": PromptTemplate,
            "controller": actor handle, "lease": Lease of the run, "text": str or None, whose
            perplexity is measured}.
    """
    try:
        _train_worker(config)
    except UserError as error:
        report_failure(config["controller"], error)
        raise  # otherwise workers that did not fail would wait for this one in a collective


def _train_worker(config: dict[str, Any]) -> None:
    """Trains this worker's part of the run; see `run_worker` for the configuration."""
    controller = config["controller"]
    recipe = validate_recipe(config["recipe"], "the driver's recipe")
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if not recipe.train.gpus_per_worker:
        os.environ["DS_ACCELERATOR"] = "cpu"
    start = agree_on_start(config["lease"], controller, rank, world_size)
    if start is None:
        return
    with report_fault(controller, start.group.attempt, rank):
        _train_from(start, config, recipe, rank, world_size)


def _train_from(
    start: StartPoint, config: dict[str, Any], recipe: Recipe, rank: int, world_size: int
) -> None:
    """Builds the engine, restores the checkpoint, and trains."""
    controller, base = config["controller"], config["base"]
    model, tokenizer = backbone.load(base, config["revision"], recipe.model.precision)
    trained_model = adapter.attach(model, recipe.model, recipe.seed)
    checkpoint_uri = start.group.checkpoint_uri or recipe.continue_from
    is_bare = checkpoint_uri is not None and is_bare_adapter(checkpoint_uri)
    if checkpoint_uri is not None and is_bare:
        with tempfile.TemporaryDirectory() as folder:
            adapter.load_weights(trained_model, download(checkpoint_uri, Path(folder)))
    if recipe.model.fp8:
        fp8.quantise_frozen_layers(trained_model, recipe.model.fp8_fast_accumulation)
    engine = Engine(
        trained_model,
        recipe.train,
        recipe.model.precision,
        max_tokens=recipe.model.max_tokens,
        # Windows of text have logits everywhere, and a row may hold nothing else.
        supervised_fraction=1.0 if recipe.schedule.replay_share else SUPERVISED_FRACTION,
    )
    recipe.model.require_stage(engine.zero_stage)
    _limit_collectives(recipe.train.collective_timeout_s)
    if rank == 0:
        controller.record_notices.remote(engine.notices())
        if engine.padding_reason is not None:
            controller.record_padding.remote(engine.padding_reason)
    ledger = start.ledger or Ledger(ray.get(controller.plan.remote()))
    if checkpoint_uri is not None and not is_bare:
        _restore_checkpoint(engine, checkpoint_uri)
    spec = engine.micro_batch_spec
    monitor = None
    if config["text"] is not None:
        monitor = PerplexityMonitor.from_text(
            config["text"], tokenizer, recipe.model.max_tokens, spec, rank, world_size
        )
    observer = WorkerObserver(
        recipe,
        config["lease"],
        base,
        config["template"],
        controller,
        start.group,
        ledger,
        rank,
        monitor,
    )
    try:
        if not ledger.steps:
            observer.measure_perplexity(engine)
        steps = training_steps(controller, start.group.attempt, ledger.samples, rank)
        train(engine, steps, observer, spec, tokenizer.eos_token_id, recipe.seed, ledger.steps)
        observer.finish(engine)
    except DivergenceError as error:  # raised on all workers: losses are summed over them
        report_failure(controller, error)
    engine.close()


def _limit_collectives(seconds: int) -> None:
    """Sets the time limit of all process groups: those of DeepSpeed do not take over Ray's."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def _restore_checkpoint(engine: Engine, checkpoint_uri: str) -> None:
    """Loads a checkpoint into the engine; raises RunError if it does not fit."""
    try:
        engine.restore_state(checkpoint.load_training_state(checkpoint_uri))
    except ValueError as error:
        raise RunError(
            f"{checkpoint_uri} does not fit this recipe: {error}; "
            "model.adapter and model.lora_rank must be those of the checkpoint"
        ) from None


class WorkerObserver(Observer):
    """The observer of a Ray worker.

    It reports each step to the controller. Where a checkpoint is due, it measures the perplexity of
    the text and saves. Before a node is taken away or the group is resized, it saves.
    """

    def __init__(
        self,
        recipe: Recipe,
        lease: Lease,
        base: str,
        template: PromptTemplate,
        controller: Any,
        group: WorkerGroup,
        ledger: Ledger,
        rank: int,
        monitor: PerplexityMonitor | None,
    ) -> None:
        """Begins at a ledger.

        Args:
            recipe: The recipe.
            lease: The lease of the run, which its checkpoints are written under.
            base: Base model, which a saved adapter names.
            template: Template of the prompts, which it names too.
            controller: Handle of the controller.
            group: This start of the worker group.
            ledger: What is consumed already.
            rank: Rank of this worker.
            monitor: This worker's part of the text whose perplexity is measured; None: no text.
        """
        self._recipe = recipe
        self._lease, self._run_uri = lease, lease.run_uri
        self._base, self._template = base, template
        self._controller = controller
        self._group = group
        self._ledger = ledger
        self._rank = rank
        self._profiler = StepProfiler(
            0 if rank else recipe.train.profile,
            join(lease.run_uri, "profile", f"{group.attempt}.json.gz"),
        )
        self._saved_samples = ledger.samples
        self._phase_ends: tuple[int, ...] = ()
        self._pending_reply: Any = None
        self._reply = StepReply(stop=False, checkpoint_requests=0)
        self._requests_met = 0
        self._monitor = monitor
        self._notices = PreemptionNotices()

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        """Reports the step; saves where a checkpoint is due."""
        batch = record.batch
        self._profiler.on_step_end()
        self._ledger = self._ledger.add_step(batch.num_samples, batch.ids_digest)
        if self._rank == 0:
            self._pending_reply = self._controller.record_step.remote(
                self._group.attempt, trace_row(record, step.annealing_end)
            )
        self._phase_ends = (step.stable_end, step.annealing_end)
        settings = self._recipe.checkpoint
        places = (*self._phase_ends, *settings.milestones)
        if checkpoint.is_due(batch.start, batch.stop, settings.every_samples, places):
            self.measure_perplexity(engine)
            self._save(engine)
        elif record.save:
            self._save(engine)

    def should_stop(self) -> bool:
        """Returns whether the controller wants the run to stop."""
        return self._latest_reply().stop

    def should_save(self) -> bool:
        """Returns whether a node of this group is taken away soon, or the group is to be resized.

        Ray announces the one; the controller asks for a checkpoint before the other.
        """
        if self._rank:
            return False
        notice = self._notices.take()
        if notice is not None:
            self._controller.record_preemption.remote(
                self._group.attempt, notice.ranks, notice.deadline
            )
        requests = self._latest_reply().checkpoint_requests
        is_requested, self._requests_met = requests > self._requests_met, requests
        is_last_call = self._notices.is_last_call(time.time())
        return notice is not None or is_requested or is_last_call

    def _latest_reply(self) -> StepReply:
        """Returns the controller's newest reply to the report of a step. Nobody waits for one."""
        if self._pending_reply is not None and ray.wait([self._pending_reply], timeout=0)[0]:
            self._reply, self._pending_reply = ray.get(self._pending_reply), None
        return self._reply

    def measure_perplexity(self, engine: Engine) -> None:
        """Measures the perplexity of the text and reports it. Collective: every worker calls it."""
        if self._monitor is None:
            return
        perplexity = self._monitor.measure(engine)
        if not math.isfinite(perplexity):
            raise DivergenceError(
                f"the perplexity of evaluate.text is {perplexity} at {self._ledger.samples} "
                "samples; lower schedule.lr_max"
            )
        if self._rank == 0:
            self._controller.record_perplexity.remote(
                self._group.attempt, self._ledger.samples, perplexity
            )

    def finish(self, engine: Engine) -> None:
        """Saves what is not saved yet. Collective: every worker calls it."""
        if self._ledger.samples > self._saved_samples:
            self.measure_perplexity(engine)
            self._save(engine)

    def _save(self, engine: Engine) -> None:
        """Gathers on all workers, and writes a checkpoint on rank 0.

        Meanwhile the other workers go on to the next step's collective. A perplexity that is due is
        measured before, because a run that resumes at the checkpoint does not measure it.
        """
        state = engine.gather_state()
        self._saved_samples = self._ledger.samples
        if self._rank:
            return
        name = checkpoint.CheckpointName(self._ledger.samples, self._group.attempt)
        uri = checkpoint.checkpoint_uri(self._run_uri, name)
        plan = ray.get(self._controller.prepare_checkpoint.remote(self._group.attempt))
        ledger = replace(self._ledger, plan=plan)
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            adapter.save(
                engine.model,
                state.weights,
                directory / checkpoint.ADAPTER,
                self._base,
                self._recipe.model.revision,
                self._template,
            )
            checkpoint.save_training_state(state, directory)
            checkpoint.commit(directory, uri, ledger, self._lease)
        ray.get(self._controller.record_checkpoint.remote(self._group.attempt, ledger.samples, uri))
        settings = self._recipe.checkpoint
        checkpoint.prune(
            self._run_uri,
            settings.keep,
            self._phase_ends,
            name,
            self._lease,
            settings.milestones,
        )


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
        batch_samples=batch.num_samples,
        phase=record.phase,
        lr=record.lr,
        loss=record.loss,
        grad_norm=record.grad_norm,
        supervised_tokens=batch.supervised_tokens,
        tokens=batch.num_tokens,
        dropped_titles=batch.dropped_titles,
        computed_tokens=record.computed_tokens,
        filled_tokens=record.filled_tokens,
        imbalance=round(record.imbalance, 4),
        tflops=round(record.operations / record.step_s / 1e12, 4),
        memory_gb=round(record.peak_memory_bytes / 1e9, 3),
        planned_memory_gb=round(record.planned_memory_bytes / 1e9, 3) or None,
        compiled_graphs=record.compiled_graphs,
        step_s=round(record.step_s, 4),
        data_wait_s=round(record.data_wait_s, 4),
        held_s=round(record.held_s, 4),
        sources=dict(batch.samples_by_source),
        objectives=dict(batch.samples_by_objective) or None,
        ids_digest=f"{batch.ids_digest:016x}",
        planned=planned_samples,
    )
