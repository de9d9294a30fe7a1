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
from cprec.config.cli import validate
from cprec.config.recipe import Recipe
from cprec.model import adapter, backbone, fp8
from cprec.runs import checkpoint
from cprec.schedule.ledger import Ledger
from cprec.train.distributed.controller_actor import Group
from cprec.train.distributed.feed import feed
from cprec.train.distributed.profiling import Profile
from cprec.train.engine import Engine, cut_of
from cprec.train.loop import Diverged, Observer, StepRecord, Work, train
from cprec.train.monitor import Monitor


@dataclass(frozen=True)
class Start:
    """What rank 0 found on storage and all workers begin from."""

    group: Group
    ledger: Ledger | None


def run(config: dict[str, Any]) -> None:
    """The training function of Ray Train. config: {"recipe": plain data, "run_uri": str, "base": str, "controller": actor handle, "text": str}.

    Ray tries again after whatever is raised here. What would come again is told to the controller, and the next group, if there is one, ends at once.
    """
    try:
        _run(config)
    except UserError as error:  # perhaps of this worker alone: raised, or the others would wait for it in a collective
        _fail(config["controller"], error)
        raise


def _fail(controller: Any, error: Exception) -> None:
    # Ray's own class of an error that comes from an actor does not travel well; its cause does.
    ray.get(controller.fail.remote(getattr(error, "cause", error)))


def _run(config: dict[str, Any]) -> None:
    recipe = validate(config["recipe"], "the driver's recipe")
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if not recipe.train.gpus_per_worker:
        os.environ["DS_ACCELERATOR"] = "cpu"
    start = _agree(config["run_uri"], config["controller"], rank, world)
    if start is None:
        return
    model, words = backbone.load(config["base"], recipe.model.revision, recipe.model.precision)
    trained = adapter.attach(model, recipe.model, recipe.seed)
    if recipe.model.fp8:
        fp8.freeze(trained)
    engine = Engine(trained, recipe.train, recipe.model.precision)
    ledger = start.ledger or Ledger(ray.get(config["controller"].plan.remote()))
    if (source := start.group.checkpoint or recipe.continue_from) is not None:
        _restore(engine, source)
    cut = cut_of(recipe.train)
    text = (
        None
        if config["text"] is None
        else Monitor.of(config["text"], words, recipe.model.max_tokens, cut, rank, world)
    )
    observer = Saver(
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
        if not ledger.step:
            observer.measure(engine)
        work = feed(config["controller"], start.group.attempt, ledger.samples, rank)
        train(engine, work, observer, cut, words.eos_token_id, recipe.seed, ledger.step)
        observer.finish(engine)
    except Diverged as error:  # on all workers alike: losses are summed over them
        _fail(config["controller"], error)
    engine.close()


def _restore(engine: Engine, source: str) -> None:
    try:
        engine.restore(checkpoint.load_trainer(source))
    except ValueError as error:
        raise RunError(
            f"{source} does not fit this recipe: {error}; model.adapter and model.lora_rank must be those of the checkpoint"
        ) from None


def _agree(run_uri: str, controller: Any, rank: int, world: int) -> Start | None:
    """Rank 0 looks for the newest valid checkpoint and opens the attempt at the controller; the others are told. Errors reach every rank.

    None: the run has failed, and there is nothing to do.
    """
    found: list[Any] = [None]
    if rank == 0:
        try:
            if ray.get(controller.failure.remote()) is None:
                found[0] = _find(run_uri, controller, world)
        except UserError as error:
            _fail(controller, error)
        except Exception as error:  # whatever it is, it is raised on every rank below: the others would wait for ever
            found[0] = error
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], Exception):
        raise found[0]
    start: Start | None = found[0]
    return start


def _find(run_uri: str, controller: Any, world: int) -> Start:
    name, ignored = checkpoint.latest(run_uri)
    attempt = 1 + max((other.attempt for other in checkpoint.listed(run_uri)), default=-1)
    uri = checkpoint.uri_of(run_uri, name) if name else None
    ledger = checkpoint.ledger(uri) if uri else None
    group = Group(attempt, world, ledger.samples if ledger else 0, uri)
    ray.get(controller.begin.remote(group, ignored))
    return Start(group, ledger)


