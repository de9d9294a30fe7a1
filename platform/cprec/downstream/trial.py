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
from cprec.downstream.hybrid import Hybrid, HybridEncoder, Item, OfItems, TextEncoder
from cprec.downstream.items import Domain, by_id, whole_users
from cprec.downstream.llara import Encoders, epoch_samples, feed, make_plan
from cprec.encode.tokens import Encoder
from cprec.evaluate.metrics import hits, ranks
from cprec.evaluate.rank import score
from cprec.model import adapter, backbone
from cprec.runs import checkpoint
from cprec.schedule.ledger import Ledger
from cprec.train.engine import Engine, cut_of
from cprec.train.loop import Diverged, Observer, StepRecord, Work, train

BEHAVIOUR, HISTORY, TUNED = "behaviour", "history.json", "tuned.json"


@dataclass(frozen=True)
class Trial:
    """What is trained, and where. base: the base model; start: the checkpoint that LoRA starts from, None: fresh; behaviour: weights of the SASRec
    whose item embeddings are used, None: text only."""

    recipe: Recipe
    place: str
    domain: str
    base: str
    start: str | None
    behaviour: str | None
    rate: float
    seed: int


@dataclass(frozen=True)
class Tuned:
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


def found(place: str) -> Tuned | None:
    """How the trial at a place ended; None if it has not."""
    if not exists(join(place, TUNED)):
        return None
    values = json.loads(read_text(join(place, TUNED)))
    return Tuned(**{**values, "history": tuple(values["history"])})


def conclude(trial: Trial, stopped: bool = False, diverged: bool = False) -> Tuned:
    """Write how a trial ended, from its checkpoints: the best epoch's is the result."""
    name, _ = checkpoint.latest(trial.place)
    history: list[dict[str, Any]] = (
        []
        if name is None
        else json.loads(read_text(join(checkpoint.uri_of(trial.place, name), HISTORY)))
    )
    if not (history or diverged):
        raise RecipeError(f"{trial.place}: no epoch was completed")
    nothing: dict[str, Any] = {"hr1": 0.0, "epoch": 0, "checkpoint": ""}
    best = max(history, key=lambda row: float(row["hr1"]), default=nothing)
    hr1s = tuple(row["hr1"] for row in history)
    ended = Tuned(
        trial.rate,
        trial.seed,
        best["hr1"],
        best["epoch"],
        best["checkpoint"],
        hr1s,
        stopped,
        diverged,
    )
    write_text(join(trial.place, TUNED), json.dumps(asdict(ended), indent=1))
    return ended


def run(trial: Trial, report: Callable[[dict[str, Any]], None]) -> None:
    """Train a trial, or go on with it, in the process group that is already there. report: told of every epoch, on every worker.

    A trial that diverges has ended: in a search, too high a rate is a result and no fault.

    Raises RecipeError for ZeRO 3, under which validation would have to run in step on all workers.
    """
    recipe, settings = trial.recipe, trial.recipe.finetune
    if recipe.train.zero_stage == 3:
        raise RecipeError("train.zero_stage: 3 is not supported in fine-tuning; 0, 1 or 2")
    rank, world = dist.get_rank(), dist.get_world_size()
    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    domain = Domain.of(corpus, trial.domain)
    table = whole_users(corpus.samples(domain.source, "train"), settings.max_samples)
    validation = by_id(corpus.samples(domain.source, "validation"), settings.validation_users)
    network, words = backbone.load(trial.base, recipe.model.revision, recipe.model.precision)
    model = started(trial, network)
    engine = Engine(
        model, recipe.train, recipe.model.precision, {"projector.": settings.projector_decay}
    )
    encoders = encoders_of(words, recipe.model.max_tokens, model, domain.items())
    newest, _ = checkpoint.latest(trial.place)
    if newest is None:
        ledger, history = (
            Ledger(
                make_plan(
                    domain.source, corpus.version, len(table), trial.rate, settings, trial.seed
                )
            ),
            [],
        )
    else:
        uri = checkpoint.uri_of(trial.place, newest)
        ledger, history = checkpoint.ledger(uri), json.loads(read_text(join(uri, HISTORY)))
        engine.restore(checkpoint.load_trainer(uri))

    def measure() -> float:
        return _hr1(
            engine,
            encoders,
            validation.take(list(range(rank, len(validation), world))),
            recipe.evaluate.batch,
        )

    dist.barrier()  # all workers have looked for checkpoints before one is written
    epochs = Epochs(trial, ledger, history, newest.attempt + 1 if newest else 0, measure, report)
    work = feed(ledger.plan, table, encoders, settings.global_batch, ledger.samples, rank, world)
    diverged = False
    try:
        train(
            engine,
            epochs.until_over(work),
            epochs,
            cut_of(recipe.train),
            int(words.eos_token_id),
            trial.seed,
            ledger.step,
        )
    except Diverged:  # on all workers alike: losses and HR@1 are summed over them
        diverged = True
    if rank == 0:
        conclude(trial, diverged=diverged)
    engine.close()
    if diverged:  # last, because the search may stop a trial as it reports
        report({"hr1": 0.0, "epoch": len(history) + 1})


