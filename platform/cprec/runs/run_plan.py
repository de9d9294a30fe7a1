"""The run plan: what a run will train and from which corpus, as plan.json below <storage>/<run>/.

The file is written before any change to it takes effect. In the order of this module: the record
itself, how the run plan of a job is opened (a new run, a continued trunk, a branch), and how
streams of the corpus become portions of a plan.
"""

import json
import posixpath
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.errors import CorpusError, RecipeError, RunError
from cluster.storage import exists, join, read_text, write_text
from corpus.sampling.source import SourceKind
from corpus.store.tables import Corpus, Stream
from cprec.config.recipe import Recipe
from cprec.runs import checkpoint
from cprec.runs.records import PLAN_FILE
from cprec.runs.restart import require_untrained
from cprec.runs.token_form import TOKEN_FORM
from cprec.schedule import planning
from cprec.schedule.plan import Plan, Portion
from cprec.schedule.planning import PlanSettings, Replay
from cprec.schedule.wsa import Mode


@dataclass(frozen=True)
class RunPlan:
    """A run's plan together with its state.

    Attributes:
        corpus: Fingerprint of the corpus's first version, which identifies the corpus.
        version: Newest corpus version in the plan.
        plan: The plan.
        domains: Domains that the run pre-trains on, including those that joined.
        passed_over: Domains that the corpus held at the start and the recipe did not name.
        hold: Whether the stable phase stays open when it runs dry.
        closed: Whether annealing was called, so that nothing joins any more.
        parent: URI of the checkpoint that the run goes on from; None: it started from the base.
        token_form: Rules by which its text becomes tokens (cprec.runs.token_form).
    """

    corpus: str
    version: int
    plan: Plan
    domains: tuple[str, ...]
    passed_over: tuple[str, ...]
    hold: bool = False
    closed: bool = False
    parent: str | None = None
    token_form: int = 1

    @classmethod
    def read(cls, run_uri: str) -> "RunPlan | None":
        """Reads the plan of a run; None if the run never started."""
        uri = join(run_uri, PLAN_FILE)
        if not exists(uri):
            return None
        values: dict[str, Any] = json.loads(read_text(uri))
        names = {key: tuple(values[key]) for key in ("domains", "passed_over")}
        return cls(**{**values, **names, "plan": Plan.from_json(values["plan"])})

    def write(self, run_uri: str) -> None:
        """Writes plan.json, durably."""
        values = {**asdict(self), "plan": self.plan.to_json()}
        write_text(join(run_uri, PLAN_FILE), json.dumps(values, indent=1))

    def new_streams(self, corpus: Corpus) -> tuple[list[Stream], list[Stream], list[Stream]]:
        """Returns the streams of later corpus versions that this run would train.

        Args:
            corpus: The corpus in a later version.

        Returns:
            (domain-specific, mixed, text).
        """
        later = [stream for stream in corpus.streams() if stream.version > self.version]
        return (
            _select_streams(later, SourceKind.DOMAIN, self.passed_over),
            _select_streams(later, SourceKind.MIXED),
            _select_streams(later, SourceKind.TEXT),
        )

    def adopt_version(self, corpus: Corpus, plan: Plan, domain_streams: list[Stream]) -> "RunPlan":
        """Returns the run plan after a later corpus version joined.

        Args:
            corpus: The corpus in that version.
            plan: The extended plan.
            domain_streams: Domain-specific streams that joined.
        """
        domains = (*self.domains, *_domain_names(domain_streams))
        return replace(
            self, version=corpus.version, plan=plan, domains=tuple(dict.fromkeys(domains))
        )


# -- opening the run plan of a job


