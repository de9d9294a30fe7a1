"""Fine-tuning on one domain, with a search of its learning rate.

SASRec's item embeddings -> trials -> best learning rate -> its seeds -> registered version.

Below `<storage>/<run>/finetune/<domain>/<name>/`:

    identity.json          what the search depends on
    trials/<lr>-<seed>/    one trial each
    trials.svg             HR@1 on validation by epoch and by learning rate
    search.json            the result, written last

A search that is started again trains what is missing of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.console import Say
from cluster.errors import RecipeError, RunError
from cluster.progress import track
from cluster.ray_session import ray_session
from cluster.ray_tasks import get_results
from cluster.storage import absolute_uri, join, list_names, write_text
from corpus.store.tables import Corpus
from cprec.baselines.popularity import POPULARITY
from cprec.baselines.training import BASELINE_NAMES
from cprec.config.recipe import Recipe
from cprec.downstream import lr_search
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import PROMPTED_BASES, EvaluatedModel
from cprec.downstream.known_items import is_hybrid
from cprec.downstream.search_plan import (
    FRESH,
    SearchPlan,
    SearchSummary,
    SearchWinner,
    check_identity,
    lock_identity,
)
from cprec.downstream.stored_model import Form, StoredModel
from cprec.downstream.trial import Trial, require_trainable
from cprec.downstream.trial_records import TrialResult
from cprec.model.base_files import identify
from cprec.model.base_uri import is_unbuilt, resolve_base
from cprec.model.context_length import require_context
from cprec.runs import checkpoint
from cprec.runs.run_records import recipe_run_uri
from cprec.tracking.figures import plot_trials
from cprec.tracking.lineage import (
    CARD_FILE,
    LICENSE_TAG,
    TEMPLATE_TAG,
    find_license,
    find_version_below,
    trained_on,
)
from cprec.tracking.model_card import publish_card
from cprec.tracking.registry import ALIASES, TRAINED_ON_TAG, Registry
from cprec.tracking.tracker import Tracker
from cprec.tracking.version_names import CANDIDATE
from cprec.workflows.evaluation.baselines import start_training
from cprec.workflows.evaluation.models import (
    check_tokenizer,
    describe_model,
    describe_other_template,
    find_model,
)

PLOT = "trials.svg"
RESERVED_NAMES = ("base", POPULARITY, *BASELINE_NAMES, *PROMPTED_BASES, CANDIDATE, *ALIASES)
"""Words of `evaluate.models`, which no search may have as its name."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        lr: Best learning rate.
        trials: All trials of the search.
        winner_trials: Trials of the best learning rate, one for each seed.
        best: The best of those on validation, which is the one registered.
        model: Name of the registered model.
        version: Version that was registered.
        plot_uri: Picture of the trials.
        equal_lrs: Other learning rates that the search cannot tell from the best one.
    """

    lr: float
    trials: Sequence[TrialResult]
    winner_trials: Sequence[TrialResult]
    best: TrialResult
    model: str
    version: int
    plot_uri: str
    equal_lrs: tuple[float, ...]

    def describe(self) -> Iterator[str]:
        """Yields the winner, and where everything is, for people."""
        yield (
            f"best learning rate {self.lr:g}: HR@1 {self.best.hr1:.4f} on validation "
            f"after epoch {self.best.epoch} (seed {self.best.seed})"
        )
        if self.equal_lrs:
            yield (
                f"the search cannot tell it from {', '.join(f'{lr:g}' for lr in self.equal_lrs)}: "
                "their HR@1 on validation are equal within noise; more finetune.validation_users "
                "or search.seeds would tell more"
            )
        yield f"registered {self.model} version {self.version}: {self.best.checkpoint}"
        yield f"plot: {self.plot_uri}"


def search_and_register(recipe: Recipe, registry: Registry, say: Say) -> SearchResult:
    """Searches the learning rate, trains the best one with several seeds, and registers a version.

    The version is the best of these trials on validation. Trials that are done already are not
    trained again.

    Args:
        recipe: The recipe of the job.
        registry: Where the start is looked up, and the version is registered.
        say: Receives progress lines.

    Raises:
        RunError: A search of this name was started with something else; or training diverged at
            every learning rate, or with a seed of the best one.
        UserError: The checkpoint to start from, the corpus or the domain is missing, or the recipe
            cannot be trained.
    """
    plan = plan_search(recipe, registry, say)
    if is_unbuilt(recipe, plan.base):
        resolve_base(recipe, plan.corpus, say)
        plan = replace(plan, revision=identify(plan.base, recipe.model.revision).revision)
    require_context(plan.base, plan.revision, recipe.model.max_tokens)
    lock_identity(plan)
    tracker = Tracker(registry, plan.uri, f"{recipe.run}-{plan.domain}-{plan.name}")
    tracker.flush()
    with ray_session(recipe.cluster.address, _logical_cpus(recipe)):
        behaviour_weights = None
        if recipe.finetune.hybrid:
            with track("item embeddings of SASRec", say):
                behaviour_weights = _train_sasrec(plan)
        trials = [
            plan.build_trial(lr, seed, behaviour_weights)
            for lr in plan.lrs
            for seed in recipe.seeds(recipe.search.seeds)
        ]
        results = lr_search.run_trials(trials, recipe.search, recipe.search.stopper, say)
        _require_convergence(results)
        best_lr = lr_search.best_lr(results)
        say(f"best learning rate {best_lr:g}; training it with {recipe.search.winner_seeds} seeds")
        winner_trials = [
            plan.build_trial(best_lr, seed, behaviour_weights)
            for seed in recipe.seeds(recipe.search.winner_seeds)
        ]
        # No stopper here. A trial that the search stopped early counts with the result it had.
        winner_results = lr_search.run_trials(winner_trials, recipe.search, "none", say)
        for result in winner_results:
            _require_convergence([result])
    best = max(winner_results, key=lambda result: result.hr1)
    _log_trials(registry, tracker, [*trials, *winner_trials], [*results, *winner_results])
    plot_uri = join(plan.uri, PLOT)
    samples = _count_validation_samples(plan)
    write_text(plot_uri, plot_trials(results, best_lr, samples))
    SearchSummary(
        plan.name,
        plan.domain,
        plan.start_checkpoint or FRESH,
        results,
        SearchWinner(best_lr, best, winner_results),
    ).write(plan.uri)
    models = _tuned_models(registry, plan.domain)
    version = models.register(best.checkpoint, _lineage(plan, best), tracker.run_id)
    card = publish_card(models, version)
    write_text(join(best.checkpoint, checkpoint.ADAPTER, CARD_FILE), card.content)
    equal_lrs = lr_search.lrs_within_noise(results, samples)
    return SearchResult(
        best_lr, results, winner_results, best, models.model, version, plot_uri, equal_lrs
    )


def _tuned_models(registry: Registry, domain: str) -> Registry:
    """Returns the registry of the models that are fine-tuned on a domain."""
    return registry.with_model(f"{registry.model}-{domain}")


def _require_unregistered(plan: SearchPlan, registry: Registry) -> None:
    """Checks that no version is of a search of this name whose folder was removed.

    Raises:
        RunError: There is such a version.
    """
    if list_names(plan.uri) or (number := find_version_below(registry, plan.uri)) is None:
        return
    raise RunError(
        f"{plan.uri} holds nothing, but {registry.model} version {number} is one of this search; "
        "restore it, or use another --finetune.name or --run"
    )


def _count_validation_samples(plan: SearchPlan) -> int:
    """Counts the validation samples on which a trial is scored."""
    source = Domain.from_corpus(plan.corpus, plan.domain, "validation").source
    streams = plan.corpus.streams("validation")
    available = sum(stream.rows for stream in streams if stream.source == source)
    return min(available, plan.recipe.finetune.validation_users)


def plan_search(recipe: Recipe, registry: Registry, say: Say) -> SearchPlan:
    """Resolves and checks what a search trains, and from what, and says it. Writes nothing.

    Raises:
        UserError: The start, the corpus or the domain are missing, or the recipe cannot be trained.
    """
    settings = recipe.finetune
    require_trainable(recipe)
    # Trials have working directories of their own.
    recipe = recipe.model_copy(
        update={"corpus": absolute_uri(recipe.corpus), "storage": absolute_uri(recipe.storage)}
    )
    domain = settings.domain or next(iter(recipe.data.held_out), None)
    if domain is None:
        raise RecipeError(
            "finetune.domain: none given, and data.held_out is empty; name a domain of the corpus"
        )
    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    for split in ("train", "validation"):
        Domain.from_corpus(corpus, domain, split)  # raises where the split has no samples
    name_of_start = "base" if settings.start == FRESH else settings.start
    start = find_model(recipe, registry, name_of_start, "finetune.start", corpus)
    start_checkpoint = _adapter_of(start)
    template = start.template
    if start_checkpoint is None and recipe.model.adapter == "prompt":
        template = template.with_soft_tokens(recipe.model.soft_tokens)
    name = settings.name or ("llara" if start_checkpoint is None else "cprec")
    if name in RESERVED_NAMES or name.isdecimal():
        raise RecipeError(
            f"finetune.name: {name} means another model in evaluate.models; give another name"
        )
    base = start.base
    # The base of a version must be what it was; another one is kept as it is now.
    revision = start.revision if start.version else None
    if revision is None and not is_unbuilt(recipe, base):
        revision = identify(base, start.revision).revision
    plan = SearchPlan(
        recipe,
        corpus,
        domain,
        name,
        join(recipe_run_uri(recipe), "finetune", domain, name),
        base,
        start_checkpoint,
        start.version,
        lr_search.trial_lrs(recipe.search, recipe.seed),
        template,
        revision,
    )
    check_tokenizer(recipe, corpus, base, revision, plan.template, settings.hybrid)
    check_identity(plan)
    _require_unregistered(plan, _tuned_models(registry, domain))
    say(
        f"{name} on {domain}, version {corpus.version} of {corpus.uri}; "
        f"{_describe_training(recipe, start)}; in {plan.uri}"
    )
    if note := describe_other_template(plan.template, corpus, start.checkpoint or base):
        say(note)
    if is_hybrid(start_checkpoint):
        say("the start is a hybrid model: its adapter is taken, its projector and items are not")
    return plan


TRAINED = {
    "lora": "LoRA",
    "full": "all weights",
    "partial": "a part of the weights",
    "prompt": "a soft prompt",
}
"""What is trained, by `model.adapter`."""


def _describe_training(recipe: Recipe, start: EvaluatedModel) -> str:
    """Says what is trained, and from where."""
    adapter = recipe.model.adapter
    if _adapter_of(start) is not None:
        origin = describe_model(start)
    elif adapter in ("lora", "prompt"):
        origin = f"fresh weights, on {start.base}"
    else:
        origin = f"those of {start.base}"
    return f"{TRAINED[adapter]} from {origin}"


def _adapter_of(start: EvaluatedModel) -> str | None:
    """Returns the stored model whose adapter LoRA starts from; None for fresh weights.

    A base is one without an adapter, and so is a merged model.
    """
    if start.checkpoint is None or StoredModel.at(start.checkpoint).form == Form.MERGED:
        return None
    return start.checkpoint


def _logical_cpus(recipe: Recipe) -> int:
    """Returns the CPUs of a local session: those of the trials that run at a time."""
    return recipe.cluster.num_cpus or (
        recipe.workers * recipe.train.cpus_per_worker * (recipe.search.concurrent or 1)
    )


def _train_sasrec(plan: SearchPlan) -> str:
    """Returns the URI of SASRec's weights on the domain, trained in a Ray task where missing."""
    task = start_training(plan.recipe, plan.corpus, plan.domain, "sasrec", plan.recipe.seed)
    weights_uri: str = get_results([task])[0]
    return weights_uri


