"""One training of a study: resumed from its newest checkpoint, until it ends or the visit does."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from support.study_archive import Archive

from cprec.downstream import hybrid
from cprec.downstream.hybrid import HybridModel
from cprec.downstream.stored_model import BEHAVIOUR_FOLDER
from cprec.evaluation.candidate_scoring import score_samples
from cprec.evaluation.metrics import compute_ranks, hits
from cprec.evaluation.scoring_check import choose_scoring
from cprec.model import adapter
from cprec.runs import checkpoint
from cprec.schedule.ledger import Ledger
from cprec.schedule.plan import Plan
from cprec.train.device import single_process_group
from cprec.train.engine import Engine
from cprec.train.forward import uncompiled
from cprec.train.loop import Observer, StepRecord, TrainingStep, train


class OutOfTimeError(Exception):
    """The visit ends before the study does."""


@dataclass
class Training(Observer):
    """One training in its folder: it goes on from its newest checkpoint.

    Attributes:
        archive: What is studied.
        folder: The folder.
        is_over: Tells whether the visit is over.
        say: Takes lines of progress.
        plan: What is trained, and at which rates.
        seed: Seed of dropout.
        encoders: Encoders of a fine-tuning, which is measured after each epoch; None: it is none.
    """

    archive: Archive
    folder: Path
    is_over: Callable[[], bool]
    say: Callable[[str], None]
    plan: Plan
    seed: int
    encoders: Any = None
    ledger: Ledger = field(init=False)
    history: list[dict[str, Any]] = field(default_factory=list)

    def run(
        self, model: Any, steps: Callable[[Ledger], Iterator[TrainingStep]], tokenizer: Any
    ) -> tuple[str, list[dict[str, Any]]]:
        """Trains to the end; returns the newest checkpoint, and the measured epochs.

        Raises:
            OutOfTimeError: The visit is over first; a checkpoint is there.
        """
        recipe = self.archive.recipe
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"
        with single_process_group("nccl" if torch.cuda.is_available() else "gloo"):
            decay = {"projector.": recipe.finetune.projector_decay}
            engine = Engine(
                model, recipe.train, recipe.model.precision, decay, recipe.model.max_tokens
            )
            newest, _ = checkpoint.find_latest(str(self.folder))
            self.ledger = Ledger(self.plan)
            if newest is not None:
                uri = checkpoint.checkpoint_uri(str(self.folder), newest)
                self.ledger = checkpoint.read_ledger(uri)
                self.history = json.loads((Path(uri) / "history.json").read_text())
                engine.restore_state(checkpoint.load_training_state(uri))
            train(
                engine,
                self.until_stopped(steps(self.ledger)),
                self,
                engine.micro_batch_spec,
                int(tokenizer.eos_token_id),
                self.seed,
                self.ledger.steps,
            )
            engine.close()
        if self.ledger.samples < self.plan.total_samples and not self.is_settled:
            raise OutOfTimeError(self.folder.name)
        return checkpoint.latest_uri(str(self.folder)), self.history

    @property
    def is_settled(self) -> bool:
        """Whether validation has not improved for `finetune.patience` epochs."""
        best = max(self.history, key=lambda epoch: epoch["hr1"], default=None)
        patience = self.archive.recipe.finetune.patience
        return best is not None and len(self.history) - best["epoch"] >= patience

    def until_stopped(self, steps: Iterator[TrainingStep]) -> Iterator[TrainingStep]:
        """Yields steps until validation says that it is enough."""
        for step in steps:
            if self.is_settled:
                return
            yield step

    def should_stop(self) -> bool:
        """Returns whether the visit is over."""
        return self.is_over()

    def should_save(self) -> bool:
        """Returns the same: what stops is saved."""
        return self.is_over()

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        """Counts the step; measures at the end of an epoch, and saves where it is due."""
        before = self.ledger.samples
        self.ledger = self.ledger.add_step(record.batch.num_samples, record.batch.ids_digest)
        seen = self.ledger.samples
        ends = [era.stop for era in self.plan.eras]
        every = self.archive.recipe.checkpoint.every_samples
        name = checkpoint.CheckpointName(seen, 0)
        if self.encoders is not None and seen in ends:
            uri = checkpoint.checkpoint_uri(str(self.folder), name)
            epoch = {"epoch": len(self.history) + 1, "hr1": self.measure(engine)}
            self.history.append({**epoch, "checkpoint": uri})
        if record.save or checkpoint.is_due(before, seen, every, ends):
            self.save(engine, name)
            self.say(
                f"{self.folder.name}: {seen:,} of {self.plan.total_samples:,} samples, "
                f"loss {record.loss:.3f}"
                + (f", HR@1 {self.history[-1]['hr1']:.4f}" if self.history else "")
            )

    def measure(self, engine: Engine) -> float:
        """Returns HR@1 on validation."""
        samples = self.archive.samples("validation")
        recipe, model = self.archive.recipe, engine.model
        model.eval()
        with uncompiled(model):
            method = choose_scoring(model, recipe.model.max_tokens)
            encoder = self.encoders.for_evaluation
            scores = score_samples(model, encoder, samples, recipe.evaluate.batch, method)
        model.train()
        return float(hits(compute_ranks(scores, samples["target"].to_numpy()), 1).mean())

    def save(self, engine: Engine, name: checkpoint.CheckpointName) -> None:
        """Writes a checkpoint, and removes those that are neither it nor the best epoch."""
        archive = self.archive
        state, model = engine.gather_state(), engine.model
        weights: Mapping[str, torch.Tensor] = state.weights
        uri = checkpoint.checkpoint_uri(str(self.folder), name)
        # A save that was cut off has left a folder without a manifest.
        shutil.rmtree(uri, ignore_errors=True)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if isinstance(model, HybridModel):
                hybrid.save(model, state.weights, folder / BEHAVIOUR_FOLDER)
                weights = {
                    key.removeprefix("model."): tensor
                    for key, tensor in weights.items()
                    if key.startswith("model.")
                }
                model = model.model
            adapter.save(
                model, weights, folder / checkpoint.ADAPTER, archive.base, None, archive.template
            )
            checkpoint.save_training_state(state, folder)
            (folder / "history.json").write_text(json.dumps(self.history))
            checkpoint.commit(folder, uri, self.ledger)
        best = max(self.history, key=lambda epoch: epoch["hr1"], default=None)
        kept = () if best is None else (int(Path(best["checkpoint"]).name.split("-")[0]),)
        checkpoint.prune(str(self.folder), 1, kept, name)
