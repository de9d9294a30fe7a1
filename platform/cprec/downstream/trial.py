"""A trial: one fine-tuning with one learning rate and one seed, trained to early stop.

It uses the engine and the loop of pre-training and knows no Ray. cprec.downstream.lr_search runs it
on Ray.

<trial>/checkpoints/<samples>-<attempt>/   after every epoch: adapter/, trainer/, history.json,
                                           ledger.json, manifest.json; behaviour/ if hybrid
<trial>/tuned.json                         written last: the trial has ended
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from safetensors.torch import load
from transformers import PreTrainedModel

from cluster.errors import RecipeError
from cluster.storage import download, join, read_bytes, write_text
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream import hybrid
from cprec.downstream.domain import Domain, rows_of_rank, select_whole_users, sort_by_id
from cprec.downstream.hybrid import HybridModel, PromptEncoders, build_encoders
from cprec.downstream.known_items import KNOWN_ITEMS_FILE, KnownItems
from cprec.downstream.llara import build_plan, iter_training_steps, samples_per_epoch
from cprec.downstream.stored_model import BEHAVIOUR_FOLDER
from cprec.downstream.trial_records import (
    HISTORY_FILE,
    RESULT_FILE,
    EpochResult,
    TrialResult,
    best_epoch,
    read_history,
)
from cprec.encode.prompt import PromptTemplate
from cprec.evaluation.candidate_scoring import score_samples
from cprec.evaluation.metrics import compute_ranks, hits
from cprec.evaluation.scoring_check import ScoringMethod, choose_scoring
from cprec.model import adapter, backbone
from cprec.model.adapter_config import adapter_uri
from cprec.runs import checkpoint
from cprec.schedule.ledger import Ledger
from cprec.train.engine import Engine
from cprec.train.forward import uncompiled
from cprec.train.loop import DivergenceError, Observer, StepRecord, TrainingStep, train


@dataclass(frozen=True)
class Trial:
    """What a trial trains, and where.

    Attributes:
        recipe: The recipe.
        uri: Folder of the trial.
        domain: Domain to train on.
        base: The base model.
        start_checkpoint: URI of the checkpoint, or of the bare adapter, that LoRA starts from;
            None for fresh weights.
        behaviour_weights: URI of the SASRec weights whose item embeddings become behaviour tokens;
            None for text-only prompts.
        lr: Highest learning rate.
        seed: Seed of everything that is drawn.
        template: Template of the prompts.
        revision: What the base must be: a commit, or a digest of its files.
    """

    recipe: Recipe
    uri: str
    domain: str
    base: str
    start_checkpoint: str | None
    behaviour_weights: str | None
    lr: float
    seed: int
    template: PromptTemplate
    revision: str | None = None


def conclude_trial(trial: Trial, stopped: bool = False, diverged: bool = False) -> TrialResult:
    """Writes how a trial ended, from its newest checkpoint, and returns it.

    Args:
        trial: The trial.
        stopped: Whether the search ended the trial. Workers train on until they hear of it: a trial
            that has trained all its epochs by then was not stopped early.
        diverged: Whether training diverged.

    Raises:
        RecipeError: No epoch was completed, and training did not diverge.
    """
    name, _ = checkpoint.find_latest(trial.uri)
    history = [] if name is None else read_history(checkpoint.checkpoint_uri(trial.uri, name))
    if not (history or diverged):
        raise RecipeError(f"{trial.uri}: no epoch was completed")
    best = best_epoch(history)
    result = TrialResult(
        lr=trial.lr,
        seed=trial.seed,
        hr1=best["hr1"] if best else 0.0,
        epoch=best["epoch"] if best else 0,
        checkpoint=best["checkpoint"] if best else "",
        history=tuple(row["hr1"] for row in history),
        stopped=stopped and len(history) < trial.recipe.finetune.epochs,
        diverged=diverged,
    )
    write_text(join(trial.uri, RESULT_FILE), json.dumps(asdict(result), indent=1))
    return result


def require_trainable(recipe: Recipe) -> None:
    """Checks that a recipe can be fine-tuned.

    Raises:
        RecipeError: ZeRO 3 is asked for; validation would have to run in step on all workers.
    """
    if recipe.train.zero_stage == 3:
        raise RecipeError("train.zero_stage: 3 is not supported in fine-tuning; 0, 1 or 2")


def run_trial(trial: Trial, report: Callable[[dict[str, Any]], None]) -> None:
    """Trains a trial from its newest checkpoint, in the existing process group.

    A trial that diverges ends with a result: in a search, that is what a learning rate that is too
    high leads to, and no error.

    Args:
        trial: The trial.
        report: Receives `hr1` and `epoch` after each epoch, on every worker.

    Raises:
        RecipeError: The recipe cannot be fine-tuned.
    """
    recipe = trial.recipe
    settings = recipe.finetune
    require_trainable(recipe)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    domain = Domain.from_corpus(corpus, trial.domain)
    samples = select_whole_users(corpus.read_samples(domain.source, "train"), settings.max_samples)
    validation = sort_by_id(
        corpus.read_samples(domain.source, "validation"), settings.validation_users
    )
    network, tokenizer = backbone.load(trial.base, trial.revision, recipe.model.precision)
    model = build_model(trial, network)
    engine = Engine(
        model,
        recipe.train,
        recipe.model.precision,
        {"projector.": settings.projector_decay},
        recipe.model.max_tokens,
    )
    encoders = build_encoders(
        tokenizer, recipe.model.max_tokens, model, domain.items_by_index(), trial.template
    )
    newest, _ = checkpoint.find_latest(trial.uri)
    if newest is None:
        plan = build_plan(
            domain.source, corpus.version, len(samples), trial.lr, settings, trial.seed
        )
        ledger = Ledger(plan)
        history: list[EpochResult] = []
    else:
        uri = checkpoint.checkpoint_uri(trial.uri, newest)
        ledger = checkpoint.read_ledger(uri)
        history = read_history(uri)
        engine.restore_state(checkpoint.load_training_state(uri))

    # Once, with the same rows on all workers, so that all of them score alike.
    with uncompiled(engine.model):
        method = choose_scoring(engine.model, recipe.model.max_tokens)

    def measure() -> float:
        return _validation_hr1(
            engine,
            encoders,
            rows_of_rank(validation, rank, world_size),
            recipe.evaluate.batch,
            method,
        )

    dist.barrier()  # all workers have looked for checkpoints before one is written
    observer = TrialObserver(
        trial,
        ledger,
        history,
        newest.attempt + 1 if newest else 0,
        KnownItems.of_domain(corpus, domain),
        measure,
        report,
    )
    steps = iter_training_steps(
        ledger.plan,
        samples,
        encoders,
        settings.global_batch,
        settings.curriculum,
        ledger.samples,
        rank,
        world_size,
    )
    diverged = False
    try:
        train(
            engine,
            observer.until_stopped(steps),
            observer,
            engine.micro_batch_spec,
            int(tokenizer.eos_token_id),
            trial.seed,
            ledger.steps,
        )
    except DivergenceError:  # raised on all workers: losses and HR@1 are summed over them
        diverged = True
    if rank == 0:
        conclude_trial(trial, diverged=diverged)
    engine.close()
    if diverged:  # reported last, because the search may stop a trial when it reports
        report({"hr1": 0.0, "epoch": len(history) + 1})


def build_model(trial: Trial, network: PreTrainedModel) -> torch.nn.Module:
    """Builds the model with which a trial begins.

    Args:
        trial: The trial, which says what LoRA starts from and whether prompts are hybrid.
        network: The base model; it is changed in place.

    Returns:
        The trainable model, in training mode.
    """
    if trial.start_checkpoint is None:
        model = adapter.attach(network, trial.recipe.model, trial.seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = adapter.load_for_training(
                network, download(adapter_uri(trial.start_checkpoint), Path(folder))
            )
    if trial.behaviour_weights is None:
        return model
    # Row 0 of SASRec's table is padding.
    item_embeddings = load(read_bytes(trial.behaviour_weights))["item.weight"][1:]
    return HybridModel(model, item_embeddings, trial.seed).train()


def _validation_hr1(
    engine: Engine,
    encoders: PromptEncoders,
    samples: pa.Table,
    batch_size: int,
    method: ScoringMethod,
) -> float:
    """Computes HR@1 over the validation samples of all workers.

    Args:
        engine: The engine, whose model is scored.
        encoders: Encoders of samples.
        samples: This worker's part of the validation samples.
        batch_size: Samples in one forward pass.
        method: How to score.

    Raises:
        DivergenceError: A worker has a NaN score; raised on all workers.
    """
    engine.model.eval()
    with uncompiled(engine.model):
        scores = score_samples(
            cast(PreTrainedModel, engine.model),
            encoders.for_evaluation,
            samples,
            batch_size,
            method,
        )
    engine.model.train()
    is_nan = np.isnan(scores).any(axis=1)
    ranks = compute_ranks(scores[~is_nan], samples["target"].to_numpy()[~is_nan])
    sums = torch.tensor(
        [hits(ranks, 1).sum(), len(samples), is_nan.sum()],
        dtype=torch.float64,
        device=engine.device,
    )
    dist.all_reduce(sums)
    num_hits, num_samples, num_nan = sums
    if num_nan:
        raise DivergenceError(
            f"{int(num_nan)} of {int(num_samples)} validation samples have a NaN score"
        )
    return float(num_hits / num_samples)


class TrialObserver(Observer):
    """Observer of a trial: after each epoch it measures, saves, reports, and stops if due."""

    def __init__(
        self,
        trial: Trial,
        ledger: Ledger,
        history: list[EpochResult],
        attempt: int,
        items: KnownItems,
        measure: Callable[[], float],
        report: Callable[..., None],
    ) -> None:
        """Starts observing at the checkpoint that training continues from, or at the beginning.

        Args:
            trial: The trial.
            ledger: The plan, and the samples and steps trained up to there.
            history: Results of the epochs up to there; this list itself grows by each new epoch.
            attempt: Number of this start of the trial, for the names of checkpoints.
            items: The items that a hybrid model has embeddings of.
            measure: Computes HR@1 on validation; all workers call it together.
            report: Receives `hr1` and `epoch` after each epoch.
        """
        self._trial = trial
        self._ledger = ledger
        self._history = history
        self._attempt = attempt
        self._items = items
        self._measure = measure
        self._report = report
        self._samples_per_epoch = samples_per_epoch(ledger.plan)
        self._seconds = 0.0
        self._tokens = 0

    def until_stopped(self, steps: Iterator[TrainingStep]) -> Iterator[TrainingStep]:
        """Yields steps until validation has not improved for `finetune.patience` epochs."""
        patience = self._trial.recipe.finetune.patience
        for step in steps:
            best = best_epoch(self._history)
            if best is not None and len(self._history) - best["epoch"] >= patience:
                return
            yield step

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        """Counts the step; at the end of an epoch measures, saves and reports."""
        self._ledger = self._ledger.add_step(record.batch.num_samples, record.batch.ids_digest)
        self._seconds += record.step_s + record.data_wait_s
        self._tokens += record.batch.num_tokens
        if record.batch.stop % self._samples_per_epoch:
            return
        hr1 = self._measure()
        name = checkpoint.CheckpointName(self._ledger.samples, self._attempt)
        uri = checkpoint.checkpoint_uri(self._trial.uri, name)
        self._history.append(
            {
                "epoch": len(self._history) + 1,
                "hr1": hr1,
                "loss": record.loss,
                "samples": self._ledger.samples,
                "checkpoint": uri,
                "seconds": round(self._seconds, 3),
                "tokens": self._tokens,
                "memory_gb": round(record.peak_memory_bytes / 1e9, 3),
            }
        )
        self._seconds, self._tokens = 0.0, 0
        self._save(engine, name, uri)
        self._report({"hr1": hr1, "epoch": len(self._history)})

    def _save(self, engine: Engine, name: checkpoint.CheckpointName, uri: str) -> None:
        """Writes a checkpoint, and removes all others but the best. Collective."""
        state = engine.gather_state()
        if dist.get_rank():
            return
        recipe = self._trial.recipe
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            model = engine.model
            weights = state.weights
            if isinstance(model, HybridModel):
                hybrid.save(model, weights, directory / BEHAVIOUR_FOLDER)
                (directory / BEHAVIOUR_FOLDER / KNOWN_ITEMS_FILE).write_text(self._items.to_text())
                # What is left is the language model's own, without the wrapper's prefix.
                model = model.model
                weights = {
                    key.removeprefix("model."): tensor
                    for key, tensor in weights.items()
                    if key.startswith("model.")
                }
            adapter.save(
                model,
                weights,
                directory / checkpoint.ADAPTER,
                self._trial.base,
                recipe.model.revision,
                self._trial.template,
            )
            checkpoint.save_training_state(state, directory)
            (directory / HISTORY_FILE).write_text(json.dumps(self._history))
            checkpoint.commit(directory, uri, self._ledger)
        best = best_epoch(self._history)
        checkpoint.prune(self._trial.uri, 1, (best["samples"],) if best else (), name)