def _require_convergence(results: Sequence[TrialResult]) -> None:
    """Raises RunError where every one of these trials diverged in its first epoch."""
    if not any(result.checkpoint for result in results):
        shown = ", ".join(f"{result.lr:g} (seed {result.seed})" for result in results)
        raise RunError(f"training diverged in its first epoch at {shown}; give lower search.lrs")


def _log_trials(
    registry: Registry,
    search_tracker: Tracker,
    trials: Sequence[Trial],
    results: Sequence[TrialResult],
) -> None:
    """Records every trial as an MLflow run below that of the search, and ends them all."""
    search_tracker.flush()
    # A trial of the search may also be one of the best learning rate's seeds.
    by_uri = {trial.uri: (trial, result) for trial, result in zip(trials, results, strict=True)}
    for trial, result in by_uri.values():
        tracker = Tracker(
            registry,
            trial.uri,
            f"{trial.lr:g}-{trial.seed}",
            parent_run_id=search_tracker.run_id,
        )
        tracker.log_params(
            {
                "lr": result.lr,
                "seed": result.seed,
                "start": trial.start_checkpoint or FRESH,
                "stopped": result.stopped,
            }
        )
        for epoch, hr1 in enumerate(result.history, 1):
            tracker.log_metrics({"hr1": hr1}, epoch)
        tracker.finish("FINISHED")
    search_tracker.finish("FINISHED")


