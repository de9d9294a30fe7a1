"""What a run owns on storage besides its checkpoints: plan.json, the one durable truth about what it will train, and from which corpus."""

import json
import posixpath
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.errors import CorpusError, RecipeError, RunError
from cluster.storage import exists, join, read_text, write_text
from corpus.sampling.source import SourceKind
from corpus.store.tables import Corpus, Stream
from cprec.config.recipe import Recipe
from cprec.runs import checkpoint
from cprec.runs.records import PLAN_FILE
from cprec.schedule import planning
from cprec.schedule.plan import Plan, Portion
from cprec.schedule.planning import PlanSettings, Replay
from cprec.schedule.wsa import Mode

ANNEALING_MODES = tuple(
    mode.value for mode in Mode if mode not in (Mode.DOMAIN_ONLY, Mode.SHUFFLED)
)
"""Values of schedule.mode under which mixed samples are read after S."""


@dataclass(frozen=True)
class RunPlan:
    """plan.json. corpus: fingerprint of its first version; version: newest one adopted; domains: what the run pre-trains on, with what joined;
    passed_over: domains that were there at the start and not wanted; parent: the checkpoint that the run went on from."""

    corpus: str
    version: int
    plan: Plan
    domains: tuple[str, ...]
    passed_over: tuple[str, ...]
    hold: bool = False
    closed: bool = False
    parent: str | None = None

    def write(self, run_uri: str) -> None:
        """Make it durable."""
        write_text(
            join(run_uri, PLAN_FILE),
            json.dumps({**asdict(self), "plan": self.plan.to_json()}, indent=1),
        )

    @classmethod
    def read(cls, run_uri: str) -> "RunPlan | None":
        """The course of a run; None if it never started."""
        where = join(run_uri, PLAN_FILE)
        if not exists(where):
            return None
        values: dict[str, Any] = json.loads(read_text(where))
        texts = {name: tuple(values[name]) for name in ("domains", "passed_over")}
        return cls(**{**values, **texts, "plan": Plan.from_json(values["plan"])})

    def new_streams(self, corpus: Corpus) -> tuple[list[Stream], list[Stream], list[Stream]]:
        """Streams of later corpus versions that this run would take up: (domain-specific, mixed, text to replay)."""
        later = [s for s in corpus.streams() if s.version > self.version]
        domain = [
            s
            for s in later
            if s.source.kind is SourceKind.DOMAIN and s.source.name not in self.passed_over
        ]
        return domain, [s for s in later if s.source.kind is SourceKind.MIXED], text_streams(later)

    def adopt_version(self, corpus: Corpus, plan: Plan, domain_streams: list[Stream]) -> "RunPlan":
        """The course after a later corpus version was adopted into the plan."""
        names = dict.fromkeys([*self.domains, *(s.source.name for s in domain_streams)])
        return replace(self, version=corpus.version, plan=plan, domains=tuple(names))


def plan_settings(recipe: Recipe) -> PlanSettings:
    """What a recipe says about the plan."""
    s = recipe.schedule
    return PlanSettings(
        recipe.seed, s.lr_min, s.lr_max, s.warmup_fraction, recipe.train.max_samples, Mode(s.mode)
    )


def remaining_portions(
    streams: list[Stream], consumed: dict[tuple[str, int], int] | None = None
) -> list[Portion]:
    """Streams as portions, from the first row that is not consumed."""
    used = consumed or {}
    firsts = [(s, used.get((s.source, s.version), 0)) for s in streams]
    return [
        Portion(s.source, s.version, first, s.rows - first) for s, first in firsts if first < s.rows
    ]


def text_streams(streams: Iterable[Stream]) -> list[Stream]:
    """Those of plain text."""
    return [s for s in streams if s.source.kind is SourceKind.TEXT]


def build_replay(fraction: float, corpus: Corpus, consumed: tuple[Portion, ...]) -> Replay:
    """What a run replays: the share, and all texts of the corpus less what is consumed."""
    rows = {(p.source, p.version): p.count for p in consumed}
    return Replay(fraction, tuple(remaining_portions(text_streams(corpus.streams()), rows)))