def open_run_plan(
    recipe: Recipe, run_uri: str, corpus: Corpus, previous_recipe: Recipe | None = None
) -> tuple[RunPlan, bool]:
    """Resolves the run plan of a job and makes it durable; see `resolve_run_plan`."""
    run_plan, is_new = resolve_run_plan(recipe, run_uri, corpus, previous_recipe)
    if run_plan != RunPlan.read(run_uri):
        run_plan.write(run_uri)
    return run_plan, is_new


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
    fingerprint = _corpus_fingerprint(corpus)
    # The recipe may name an older version than the run has adopted, so ask for the newest one.
    if run_plan.corpus != fingerprint or run_plan.version > Corpus.open(corpus.uri).version:
        raise CorpusError(
            f"{corpus.uri}: this is corpus {fingerprint}, version {corpus.version}; "
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
    available = _domain_names(_select_streams(streams, SourceKind.DOMAIN))
    domains = recipe.data.domains or available
    if absent := [domain for domain in domains if domain not in available]:
        raise CorpusError(
            f"{corpus.uri}: no training samples of domain {', '.join(absent)}; "
            f"this corpus pre-trains on {', '.join(available) or 'nothing'}"
        )
    if recipe.continue_from is not None:
        parent = _read_parent(recipe, corpus, recipe.continue_from)
        domains = tuple(name for name in available if name not in parent.passed_over)
    else:
        passed_over = tuple(name for name in available if name not in domains)
        parent = Parent(None, (), passed_over)
    if recipe.branch:
        return _plan_branch(recipe, corpus, streams, parent)
    return _plan_trunk(recipe, corpus, streams, tuple(domains), parent)


def _require_users_together(recipe: Recipe, corpus: Corpus) -> None:
    """Checks that samples of one user are neighbours where the recipe lets them share a pass."""
    rules = corpus.commits[0].metadata.get("rules", {})
    if recipe.train.targets_per_pass > 1 and not rules.get("data.users_together"):
        raise CorpusError(
            f"{corpus.uri}: its samples are not ordered by user, so train.targets_per_pass "
            f"({recipe.train.targets_per_pass}) would find none that share a history; build "
            "another corpus with data.users_together: true, or set train.targets_per_pass to 1"
        )


@dataclass(frozen=True)
class Parent:
    """What a run goes on from: a stable checkpoint of a trunk, or the base.

    Attributes:
        uri: URI of the checkpoint; None for the base.
        consumed: What the trunk had consumed there.
        passed_over: Domains that the run passes over.
    """

    uri: str | None
    consumed: tuple[Portion, ...]
    passed_over: tuple[str, ...]


def _read_parent(recipe: Recipe, corpus: Corpus, uri: str) -> Parent:
    """Reads a parent checkpoint, and checks that it is stable and fits corpus and recipe."""
    ledger = checkpoint.read_verified_ledger(uri)
    stable_end = ledger.plan.wsa.stable_end
    if ledger.samples > stable_end:
        raise RunError(
            f"{uri}: taken while annealing ({ledger.samples:,} samples, S = {stable_end:,}); "
            "only stable checkpoints can be continued"
        )
    trunk = RunPlan.read(uri.rsplit("/", 2)[0])  # <run>/checkpoints/<name>
    fingerprint = _corpus_fingerprint(corpus)
    if trunk is not None and trunk.corpus != fingerprint:
        raise CorpusError(
            f"{uri} was trained on corpus {trunk.corpus}; {corpus.uri} is {fingerprint}"
        )
    seed = ledger.plan.domain_eras[0].seed
    if recipe.seed != seed:
        raise RunError(
            f"{uri} was trained with seed {seed}, which ordered its samples; "
            f"this recipe has seed {recipe.seed}: set --seed {seed}"
        )
    consumed = ledger.plan.consumed_portions(ledger.samples)
    return Parent(uri, consumed, () if trunk is None else trunk.passed_over)


def _plan_trunk(
    recipe: Recipe,
    corpus: Corpus,
    streams: Sequence[Stream],
    domains: tuple[str, ...],
    parent: Parent,
) -> RunPlan:
    """Plans a trunk: all samples that its parent has not consumed.

    Args:
        recipe: The recipe of the run.
        corpus: The corpus.
        streams: Its training streams.
        domains: Domains that the run pre-trains on.
        parent: What the run goes on from.
    """
    settings = plan_settings(recipe)
    replay = _replay_from_recipe(recipe, corpus, streams, parent.consumed)
    domain = remaining_portions(
        _select_streams(streams, SourceKind.DOMAIN, parent.passed_over), parent.consumed
    )
    mixed = remaining_portions(_select_streams(streams, SourceKind.MIXED), parent.consumed)
    if parent.uri is not None:
        if not domain:
            raise CorpusError(
                f"{corpus.uri}: version {corpus.version} holds no domain-specific sample that "
                f"{parent.uri} has not consumed; append a domain first"
            )
        if not recipe.schedule.rewarm:
            settings = replace(settings, warmup_fraction=0.0)
    plan = planning.build_plan(settings, domain, mixed, parent.consumed, replay)
    return RunPlan(
        _corpus_fingerprint(corpus),
        corpus.version,
        plan,
        domains,
        parent.passed_over,
        hold=recipe.schedule.hold_open,
        parent=parent.uri,
        token_form=TOKEN_FORM,
    )


def _plan_branch(
    recipe: Recipe, corpus: Corpus, streams: Sequence[Stream], parent: Parent
) -> RunPlan:
    """Plans a branch: the mixed samples that its parent has not consumed."""
    _require_annealing(recipe)
    mixed = remaining_portions(_select_streams(streams, SourceKind.MIXED), parent.consumed)
    if not mixed:
        raise CorpusError(
            f"{corpus.uri}: no mixed samples, so there is nothing to anneal on; "
            "see data.mixed_min_domains"
        )
    plan = planning.build_plan(plan_settings(recipe).for_branch(), (), mixed, parent.consumed)
    return RunPlan(
        _corpus_fingerprint(corpus),
        corpus.version,
        plan,
        domains=(),
        passed_over=parent.passed_over,
        closed=True,
        parent=parent.uri,
        token_form=TOKEN_FORM,
    )


def _require_annealing(recipe: Recipe) -> None:
    """Checks that the recipe's schedule anneals on mixed samples, as a branch needs."""
    if not recipe.schedule.mode.anneals_on_mixed:
        allowed = ", ".join(mode for mode in Mode if mode.anneals_on_mixed)
        raise RecipeError(
            f"schedule.mode: {recipe.schedule.mode} does not anneal on mixed samples; "
            f"a branch needs one of {allowed}"
        )


def require_matching_adapter(recipe: Recipe, base: str, parent: str) -> None:
    """Checks that a recipe trains the kind of adapter that its parent checkpoint holds.

    Weights of another scale, or for another base of the same shape, would load without an error
    and mean something else.

    Args:
        recipe: The recipe.
        base: Base model that workers load.
        parent: URI of the parent checkpoint.

    Raises:
        RunError: Something differs; lists keys and values.
    """
    config_uri = join(parent, checkpoint.ADAPTER, "adapter_config.json")
    parent_has_lora = exists(config_uri)
    model = recipe.model
    recipe_values: dict[str, Any] = {"model.adapter": model.adapter}
    parent_values: dict[str, Any] = {"model.adapter": "lora" if parent_has_lora else "full"}
    if parent_has_lora and model.adapter == "lora":
        recipe_values |= {
            "model.lora_rank": model.lora_rank,
            "model.lora_alpha": model.lora_alpha,
            "model.base": base,
            "model.revision": model.revision,
        }
        config = json.loads(read_text(config_uri))
        parent_base = config.get("base_model_name_or_path")
        if posixpath.basename(base) == posixpath.basename(str(parent_base)):
            parent_base = base  # the same model in another folder
        parent_values |= {
            "model.lora_rank": config.get("r"),
            "model.lora_alpha": config.get("lora_alpha"),
            "model.base": parent_base,
            "model.revision": config.get("revision"),
        }
    differences = [
        f"  {key}: {parent_values[key]!r} in the checkpoint, {value!r} in this recipe"
        for key, value in recipe_values.items()
        if value != parent_values[key]
    ]
    if differences:
        raise RunError(
            f"{parent} was trained with other settings:\n"
            + "\n".join(differences)
            + "\nset the checkpoint's values, or start from the base"
        )


# -- from streams of the corpus to portions of a plan


def plan_settings(recipe: Recipe) -> PlanSettings:
    """Returns what a recipe decides about a plan."""
    schedule = recipe.schedule
    return PlanSettings(
        seed=recipe.seed,
        lr_min=schedule.lr_min,
        lr_max=schedule.lr_max,
        warmup_fraction=schedule.warmup_fraction,
        max_domain_samples=recipe.train.max_samples,
        mode=schedule.mode,
    )


def remaining_portions(
    streams: Iterable[Stream], consumed: Iterable[Portion] = ()
) -> list[Portion]:
    """Returns what each stream has left, as portions; streams without a row left are omitted.

    Args:
        streams: The streams.
        consumed: Portions from row 0 on that were consumed, of these and of other streams.
    """
    consumed_rows = {(portion.source, portion.version): portion.count for portion in consumed}
    portions = []
    for stream in streams:
        first = consumed_rows.get((stream.source, stream.version), 0)
        if first < stream.rows:
            portions.append(Portion(stream.source, stream.version, first, stream.rows - first))
    return portions


def build_replay(fraction: float, streams: Iterable[Stream], consumed: Iterable[Portion]) -> Replay:
    """Builds the replay of a run.

    Args:
        fraction: Fraction of the samples up to S that are windows of text.
        streams: Streams of the corpus, all of whose text is replayed.
        consumed: Portions that were consumed before.
    """
    texts = _select_streams(streams, SourceKind.TEXT)
    return Replay(fraction, tuple(remaining_portions(texts, consumed)))


def _replay_from_recipe(
    recipe: Recipe, corpus: Corpus, streams: Sequence[Stream], consumed: Iterable[Portion] = ()
) -> Replay:
    """Builds the replay that a recipe asks for; raises CorpusError if the corpus has no text."""
    fraction = recipe.schedule.replay_share
    if fraction and not _select_streams(streams, SourceKind.TEXT):
        raise CorpusError(
            f"{corpus.uri}: version {corpus.version} holds no text, and schedule.replay_share is "
            f"{fraction:g}; append one with jobs/append_domain.py --text FILE "
            f"--corpus {corpus.uri}, or set the share to 0"
        )
    return build_replay(fraction, streams, consumed)


def _select_streams(
    streams: Iterable[Stream], kind: SourceKind, passed_over: Collection[str] = ()
) -> list[Stream]:
    """Selects the streams of one kind of source, without those of some domains."""
    return [
        stream
        for stream in streams
        if stream.source.kind is kind and stream.source.name not in passed_over
    ]


def _domain_names(domain_streams: Iterable[Stream]) -> tuple[str, ...]:
    """Returns the domains of some streams, each once."""
    return tuple(dict.fromkeys(stream.source.name for stream in domain_streams))


def _corpus_fingerprint(corpus: Corpus) -> str:
    fingerprint: str = corpus.commits[0].metadata["fingerprint"]
    return fingerprint