def _lineage(plan: SearchPlan, best: TrialResult) -> dict[str, str]:
    """Returns where a fine-tuned version comes from, as tags."""
    return {
        "run": recipe_run_uri(plan.recipe),
        "kind": "finetuned",
        "domain": plan.domain,
        "corpus": plan.corpus.uri,
        "corpus_version": str(plan.corpus.version),
        "corpus_fingerprint": plan.corpus.fingerprint,
        "ledger_digest": checkpoint.read_ledger(best.checkpoint).fingerprint(),
        "base": plan.base,
        "base_revision": plan.revision or "",
        LICENSE_TAG: find_license(plan.recipe, plan.base, plan.revision),
        TRAINED_ON_TAG: _trained_on(plan, best),
        TEMPLATE_TAG: plan.template.name,
        "start": plan.start_checkpoint or FRESH,
        "parent_version": str(plan.parent_version or ""),
        "lr": f"{best.lr:g}",
        "seed": str(best.seed),
    }


def _trained_on(plan: SearchPlan, best: TrialResult) -> str:
    """Returns what the start and the fine-tuning were trained on; empty where that is unknown."""
    start = plan.start_checkpoint
    if start is not None and StoredModel.at(start).form != Form.CHECKPOINT:
        return ""
    return trained_on(*filter(None, [start, best.checkpoint]))