def _replay_from_recipe(
    recipe: Recipe, corpus: Corpus, consumed: tuple[Portion, ...] = ()
) -> Replay:
    """The same of a recipe. Raises CorpusError where it asks for text and the corpus has none."""
    share = recipe.schedule.replay_share
    if share and not text_streams(corpus.streams()):
        raise CorpusError(
            f"{corpus.uri}: version {corpus.version} holds no text, and schedule.replay_share is {share:g}; append one with "
            f"jobs/append_domain.py --text FILE --corpus {corpus.uri}, or set the share to 0"
        )
    return build_replay(share, corpus, consumed)


def open_run_plan(
    recipe: Recipe, run_uri: str, corpus: Corpus, previous_recipe: Recipe | None = None
) -> tuple[RunPlan, bool]:
    """`course_of`, made durable."""
    course, new = resolve_run_plan(recipe, run_uri, corpus, previous_recipe)
    if course != RunPlan.read(run_uri):
        course.write(run_uri)
    return course, new


def resolve_run_plan(
    recipe: Recipe, run_uri: str, corpus: Corpus, previous_recipe: Recipe | None = None
) -> tuple[RunPlan, bool]:
    """The course of a run: the one that it is on, or a new one. Returns whether it is new. Writes nothing.

    before: the recipe of the run's last start; where schedule.hold_open is another now, the stable phase is held, or released.

    Raises CorpusError when the corpus is not the one that the run started on, or has nothing for the run.
    """
    identity = corpus.commits[0].metadata["fingerprint"]
    course = RunPlan.read(run_uri)
    if course is None:
        return create_run_plan(recipe, corpus), True
    if (
        previous_recipe is not None
        and previous_recipe.schedule.hold_open != recipe.schedule.hold_open
        and not course.closed
    ):
        course = replace(course, hold=recipe.schedule.hold_open)
    # A run goes beyond the corpus_version that it starts at.
    if course.corpus != identity or course.version > Corpus.open(corpus.uri).version:
        raise CorpusError(
            f"{corpus.uri}: this is corpus {identity}, version {corpus.version}; the run {recipe.run} is on {course.corpus}, version "
            f"{course.version}: point --corpus at that one, or start another --run"
        )
    return course, False


def create_run_plan(recipe: Recipe, corpus: Corpus) -> RunPlan:
    """The course of a run that starts now: from the base, on from a checkpoint of the trunk, or as a branch that anneals one."""
    identity = corpus.commits[0].metadata["fingerprint"]
    if recipe.train.targets_per_pass > 1 and not corpus.commits[0].metadata.get("rules", {}).get(
        "data.users_together"
    ):
        raise CorpusError(
            f"{corpus.uri}: its samples are in no order of users, so train.targets_per_pass ({recipe.train.targets_per_pass}) would find none to "
            "share; build a corpus with data.users_together true, elsewhere, or set train.targets_per_pass 1"
        )
    there = {s.source.name: None for s in corpus.streams() if s.source.kind is SourceKind.DOMAIN}
    wanted = recipe.data.domains or tuple(there)
    if absent := [d for d in wanted if d not in there]:
        known = ", ".join(there) or "nothing"
        raise CorpusError(
            f"{corpus.uri}: no training samples of domain {', '.join(absent)}; this corpus pre-trains on {known}"
        )
    if recipe.continue_from is not None:
        return _continue_from_checkpoint(recipe, corpus, identity, recipe.continue_from)
    domain = [
        s
        for s in corpus.streams()
        if s.source.name in wanted and s.source.kind is SourceKind.DOMAIN
    ]
    mixed = [s for s in corpus.streams() if s.source.kind is SourceKind.MIXED]
    plan = planning.build_plan(
        plan_settings(recipe),
        remaining_portions(domain),
        remaining_portions(mixed),
        replay=_replay_from_recipe(recipe, corpus),
    )
    passed_over = tuple(d for d in there if d not in wanted)
    return RunPlan(
        identity, corpus.version, plan, tuple(wanted), passed_over, hold=recipe.schedule.hold_open
    )