def started(trial: Trial, network: PreTrainedModel) -> torch.nn.Module:
    """The model as training begins: LoRA fresh or from a checkpoint, behaviour tokens or not."""
    if trial.start is None:
        model = adapter.attach(network, trial.recipe.model, trial.seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = adapter.go_on(
                network, download(join(trial.start, checkpoint.ADAPTER), Path(folder))
            )
    if trial.behaviour is None:
        return model
    # Row 0 of SASRec's table pads.
    return Hybrid(model, load(read_bytes(trial.behaviour))["item.weight"][1:], trial.seed).train()


def encoders_of(
    words: Any, max_tokens: int, model: torch.nn.Module, items: Mapping[int, Item]
) -> Encoders:
    """The encoders that fit a model. items: by item index."""
    woven = (
        OfItems(HybridEncoder(words, max_tokens, model.vocabulary), items)
        if isinstance(model, Hybrid)
        else None
    )
    return Encoders(OfItems(TextEncoder(Encoder(words, max_tokens)), items), woven)


def _hr1(engine: Engine, encoders: Encoders, samples: Any, batch: int) -> float:
    """HR@1 over all workers' parts of the validation samples. Raises Diverged, on all workers, for a score that is no number on one of them."""
    engine.model.eval()
    scores = score(cast(PreTrainedModel, engine.model), encoders.at_evaluation, samples, batch)
    engine.model.train()
    broken = np.isnan(scores).any(axis=1)
    right = hits(ranks(scores[~broken], samples["target"].to_numpy()[~broken]), 1).sum()
    total = torch.tensor(
        [right, len(samples), broken.sum()], dtype=torch.float64, device=engine.device
    )
    dist.all_reduce(total)
    if total[2]:
        raise Diverged(f"{int(total[2])} of {int(total[1])} validation samples have a NaN score")
    return float(total[0] / total[1])


class Epochs(Observer):
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
        self._epoch_samples = epoch_samples(ledger.plan)

    def until_over(self, work: Iterator[Work]) -> Iterator[Work]:
        """The work that is left, cut off once validation has not risen for `finetune.patience` epochs."""
        for share in work:
            if self._over():
                return
            yield share

    def stepped(self, record: StepRecord, work: Work, engine: Engine) -> None:
        """Count the step; at the end of an epoch measure and save."""
        self._ledger = self._ledger.after(record.batch.samples, record.batch.digest)
        if record.batch.stop % self._epoch_samples:
            return
        hr1 = self._measure()
        name = checkpoint.Name(self._ledger.samples, self._attempt)
        uri = checkpoint.uri_of(self._trial.place, name)
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

    def _save(self, engine: Engine, name: checkpoint.Name, uri: str) -> None:
        state = engine.gather()
        if dist.get_rank():
            return
        recipe = self._trial.recipe
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            model, weights = engine.model, state.weights
            if isinstance(model, Hybrid):
                hybrid.save(model, weights, directory / BEHAVIOUR)
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
            checkpoint.save_trainer(state, directory)
            (directory / HISTORY).write_text(json.dumps(self._history))
            checkpoint.commit(directory, uri, self._ledger)
        best = max(self._history, key=lambda row: row["hr1"])
        checkpoint.prune(self._trial.place, 1, (best["samples"],), name)

    def _over(self) -> bool:
        if not self._history:
            return False
        best = max(self._history, key=lambda row: row["hr1"])
        return len(self._history) - int(best["epoch"]) >= self._trial.recipe.finetune.patience
