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

from cluster.console import Say
from cluster.errors import RecipeError, RunError
from cluster.ray_session import ray_session
from cluster.storage import absolute_uri, exists, join, read_text, write_bytes, write_text
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import rename_old_keys
from cprec.downstream import lr_search, stored_baselines
from cprec.downstream.domain import Domain
from cprec.downstream.scoring import get_results
from cprec.downstream.trial import Trial, TrialResult
from cprec.model.base_uri import resolve_base
from cprec.runs import checkpoint
from cprec.runs.records import run_folder
from cprec.tracking.registry import Registry, Tracker, Version
from cprec.workflows.evaluate import SEARCH

IDENTITY, PLOT = "identity.json", "trials.svg"
FRESH = "fresh"


@dataclass(frozen=True)
class SearchPlan:
    """A checked search. start: checkpoint that LoRA starts from, None: fresh; parent: its registered version, where it has one."""

    recipe: Recipe
    corpus: Corpus
    domain: str
    name: str
    uri: str
    base: str
    start_checkpoint: str | None
    parent_version: int | None
    lrs: tuple[float, ...]

    def build_trial(self, lr: float, seed: int, behaviour_weights: str | None) -> Trial:
        """One fine-tuning of the search."""
        return Trial(
            self.recipe,
            join(self.uri, "trials", f"{lr:g}-{seed}"),
            self.domain,
            self.base,
            self.start_checkpoint,
            behaviour_weights,
            lr,
            seed,
        )


@dataclass(frozen=True)
class SearchResult:
    """What a search found. trials: those of the search; seeds: the best rate's; best: of these, the best on validation; version: the registered."""

    lr: float
    trials: Sequence[TrialResult]
    winner_trials: Sequence[TrialResult]
    best: TrialResult
    model: str
    version: int
    plot_uri: str


def plan_search(recipe: Recipe, registry: Registry, say: Say) -> SearchPlan:
    """What is to be trained. Raises UserError for a start, a corpus or a domain that is not there."""
    settings = recipe.finetune
    domain = settings.domain or next(iter(recipe.data.held_out), None)
    if domain is None:
        raise RecipeError(
            "finetune.domain: none given, and data.held_out is empty; name a domain of the corpus"
        )
    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    for split in ("train", "validation"):
        Domain.from_corpus(corpus, domain, split)
    version: Version | None = None
    start = None
    if settings.start != FRESH:
        version = registry.find_version(settings.start)
        start = version.checkpoint if version else absolute_uri(settings.start)
        checkpoint.verify(start)
    base = version.tags.get("base") if version else None
    name = settings.name or ("llara" if start is None else "cprec")
    place = join(run_folder(absolute_uri(recipe.storage), recipe.run), "finetune", domain, name)
    rates = lr_search.trial_lrs(recipe.search, recipe.seed)
    return SearchPlan(
        recipe,
        corpus,
        domain,
        name,
        place,
        base or resolve_base(recipe, corpus, say),
        start,
        version.number if version else None,
        rates,
    )


def search_and_register(recipe: Recipe, registry: Registry, say: Say) -> SearchResult:
    """Run a search, or go on with it, train the best rate with every seed, and register the best of them.

    Raises RunError when another search lies in its place, or when the rates are so high that nothing was learned.
    """
    planned = plan_search(recipe, registry, say)
    lock_identity(planned)
    parent = Tracker(registry, planned.uri, f"{recipe.run}-{planned.domain}-{planned.name}")
    parent.flush()
    with ray_session(
        recipe.cluster.address,
        recipe.cluster.num_cpus
        or recipe.workers * recipe.train.cpus_per_worker * (recipe.search.concurrent or 1),
    ):
        behaviour = None
        if recipe.finetune.hybrid:
            say("item embeddings of SASRec")
            task = ray.remote(stored_baselines.ensure_trained).options(
                num_cpus=recipe.train.cpus_per_worker
            )
            behaviour = get_results(
                [task.remote(recipe, planned.corpus, planned.domain, "sasrec", recipe.seed)]
            )[0]
        tried = [
            planned.build_trial(rate, seed, behaviour)
            for rate in planned.lrs
            for seed in range(recipe.search.seeds)
        ]
        ended = lr_search.run_trials(tried, recipe.search, recipe.search.stopper, say)
        _check_any_converged(ended)
        rate = lr_search.best_lr(ended)
        say(f"best learning rate {rate:g}; training it with {recipe.search.winner_seeds} seeds")
        # A trial of the best rate that the search cut short is not trained on: nothing cuts the best one short.
        seeded = [
            planned.build_trial(rate, seed, behaviour) for seed in range(recipe.search.winner_seeds)
        ]
        seeds = lr_search.run_trials(seeded, recipe.search, "none", say)
        for seed in seeds:
            _check_any_converged([seed])
    best = max(seeds, key=lambda t: t.hr1)
    _log_trials(registry, parent, [*tried, *seeded], [*ended, *seeds])
    write_bytes(join(planned.uri, PLOT), plot_trials(ended, rate))
    write_text(
        join(planned.uri, SEARCH),
        json.dumps(_search_summary(planned, rate, ended, seeds, best), indent=1),
    )
    model = f"{registry.model}-{planned.domain}"
    tuned = registry.with_model(model)
    number = tuned.register(best.checkpoint, _lineage(planned, best), parent.run_id)
    return SearchResult(rate, ended, seeds, best, model, number, join(planned.uri, PLOT))