def _continue_from_checkpoint(
    recipe: Recipe, corpus: Corpus, fingerprint: str, parent: str
) -> RunPlan:
    """From a stable checkpoint: all that the corpus holds and the trunk has not consumed, or, for a branch, the mixed samples alone."""
    checkpoint.verify(parent)
    ledger = checkpoint.read_ledger(parent)
    wsa = ledger.plan.wsa
    if ledger.samples > wsa.stable_end:
        raise RunError(
            f"{parent}: taken while annealing ({ledger.samples:,} samples, S = {wsa.stable_end:,}); only stable checkpoints go on"
        )
    before = RunPlan.read(parent.rsplit("/", 2)[0])
    if before is not None and before.corpus != fingerprint:
        raise CorpusError(
            f"{parent} was trained on corpus {before.corpus}; {corpus.uri} is {fingerprint}"
        )
    passed_over = before.passed_over if before is not None else ()
    consumed = ledger.plan.consumed_portions(ledger.samples)
    rows = {(p.source, p.version): p.count for p in consumed}
    seed = ledger.plan.domain_eras[0].seed
    if recipe.seed != seed:
        raise RunError(
            f"{parent} was trained with seed {seed}, which ordered its samples; this recipe has seed {recipe.seed}: set --seed {seed}"
        )
    if recipe.branch and recipe.schedule.mode not in ANNEALING_MODES:
        raise RecipeError(
            f"schedule.mode: {recipe.schedule.mode} does not anneal on mixed samples; a branch needs one of {', '.join(ANNEALING_MODES)}"
        )
    mixed = remaining_portions(
        [s for s in corpus.streams() if s.source.kind is SourceKind.MIXED], rows
    )
    wanted = replace(
        plan_settings(recipe),
        warmup_fraction=recipe.schedule.warmup_fraction if recipe.schedule.rewarm else 0.0,
    )
    if recipe.branch:
        if not mixed:
            raise CorpusError(
                f"{corpus.uri}: no mixed samples, so there is nothing to anneal on; see data.mixed_min_domains"
            )
        return RunPlan(
            fingerprint,
            corpus.version,
            planning.build_branch_plan(wanted, mixed, consumed),
            (),
            passed_over,
            closed=True,
            parent=parent,
        )
    domain = [
        s
        for s in corpus.streams()
        if s.source.kind is SourceKind.DOMAIN and s.source.name not in passed_over
    ]
    if not (left := remaining_portions(domain, rows)):
        raise CorpusError(
            f"{corpus.uri}: version {corpus.version} holds no domain-specific sample that {parent} has not consumed; append a domain first"
        )
    plan = planning.build_plan(
        wanted, left, mixed, consumed, _replay_from_recipe(recipe, corpus, consumed)
    )
    names = tuple(dict.fromkeys(s.source.name for s in domain))
    return RunPlan(
        fingerprint,
        corpus.version,
        plan,
        names,
        passed_over,
        hold=recipe.schedule.hold_open,
        parent=parent,
    )


def require_matching_adapter(recipe: Recipe, base: str, parent: str) -> None:
    """Raises RunError, naming keys and values, unless a parent checkpoint's adapter is one that the recipe trains on its base.

    Another scale or another base of the same shape would be taken without a word, and what was learned would mean something else.
    """
    where = join(parent, checkpoint.ADAPTER, "adapter_config.json")
    model = recipe.model
    wanted: dict[str, Any] = {"model.adapter": model.adapter}
    found: dict[str, Any] = {"model.adapter": "lora" if exists(where) else "full"}
    if exists(where) and model.adapter == "lora":
        config = json.loads(read_text(where))
        wanted |= {
            "model.lora_rank": model.lora_rank,
            "model.lora_alpha": model.lora_alpha,
            "model.base": base,
            "model.revision": model.revision,
        }
        keys = {
            "model.lora_rank": "r",
            "model.lora_alpha": "lora_alpha",
            "model.base": "base_model_name_or_path",
            "model.revision": "revision",
        }
        found |= {name: config.get(key) for name, key in keys.items()}
        if posixpath.basename(base) == posixpath.basename(str(found["model.base"])):
            found["model.base"] = base  # the same one, which lay elsewhere then
    if other := [name for name in wanted if wanted[name] != found[name]]:
        shown = "\n".join(
            f"  {name}: {found[name]!r} there, {wanted[name]!r} here" for name in other
        )
        raise RunError(
            f"{parent} was trained otherwise:\n{shown}\ngo on with its values, or start from the base"
        )