class Saver(Observer):
    """The observer of a Ray worker: tells the controller of each step; when it is due, measures the perplexity of the text and saves a checkpoint."""

    def __init__(
        self,
        recipe: Recipe,
        run_uri: str,
        base: str,
        controller: Any,
        group: Group,
        ledger: Ledger,
        rank: int,
        text: Monitor | None,
    ) -> None:
        self._recipe, self._run_uri, self._base, self._controller = (
            recipe,
            run_uri,
            base,
            controller,
        )
        self._group, self._ledger, self._rank = group, ledger, rank
        self._profile = Profile(
            0 if rank else recipe.train.profile,
            join(run_uri, "profile", f"{group.attempt}.json.gz"),
        )
        self._saved = ledger.samples
        self._ends: tuple[int, ...] = ()
        self._told: Any = None
        self._text = text

    def stepped(self, record: StepRecord, work: Work, engine: Engine) -> None:
        """Trace the step; save where a checkpoint is due."""
        batch = record.batch
        self._profile.stepped()
        self._ledger = self._ledger.after(batch.samples, batch.digest)
        if self._rank == 0:
            self._told = self._controller.stepped.remote(trace_row(record, work.annealing_end))
        self._ends = (work.stable_end, work.annealing_end)
        if checkpoint.due(
            batch.start, batch.stop, self._recipe.checkpoint.every_samples, self._ends
        ):
            self._save(engine)

    def stopping(self) -> bool:
        """Whether the controller said so when it was told of an earlier step; its answer to the last one is not waited for."""
        return (
            self._told is not None
            and bool(ray.wait([self._told], timeout=0)[0])
            and bool(ray.get(self._told))
        )

    def measure(self, engine: Engine) -> None:
        """Tell the controller the perplexity of the text as the model stands. Collective."""
        if self._text is None:
            return
        value = self._text.perplexity(engine)
        if not math.isfinite(value):
            raise Diverged(
                f"the perplexity of evaluate.text is {value} at {self._ledger.samples} samples; lower schedule.lr_max"
            )
        if self._rank == 0:
            self._controller.measured.remote(self._ledger.samples, value)

    def finish(self, engine: Engine) -> None:
        """Training stopped: save what is not saved yet. Collective."""
        if self._ledger.samples > self._saved:
            self._save(engine)

    def _save(self, engine: Engine) -> None:
        """Measure and gather on all workers, write on rank 0. The others meet it again at the next step's collective.

        The perplexity is told before the checkpoint is complete: a run that goes on from there does not measure it again.
        """
        self.measure(engine)
        state = engine.gather()
        self._saved = self._ledger.samples
        if self._rank:
            return
        name = checkpoint.Name(self._ledger.samples, self._group.attempt)
        uri = checkpoint.uri_of(self._run_uri, name)
        ledger = replace(self._ledger, plan=ray.get(self._controller.saving.remote()))
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            adapter.save(
                engine.model,
                state.weights,
                directory / checkpoint.ADAPTER,
                self._base,
                self._recipe.model.revision,
            )
            checkpoint.save_trainer(state, directory)
            checkpoint.commit(directory, uri, ledger)
        ray.get(self._controller.saved.remote(ledger.samples, uri))
        checkpoint.prune(self._run_uri, self._recipe.checkpoint.keep, self._ends, name)


def trace_row(record: StepRecord, planned: int) -> dict[str, Any]:
    """One object of trace.jsonl (contracts.md). planned: A as it stood when the step was handed out."""
    batch = record.batch
    return {
        "step": record.step,
        "samples": batch.start,
        "batch_samples": batch.samples,
        "phase": record.phase.value,
        "lr": record.rate,
        "loss": record.loss,
        "grad_norm": record.grad_norm,
        "supervised_tokens": batch.supervised,
        "tokens": batch.tokens,
        "dropped_titles": batch.dropped,
        "computed_tokens": record.computed,
        "imbalance": round(record.imbalance, 4),
        "tflops": round(record.operations / record.step_s / 1e12, 4),
        "memory_gb": round(record.memory_bytes / 1e9, 3),
        "step_s": round(record.step_s, 4),
        "data_wait_s": round(record.data_wait_s, 4),
        "sources": dict(batch.sources),
        "ids_digest": f"{batch.digest:016x}",
        "planned": planned,
    }