def _check_any_converged(results: Sequence[TrialResult]) -> None:
    """Something was learned in one of these trials."""
    if not any(trial.checkpoint for trial in results):
        shown = ", ".join(f"{trial.rate:g} (seed {trial.seed})" for trial in results)
        raise RunError(f"training diverged in its first epoch at {shown}; give lower search.lrs")


def plot_trials(results: Sequence[TrialResult], best_lr: float) -> bytes:
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
        for t in results:
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
        rates = sorted({t.rate for t in results})
        summary.scatter([t.rate for t in results], [t.hr1 for t in results], color="#8fb8de")
        summary.plot(
            rates,
            [float(np.mean([t.hr1 for t in results if t.rate == r])) for r in rates],
            color="#1c2430",
        )
        summary.axvline(best_lr, color="#b3261e", linestyle=":")
        summary.set_xscale("log")
        summary.set_xlabel("learning rate")
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def lock_identity(plan: SearchPlan) -> None:
    """Note what the search is of, or compare with what is noted."""
    recipe = plan.recipe
    identity = {
        "corpus": plan.corpus.commits[0].metadata["fingerprint"],
        "corpus_version": plan.corpus.version,
        "base": plan.base,
        "start": plan.start_checkpoint,
        "model": recipe.model.model_dump(),
        "finetune": recipe.finetune.model_dump(exclude={"start", "name", "domain"}),
        "baseline": recipe.baseline.model_dump(exclude={"seeds"}),
        "seed": recipe.seed,
    }
    identity = json.loads(json.dumps(identity))
    where = join(plan.uri, IDENTITY)
    if not exists(where):
        write_text(where, json.dumps(identity, indent=1))
        return
    before = rename_old_keys(json.loads(read_text(where)), where)
    if changed := [key for key in identity if before.get(key) != identity[key]]:
        shown = "\n".join(f"  {key}: {before.get(key)!r} -> {identity[key]!r}" for key in changed)
        raise RunError(
            f"the search {plan.name} was started differently ({where}):\n{shown}\nuse another --finetune.name or --run, or put the values back"
        )


def _log_trials(
    registry: Registry, parent: Tracker, trials: Sequence[Trial], results: Sequence[TrialResult]
) -> None:
    """Every trial as an MLflow run below the search's."""
    parent.flush()
    for trial, tuned in {
        trial.uri: (trial, tuned) for trial, tuned in zip(trials, results, strict=True)
    }.values():
        child = Tracker(
            registry, trial.uri, f"{trial.lr:g}-{trial.seed}", parent_run_id=parent.run_id
        )
        child.log_params(
            {
                "rate": tuned.rate,
                "seed": tuned.seed,
                "start": trial.start_checkpoint or FRESH,
                "stopped": tuned.stopped,
            }
        )
        for epoch, hr1 in enumerate(tuned.history, 1):
            child.log_metrics({"hr1": hr1}, epoch)
        child.finish("FINISHED")
    parent.finish("FINISHED")


def _search_summary(
    plan: SearchPlan,
    best_lr: float,
    results: Sequence[TrialResult],
    winner_trials: Sequence[TrialResult],
    best: TrialResult,
) -> dict[str, Any]:
    return {
        "name": plan.name,
        "domain": plan.domain,
        "start": plan.start_checkpoint or FRESH,
        "trials": [asdict(t) for t in results],
        "winner": {
            "rate": best_lr,
            "best": asdict(best),
            "seeds": [asdict(t) for t in winner_trials],
        },
    }


def _lineage(plan: SearchPlan, best: TrialResult) -> dict[str, str]:
    """Where a fine-tuned version comes from, as tags."""
    return {
        "run": run_folder(absolute_uri(plan.recipe.storage), plan.recipe.run),
        "kind": "finetuned",
        "domain": plan.domain,
        "corpus": plan.corpus.uri,
        "corpus_version": str(plan.corpus.version),
        "corpus_fingerprint": plan.corpus.commits[0].metadata["fingerprint"],
        "ledger_digest": checkpoint.read_ledger(best.checkpoint).fingerprint(),
        "base": plan.base,
        "base_revision": plan.recipe.model.revision or "",
        "start": plan.start_checkpoint or FRESH,
        "parent_version": str(plan.parent_version or ""),
        "rate": f"{best.rate:g}",
        "seed": str(best.seed),
    }
