"""Fine-tuning on one domain with a search of its learning rate: baselines' embeddings -> trials -> best rate -> seeds -> registered version.

Below `<storage>/<run>/finetune/<domain>/<name>/`: `identity.json` (what the search is of), `trials/<rate>-<seed>/`, `trials.svg`, and `search.json`,
which is written last. Starting a search again trains what is left of it.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
from matplotlib import rc_context
from matplotlib.figure import Figure

from cluster.errors import RecipeError, RunError
from cluster.say import Say
from cluster.session import session
from cluster.storage import absolute, exists, join, read_text, write_bytes, write_text
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream import baseline, search
from cprec.downstream.items import Domain
from cprec.downstream.scoring import fetch
from cprec.downstream.trial import Trial, Tuned
from cprec.model.base import resolve
from cprec.runs import checkpoint
from cprec.runs.records import run_uri
from cprec.tracking.registry import Registry, Tracker, Version
from cprec.workflows.evaluate import SEARCH

IDENTITY, PLOT = "identity.json", "trials.svg"
FRESH = "fresh"


@dataclass(frozen=True)
class Plan:
    """A checked search. start: checkpoint that LoRA starts from, None: fresh; parent: its registered version, where it has one."""

    recipe: Recipe
    corpus: Corpus
    domain: str
    name: str
    place: str
    base: str
    start: str | None
    parent: int | None
    rates: tuple[float, ...]

    def trial(self, rate: float, seed: int, behaviour: str | None) -> Trial:
        """One fine-tuning of the search."""
        return Trial(
            self.recipe,
            join(self.place, "trials", f"{rate:g}-{seed}"),
            self.domain,
            self.base,
            self.start,
            behaviour,
            rate,
            seed,
        )


@dataclass(frozen=True)
class Found:
    """What a search found. trials: those of the search; seeds: the best rate's; best: of these, the best on validation; version: the registered."""

    rate: float
    trials: Sequence[Tuned]
    seeds: Sequence[Tuned]
    best: Tuned
    model: str
    version: int
    plot: str


def plan(recipe: Recipe, registry: Registry, say: Say) -> Plan:
    """What is to be trained. Raises UserError for a start, a corpus or a domain that is not there."""
    settings = recipe.finetune
    domain = settings.domain or next(iter(recipe.data.held_out), None)
    if domain is None:
        raise RecipeError(
            "finetune.domain: none given, and data.held_out is empty; name a domain of the corpus"
        )
    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    for split in ("train", "validation"):
        Domain.of(corpus, domain, split)
    version: Version | None = None
    start = None
    if settings.start != FRESH:
        version = registry.named(settings.start)
        start = version.checkpoint if version else absolute(settings.start)
        checkpoint.verify(start)
    base = version.tags.get("base") if version else None
    name = settings.name or ("llara" if start is None else "cprec")
    place = join(run_uri(absolute(recipe.storage), recipe.run), "finetune", domain, name)
    rates = search.rates(recipe.search, recipe.seed)
    return Plan(
        recipe,
        corpus,
        domain,
        name,
        place,
        base or resolve(recipe, corpus, say),
        start,
        version.number if version else None,
        rates,
    )


def tune(recipe: Recipe, registry: Registry, say: Say) -> Found:
    """Run a search, or go on with it, train the best rate with every seed, and register the best of them.

    Raises RunError when another search lies in its place, or when the rates are so high that nothing was learned.
    """
    planned = plan(recipe, registry, say)
    _settle(planned)
    parent = Tracker(registry, planned.place, f"{recipe.run}-{planned.domain}-{planned.name}")
    parent.flush()
    with session(
        recipe.cluster.address,
        recipe.cluster.num_cpus
        or recipe.workers * recipe.train.cpus_per_worker * (recipe.search.concurrent or 1),
    ):
        behaviour = None
        if recipe.finetune.hybrid:
            say("item embeddings of SASRec")
            task = ray.remote(baseline.prepare).options(num_cpus=recipe.train.cpus_per_worker)
            behaviour = fetch(
                [task.remote(recipe, planned.corpus, planned.domain, "sasrec", recipe.seed)]
            )[0]
        tried = [
            planned.trial(rate, seed, behaviour)
            for rate in planned.rates
            for seed in range(recipe.search.seeds)
        ]
        ended = search.run(tried, recipe.search, recipe.search.stopper, say)
        _require(ended)
        rate = search.best_rate(ended)
        say(f"best learning rate {rate:g}; training it with {recipe.search.winner_seeds} seeds")
        # A trial of the best rate that the search cut short is not trained on: nothing cuts the best one short.
        seeded = [
            planned.trial(rate, seed, behaviour) for seed in range(recipe.search.winner_seeds)
        ]
        seeds = search.run(seeded, recipe.search, "none", say)
        for seed in seeds:
            _require([seed])
    best = max(seeds, key=lambda t: t.hr1)
    _track(registry, parent, [*tried, *seeded], [*ended, *seeds])
    write_bytes(join(planned.place, PLOT), plot(ended, rate))
    write_text(
        join(planned.place, SEARCH),
        json.dumps(_summary(planned, rate, ended, seeds, best), indent=1),
    )
    model = f"{registry.model}-{planned.domain}"
    tuned = registry.of_model(model)
    number = tuned.register(best.checkpoint, _lineage(planned, best), parent.run_id)
    return Found(rate, ended, seeds, best, model, number, join(planned.place, PLOT))


