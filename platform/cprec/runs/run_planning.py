"""Plans a run that starts now: a trunk, one that goes on from another, or a branch.

A run that has started before keeps its plan. Nothing is written here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cluster.errors import CorpusError, RecipeError, RunError
from corpus.sampling.source import SourceKind
from corpus.store.tables import Corpus, Stream
from cprec.config.recipe import Recipe
from cprec.encode.prompt import TEMPLATES
from cprec.model.adapter_config import is_bare_adapter
from cprec.model.base_uri import locate_base, read_base_template
from cprec.runs import checkpoint
from cprec.runs.portions import build_replay, domain_names, remaining_portions, select_streams
from cprec.runs.restart import require_untrained
from cprec.runs.run_plan import RunPlan
from cprec.runs.token_form import TOKEN_FORM
from cprec.schedule import planning
from cprec.schedule.objectives import Objectives
from cprec.schedule.plan import Plan, Portion
from cprec.schedule.plan_notes import describe_objectives, describe_plan
from cprec.schedule.planning import NO_REPLAY, PlanSettings, Replay
from cprec.schedule.wsa import Mode

Selection = tuple[PlanSettings, list[Portion], list[Portion], Replay]
"""What a plan is built of: settings, domain-specific portions, mixed portions, replayed text."""


@dataclass(frozen=True)
class Parent:
    """What a run goes on from: a stable checkpoint of a trunk, a bare adapter, or the base.

    Attributes:
        uri: URI of the checkpoint or the adapter; None for the base.
        consumed: What the trunk had consumed there.
        passed_over: Domains that the run passes over.
        template: Template of the prompts that it was trained on; of a base that names none, that of
            the corpus.
        token_form: Rules of tokens under which its weights were trained.
        weights_only: Whether it is a bare adapter: it has weights, and neither plan nor optimizer.
    """

    uri: str | None
    consumed: tuple[Portion, ...]
    passed_over: tuple[str, ...]
    template: str
    token_form: int = TOKEN_FORM
    weights_only: bool = False


def resolve_run_plan(
    recipe: Recipe, run_uri: str, corpus: Corpus, previous_recipe: Recipe | None = None
) -> tuple[RunPlan, bool]:
    """Reads the plan of a run that has started, or plans a new run. Writes nothing.

    Args:
        recipe: The recipe of this start.
        run_uri: Folder of the run.
        corpus: The corpus that the recipe names.
        previous_recipe: The recipe of the run's last start. Where schedule.hold_open has changed
            since, the stable phase is held open or released.

    Returns:
        (the run plan, whether the run is new).

    Raises:
        CorpusError: The corpus is not the one that the run started on, or holds nothing to train.
        RunError: The run cannot go on from its parent checkpoint.
        RecipeError: The recipe's schedule has no annealing, and the run is a branch.
    """
    run_plan = RunPlan.read(run_uri)
    if run_plan is None:
        require_untrained(run_uri)
        return create_run_plan(recipe, corpus), True
    # The recipe may name an older version than the run has adopted, so ask for the newest one.
    if run_plan.corpus != corpus.fingerprint or run_plan.version > Corpus.open(corpus.uri).version:
        raise CorpusError(
            f"{corpus.uri}: this is corpus {corpus.fingerprint}, version {corpus.version}; "
            f"the run {recipe.run} is on {run_plan.corpus}, version {run_plan.version}: "
            "point --corpus at that one, or start another --run"
        )
    hold = recipe.schedule.hold_open
    hold_changed = previous_recipe is not None and previous_recipe.schedule.hold_open != hold
    if hold_changed and not run_plan.closed:
        run_plan = replace(run_plan, hold=hold)
    return run_plan, False


def create_run_plan(recipe: Recipe, corpus: Corpus) -> RunPlan:
    """Plans a run that starts now: from the base, from a checkpoint of a trunk, or as a branch.

    Raises:
        CorpusError: The corpus does not hold what the recipe needs.
        RunError: The run cannot go on from its parent checkpoint.
        RecipeError: The recipe's schedule has no annealing, and the run is a branch.
    """
    _require_users_together(recipe, corpus)
    streams = corpus.streams()
    available = domain_names(select_streams(streams, SourceKind.DOMAIN))
    domains = recipe.data.domains or available
    if absent := [domain for domain in domains if domain not in available]:
        raise CorpusError(
            f"{corpus.uri}: no training samples of domain {', '.join(absent)}; "
            f"this corpus pre-trains on {', '.join(available) or 'nothing'}"
        )
    parent = _find_parent(recipe, corpus, tuple(name for name in available if name not in domains))
    if recipe.continue_from is not None and not parent.weights_only:
        domains = tuple(name for name in available if name not in parent.passed_over)
    if recipe.branch:
        if parent.weights_only:
            raise RunError(
                f"{parent.uri}: a bare adapter, which has no plan; a branch anneals a stable "
                "checkpoint"
            )
        settings, domain, mixed, replay = _select_for_branch(recipe, corpus, streams, parent)
    else:
        settings, domain, mixed, replay = _select_for_trunk(recipe, corpus, streams, parent)
    try:
        plan = planning.build_plan(settings, domain, mixed, parent.consumed, replay)
    except ValueError as error:
        raise CorpusError(
            f"{corpus.uri}, with schedule.epochs {recipe.schedule.epochs} and schedule.weights "
            f"{recipe.schedule.weights}: {error}"
        ) from None
    return RunPlan(
        corpus.fingerprint,
        corpus.version,
        plan,
        domains=() if recipe.branch else tuple(domains),
        passed_over=parent.passed_over,
        hold=recipe.schedule.hold_open and not recipe.branch,
        closed=recipe.branch,
        parent=parent.uri,
        token_form=parent.token_form,
        prompt_template=parent.template,
    )


def describe_run(recipe: Recipe, corpus: Corpus, plan: Plan) -> str:
    """Describes the plan of a run for people, with what it cannot do of what was asked for."""
    schedule = recipe.schedule
    description = describe_plan(
        plan,
        recipe.train.global_batch,
        schedule.replay_share,
        schedule.min_annealing_share,
        schedule.annealing_share,
    )
    if note := describe_objectives(plan, Objectives(recipe.seed, schedule.objectives)):
        description += f"\n{note}"
    known = {s.source for s in corpus.streams() if s.source.kind is not SourceKind.DOWNSTREAM}
    read = {source for source, _ in plan.count_by_stream(0, plan.total_samples)}
    # A misspelt name of weight 0 would leave nothing out, and no other line would show it.
    idle = [
        name for name, weight in schedule.weights.items() if name not in (read if weight else known)
    ]
    if idle:
        description += (
            f"\nwarning: schedule.weights names {', '.join(sorted(idle))}, of which this run reads "
            f"nothing (yet); the corpus has {', '.join(sorted(known))}"
        )
    kinds = {source.partition("/")[0] for source in read}
    if unread := set(schedule.objectives) - kinds - read:
        description += (
            f"\nwarning: schedule.objectives names {', '.join(sorted(unread))}, of which this run "
            f"reads nothing (yet); it reads {', '.join(sorted(read))}"
        )
    return description


def _find_parent(recipe: Recipe, corpus: Corpus, passed_over: tuple[str, ...]) -> Parent:
    """Finds what a run starts from: the base, a bare adapter, or a checkpoint of a trunk.

    Args:
        recipe: The recipe.
        corpus: The corpus of the new run.
        passed_over: Domains of the corpus that the recipe leaves out; a trunk has its own.
    """
    start = recipe.continue_from
    if start is None:
        base_template = read_base_template(locate_base(recipe, corpus))
        template = base_template or TEMPLATES[corpus.prompt_template]
        if recipe.model.adapter == "prompt":
            template = template.with_soft_tokens(recipe.model.soft_tokens)
        return Parent(None, (), passed_over, template.name)
    template = checkpoint.read_template(start)
    if is_bare_adapter(start):
        return Parent(start, (), passed_over, template.name, weights_only=True)
    return _read_parent(start, corpus, recipe.seed, template.name)


def _read_parent(uri: str, corpus: Corpus, seed: int, template: str) -> Parent:
    """Reads a parent checkpoint, and checks that it is stable and fits a new run.

    Args:
        uri: URI of the checkpoint.
        corpus: The corpus of the new run.
        seed: Its seed.
        template: Name of the template of the checkpoint's prompts.

    Raises:
        RunError: The checkpoint is damaged, was taken while annealing, or has another seed.
        CorpusError: It was trained on another corpus.
    """
    ledger = checkpoint.read_verified_ledger(uri)
    consumed = ledger.plan.consumed_portions(ledger.samples)
    stable_end = ledger.plan.wsa.stable_end
    if ledger.samples > stable_end:
        raise RunError(
            f"{uri}: taken while annealing ({ledger.samples:,} samples, S = {stable_end:,}); "
            "only stable checkpoints can be continued"
        )
    trunk = RunPlan.read(uri.rsplit("/", 2)[0])  # <run>/checkpoints/<name>
    if trunk is not None and trunk.corpus != corpus.fingerprint:
        raise CorpusError(
            f"{uri} was trained on corpus {trunk.corpus}; {corpus.uri} is {corpus.fingerprint}"
        )
    trained_seed = ledger.plan.domain_eras[0].seed
    if seed != trained_seed:
        raise RunError(
            f"{uri} was trained with seed {trained_seed}, which ordered its samples; "
            f"this recipe has seed {seed}: set --seed {trained_seed}"
        )
    if trunk is None:
        return Parent(uri, consumed, (), template)
    return Parent(uri, consumed, trunk.passed_over, template, trunk.token_form)


def _require_users_together(recipe: Recipe, corpus: Corpus) -> None:
    """Checks that samples of one user are neighbours where the recipe lets them share a pass."""
    rules = corpus.commits[0].metadata.get("rules", {})
    if recipe.train.targets_per_pass > 1 and not rules.get("data.users_together"):
        raise CorpusError(
            f"{corpus.uri}: its samples are not ordered by user, so train.targets_per_pass "
            f"({recipe.train.targets_per_pass}) would find none that share a history; build "
            "another corpus with data.users_together: true, or set train.targets_per_pass to 1"
        )


def _select_for_trunk(
    recipe: Recipe, corpus: Corpus, streams: Sequence[Stream], parent: Parent
) -> Selection:
    """Selects all samples that the parent of a trunk has not consumed."""
    settings = plan_settings(recipe)
    replay = _replay_from_recipe(recipe, corpus, streams, parent.consumed)
    passes = recipe.schedule.passes
    domain = remaining_portions(
        select_streams(streams, SourceKind.DOMAIN, parent.passed_over), passes, parent.consumed
    )
    mixed = remaining_portions(select_streams(streams, SourceKind.MIXED), passes, parent.consumed)
    if parent.uri is not None and not parent.weights_only:
        if not domain:
            raise CorpusError(
                f"{corpus.uri}: version {corpus.version} holds no domain-specific sample that "
                f"{parent.uri} has not consumed; append a domain first, or raise "
                "schedule.epochs"
            )
        if not recipe.schedule.rewarm:
            settings = replace(settings, warmup_fraction=0.0)
    return settings, domain, mixed, replay


def _select_for_branch(
    recipe: Recipe, corpus: Corpus, streams: Sequence[Stream], parent: Parent
) -> Selection:
    """Selects the mixed samples that the parent of a branch has not consumed."""
    _require_annealing(recipe)
    mixed = remaining_portions(
        select_streams(streams, SourceKind.MIXED), recipe.schedule.passes, parent.consumed
    )
    if not mixed:
        raise CorpusError(
            f"{corpus.uri}: no mixed samples, so there is nothing to anneal on; "
            "give users one id in all domains (see data.mixed_min_domains), or train trunks only, "
            "with schedule.mode domain_only"
        )
    return plan_settings(recipe).for_branch(), [], mixed, NO_REPLAY


def _require_annealing(recipe: Recipe) -> None:
    """Checks that the recipe's schedule anneals on mixed samples, as a branch needs."""
    if not recipe.schedule.mode.anneals_on_mixed:
        allowed = ", ".join(mode for mode in Mode if mode.anneals_on_mixed)
        raise RecipeError(
            f"schedule.mode: {recipe.schedule.mode} does not anneal on mixed samples; "
            f"a branch needs one of {allowed}"
        )


def plan_settings(recipe: Recipe) -> PlanSettings:
    """Returns the settings of a plan that come from the recipe."""
    schedule = recipe.schedule
    return PlanSettings(
        seed=recipe.seed,
        lr_min=schedule.lr_min,
        lr_max=schedule.lr_max,
        warmup_fraction=schedule.warmup_fraction,
        max_domain_samples=recipe.train.max_samples,
        mode=schedule.mode,
        annealing_share=schedule.annealing_share,
    )


def _replay_from_recipe(
    recipe: Recipe, corpus: Corpus, streams: Sequence[Stream], consumed: Iterable[Portion] = ()
) -> Replay:
    """Builds the replay that a recipe asks for; raises CorpusError if the corpus has no text."""
    fraction = recipe.schedule.replay_share
    if fraction and not select_streams(streams, SourceKind.TEXT):
        raise CorpusError(
            f"{corpus.uri}: version {corpus.version} holds no text, and schedule.replay_share is "
            f"{fraction:g}; append one with jobs/append_domain.py --text FILE "
            f"--corpus {corpus.uri}, or set the share to 0"
        )
    return build_replay(fraction, streams, recipe.schedule.passes, consumed)
