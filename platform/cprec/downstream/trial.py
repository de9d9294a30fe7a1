"""One fine-tuning: a rate and a seed, trained to early stop on the engine and in the loop of pre-training. Knows no Ray; `search` starts it.

<place>/checkpoints/<samples>-<attempt>/   after every epoch: adapter/, trainer/, behaviour/ (hybrid), history.json, ledger.json, manifest.json
<place>/tuned.json                         written last: the trial is over
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load
from transformers import PreTrainedModel

from cluster.errors import RecipeError
from cluster.storage import download, exists, join, read_bytes, read_text, write_text
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream import hybrid
from cprec.downstream.domain import Domain, select_whole_users, sort_by_id
from cprec.downstream.hybrid import (
    HybridModel,
    HybridPromptEncoder,
    IndexedPromptEncoder,
    Item,
    TextPromptEncoder,
)
from cprec.downstream.llara import (
    PromptEncoders,
    build_plan,
    iter_training_steps,
    samples_per_epoch,
)
from cprec.encode.tokens import TitleEncoder
from cprec.evaluate.candidate_scoring import score_samples
from cprec.evaluate.metrics import compute_ranks, hits
from cprec.model import adapter, backbone
from cprec.runs import checkpoint
from cprec.schedule.ledger import Ledger
from cprec.train.engine import Engine, micro_batch_spec
from cprec.train.loop import DivergenceError, Observer, StepRecord, TrainingStep, train

BEHAVIOUR_FOLDER, HISTORY_FILE, RESULT_FILE = "behaviour", "history.json", "tuned.json"


@dataclass(frozen=True)
class Trial:
    """What is trained, and where. base: the base model; start: the checkpoint that LoRA starts from, None: fresh; behaviour: weights of the SASRec
    whose item embeddings are used, None: text only."""

    recipe: Recipe
    uri: str
    domain: str
    base: str
    start_checkpoint: str | None
    behaviour_weights: str | None
    lr: float
    seed: int


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    hr1: the best on validation, reached after `epoch`, whose checkpoint it is; history: HR@1 after each epoch; stopped: cut short by the search;
    diverged: cut short by a loss or a score that is no number. One that diverged in its first epoch has an HR@1 of 0 and no checkpoint.
    """

    rate: float
    seed: int
    hr1: float
    epoch: int
    checkpoint: str
    history: tuple[float, ...]
    stopped: bool = False
    diverged: bool = False


def find_result(uri: str) -> TrialResult | None:
    """How the trial at a place ended; None if it has not."""
    if not exists(join(uri, RESULT_FILE)):
        return None
    values = json.loads(read_text(join(uri, RESULT_FILE)))
    return TrialResult(**{**values, "history": tuple(values["history"])})


def conclude_trial(trial: Trial, stopped: bool = False, diverged: bool = False) -> TrialResult:
    """Write how a trial ended, from its checkpoints: the best epoch's is the result."""
    name, _ = checkpoint.find_latest(trial.uri)
    history: list[dict[str, Any]] = (
        []
        if name is None
        else json.loads(read_text(join(checkpoint.checkpoint_uri(trial.uri, name), HISTORY_FILE)))
    )
    if not (history or diverged):
        raise RecipeError(f"{trial.uri}: no epoch was completed")
    nothing: dict[str, Any] = {"hr1": 0.0, "epoch": 0, "checkpoint": ""}
    best = max(history, key=lambda row: float(row["hr1"]), default=nothing)
    hr1s = tuple(row["hr1"] for row in history)
    ended = TrialResult(
        trial.lr,
        trial.seed,
        best["hr1"],
        best["epoch"],
        best["checkpoint"],
        hr1s,
        stopped,
        diverged,
    )
    write_text(join(trial.uri, RESULT_FILE), json.dumps(asdict(ended), indent=1))
    return ended


def run_trial(trial: Trial, report: Callable[[dict[str, Any]], None]) -> None:
    """Train a trial, or go on with it, in the process group that is already there. report: told of every epoch, on every worker.

    A trial that diverges has ended: in a search, too high a rate is a result and no fault.

    Raises RecipeError for ZeRO 3, under which validation would have to run in step on all workers.
    """
    recipe, settings = trial.recipe, trial.recipe.finetune
    if recipe.train.zero_stage == 3:
        raise RecipeError("train.zero_stage: 3 is not supported in fine-tuning; 0, 1 or 2")
    rank, world = dist.get_rank(), dist.get_world_size()
    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    domain = Domain.from_corpus(corpus, trial.domain)
    table = select_whole_users(corpus.read_samples(domain.source, "train"), settings.max_samples)
    validation = sort_by_id(
        corpus.read_samples(domain.source, "validation"), settings.validation_users
    )
    network, words = backbone.load(trial.base, recipe.model.revision, recipe.model.precision)
    model = build_model(trial, network)
    engine = Engine(
        model, recipe.train, recipe.model.precision, {"projector.": settings.projector_decay}
    )
    encoders = build_encoders(words, recipe.model.max_tokens, model, domain.items_by_index())
    newest, _ = checkpoint.find_latest(trial.uri)
    if newest is None:
        ledger, history = (
            Ledger(
                build_plan(
                    domain.source, corpus.version, len(table), trial.lr, settings, trial.seed
                )
            ),
            [],
        )
    else:
        uri = checkpoint.checkpoint_uri(trial.uri, newest)
        ledger, history = (
            checkpoint.read_ledger(uri),
            json.loads(read_text(join(uri, HISTORY_FILE))),
        )
        engine.restore_state(checkpoint.load_training_state(uri))

    def measure() -> float:
        return _validation_hr1(
            engine,
            encoders,
            validation.take(list(range(rank, len(validation), world))),
            recipe.evaluate.batch,
        )

    dist.barrier()  # all workers have looked for checkpoints before one is written
    epochs = TrialObserver(
        trial, ledger, history, newest.attempt + 1 if newest else 0, measure, report
    )
    work = iter_training_steps(
        ledger.plan, table, encoders, settings.global_batch, ledger.samples, rank, world
    )
    diverged = False
    try:
        train(
            engine,
            epochs.until_stopped(work),
            epochs,
            micro_batch_spec(recipe.train),
            int(words.eos_token_id),
            trial.seed,
            ledger.steps,
        )
    except DivergenceError:  # on all workers alike: losses and HR@1 are summed over them
        diverged = True
    if rank == 0:
        conclude_trial(trial, diverged=diverged)
    engine.close()
    if diverged:  # last, because the search may stop a trial as it reports
        report({"hr1": 0.0, "epoch": len(history) + 1})