def _require(ended: Sequence[Tuned]) -> None:
    """Something was learned in one of these trials."""
    if not any(trial.checkpoint for trial in ended):
        shown = ", ".join(f"{trial.rate:g} (seed {trial.seed})" for trial in ended)
        raise RunError(f"training diverged in its first epoch at {shown}; give lower search.rates")


def plot(ended: Sequence[Tuned], rate: float) -> bytes:
    """HR@1 on validation of every trial by its learning rate, as SVG; the best rate is marked. Equal trials give an equal file."""
    with rc_context(
        {
            "svg.hashsalt": "trials",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        curves, summary = figure.subplots(1, 2)
        for t in ended:
            curves.plot(
                range(1, len(t.history) + 1),
                t.history,
                marker=".",
                linestyle=":" if t.stopped else "-",
                label=f"{t.rate:g}, seed {t.seed}",
            )
        curves.set_xlabel("epoch (dotted: cut short)")
        curves.set_ylabel("HR@1 on validation")
        curves.legend(frameon=False, fontsize=7)
        rates = sorted({t.rate for t in ended})
        summary.scatter([t.rate for t in ended], [t.hr1 for t in ended], color="#8fb8de")
        summary.plot(
            rates,
            [float(np.mean([t.hr1 for t in ended if t.rate == r])) for r in rates],
            color="#1c2430",
        )
        summary.axvline(rate, color="#b3261e", linestyle=":")
        summary.set_xscale("log")
        summary.set_xlabel("learning rate")
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _settle(planned: Plan) -> None:
    """Note what the search is of, or compare with what is noted."""
    recipe = planned.recipe
    identity = {
        "corpus": planned.corpus.commits[0].metadata["fingerprint"],
        "corpus_version": planned.corpus.version,
        "base": planned.base,
        "start": planned.start,
        "model": recipe.model.model_dump(),
        "finetune": recipe.finetune.model_dump(exclude={"start", "name", "domain"}),
        "baseline": recipe.baseline.model_dump(exclude={"seeds"}),
        "seed": recipe.seed,
    }
    identity = json.loads(json.dumps(identity))
    where = join(planned.place, IDENTITY)
    if not exists(where):
        write_text(where, json.dumps(identity, indent=1))
        return
    before: dict[str, Any] = json.loads(read_text(where))
    if changed := [key for key in identity if before.get(key) != identity[key]]:
        shown = "\n".join(f"  {key}: {before.get(key)!r} -> {identity[key]!r}" for key in changed)
        raise RunError(
            f"the search {planned.name} was started differently ({where}):\n{shown}\nuse another --finetune.name or --run, or put the values back"
        )


def _track(
    registry: Registry, parent: Tracker, trials: Sequence[Trial], ended: Sequence[Tuned]
) -> None:
    """Every trial as an MLflow run below the search's."""
    parent.flush()
    for trial, tuned in {
        trial.place: (trial, tuned) for trial, tuned in zip(trials, ended, strict=True)
    }.values():
        child = Tracker(registry, trial.place, f"{trial.rate:g}-{trial.seed}", parent=parent.run_id)
        child.params(
            {
                "rate": tuned.rate,
                "seed": tuned.seed,
                "start": trial.start or FRESH,
                "stopped": tuned.stopped,
            }
        )
        for epoch, hr1 in enumerate(tuned.history, 1):
            child.metrics({"hr1": hr1}, epoch)
        child.finish("FINISHED")
    parent.finish("FINISHED")


def _summary(
    planned: Plan, rate: float, ended: Sequence[Tuned], seeds: Sequence[Tuned], best: Tuned
) -> dict[str, Any]:
    return {
        "name": planned.name,
        "domain": planned.domain,
        "start": planned.start or FRESH,
        "trials": [asdict(t) for t in ended],
        "winner": {"rate": rate, "best": asdict(best), "seeds": [asdict(t) for t in seeds]},
    }


def _lineage(planned: Plan, best: Tuned) -> dict[str, str]:
    """Where a fine-tuned version comes from, as tags."""
    return {
        "run": run_uri(absolute(planned.recipe.storage), planned.recipe.run),
        "kind": "finetuned",
        "domain": planned.domain,
        "corpus": planned.corpus.uri,
        "corpus_version": str(planned.corpus.version),
        "corpus_fingerprint": planned.corpus.commits[0].metadata["fingerprint"],
        "ledger_digest": checkpoint.ledger(best.checkpoint).fingerprint(),
        "base": planned.base,
        "base_revision": planned.recipe.model.revision or "",
        "start": planned.start or FRESH,
        "parent_version": str(planned.parent or ""),
        "rate": f"{best.rate:g}",
        "seed": str(best.seed),
    }