def build_model(trial: Trial, network: PreTrainedModel) -> torch.nn.Module:
    """The model as training begins: LoRA fresh or from a checkpoint, behaviour tokens or not."""
    if trial.start_checkpoint is None:
        model = adapter.attach(network, trial.recipe.model, trial.seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = adapter.load_for_training(
                network, download(join(trial.start_checkpoint, checkpoint.ADAPTER), Path(folder))
            )
    if trial.behaviour_weights is None:
        return model
    # Row 0 of SASRec's table pads.
    return HybridModel(
        model, load(read_bytes(trial.behaviour_weights))["item.weight"][1:], trial.seed
    ).train()


def build_encoders(
    tokenizer: Any, max_tokens: int, model: torch.nn.Module, items: Mapping[int, Item]
) -> PromptEncoders:
    """The encoders that fit a model. items: by item index."""
    woven = (
        IndexedPromptEncoder(HybridPromptEncoder(tokenizer, max_tokens, model.vocab_size), items)
        if isinstance(model, HybridModel)
        else None
    )
    return PromptEncoders(
        IndexedPromptEncoder(TextPromptEncoder(TitleEncoder(tokenizer, max_tokens)), items), woven
    )


def _validation_hr1(engine: Engine, encoders: PromptEncoders, samples: Any, batch: int) -> float:
    """HR@1 over all workers' parts of the validation samples. Raises Diverged, on all workers, for a score that is no number on one of them."""
    engine.model.eval()
    scores = score_samples(
        cast(PreTrainedModel, engine.model), encoders.for_evaluation, samples, batch
    )
    engine.model.train()
    broken = np.isnan(scores).any(axis=1)
    right = hits(compute_ranks(scores[~broken], samples["target"].to_numpy()[~broken]), 1).sum()
    total = torch.tensor(
        [right, len(samples), broken.sum()], dtype=torch.float64, device=engine.device
    )
    dist.all_reduce(total)
    if total[2]:
        raise DivergenceError(
            f"{int(total[2])} of {int(total[1])} validation samples have a NaN score"
        )
    return float(total[0] / total[1])


class TrialObserver(Observer):
    """The observer of a trial: after each epoch it measures, saves, reports, and decides whether to stop."""

    def __init__(
        self,
        trial: Trial,
        ledger: Ledger,
        history: list[dict[str, Any]],
        attempt: int,
        measure: Callable[[], float],
        report: Callable[..., None],
    ) -> None:
        self._trial, self._ledger, self._history, self._attempt = trial, ledger, history, attempt
        self._measure, self._report = measure, report
        self._samples_per_epoch = samples_per_epoch(ledger.plan)

    def until_stopped(self, steps: Iterator[TrainingStep]) -> Iterator[TrainingStep]:
        """The work that is left, cut off once validation has not risen for `finetune.patience` epochs."""
        for share in steps:
            if self._should_stop():
                return
            yield share

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        """Count the step; at the end of an epoch measure and save."""
        self._ledger = self._ledger.add_step(record.batch.sample_count, record.batch.ids_digest)
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
            }
        )
        self._save(engine, name, uri)
        self._report({"hr1": hr1, "epoch": len(self._history)})

    def _save(self, engine: Engine, name: checkpoint.CheckpointName, uri: str) -> None:
        state = engine.gather_state()
        if dist.get_rank():
            return
        recipe = self._trial.recipe
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            model, weights = engine.model, state.weights
            if isinstance(model, HybridModel):
                hybrid.save(model, weights, directory / BEHAVIOUR_FOLDER)
                model, weights = (
                    model.model,
                    {
                        n.removeprefix("model."): w
                        for n, w in weights.items()
                        if n.startswith("model.")
                    },
                )
            adapter.save(
                model,
                weights,
                directory / checkpoint.ADAPTER,
                self._trial.base,
                recipe.model.revision,
            )
            checkpoint.save_training_state(state, directory)
            (directory / HISTORY_FILE).write_text(json.dumps(self._history))
            checkpoint.commit(directory, uri, self._ledger)
        best = max(self._history, key=lambda row: row["hr1"])
        checkpoint.prune(self._trial.uri, 1, (best["samples"],), name)

    def _should_stop(self) -> bool:
        if not self._history:
            return False
        best = max(self._history, key=lambda row: row["hr1"])
        return len(self._history) - int(best["epoch"]) >= self._trial.recipe.finetune.patience
