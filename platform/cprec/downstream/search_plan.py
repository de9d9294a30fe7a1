"""A checked search of the learning rate: what it trains, what it depends on, and its result.

<search>/identity.json    what it depends on, written at its first start
<search>/search.json      its result, written last
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from cluster.errors import RunError
from cluster.storage import exists, join, write_text
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import rename_old_keys
from cprec.config.sections.finetuning import BaselineSettings
from cprec.config.sections.pretraining import TrainSettings
from cprec.downstream.trial import Trial
from cprec.downstream.trial_records import SEARCH_FILE, TrialResult
from cprec.encode.prompt import UNRECORDED, PromptTemplate
from cprec.model.backbone import load_tokenizer
from cprec.runs.record_files import read_json_object
from cprec.runs.token_form import TOKEN_FORM, require_same_tokens

IDENTITY = "identity.json"
LEFT_OUT = {
    "model": ("license", "fp8", "fp8_fast_accumulation"),
    "finetune": ("start", "name", "domain"),
    "baseline": tuple(BaselineSettings.model_fields.keys() - BaselineSettings.keys_of("sasrec")),
    "train": tuple(TrainSettings.model_fields.keys() - {"gradient_clipping", "adam_beta2"}),
}
"""Keys of sections that decide no trial. The precision does; FP8 is of pre-training only.

Behaviour tokens are those of SASRec, so keys of other baselines decide nothing.
"""
FRESH = "fresh"
"""Value of finetune.start with which LoRA starts from new weights."""


@dataclass(frozen=True)
class SearchPlan:
    """A checked search.

    Attributes:
        recipe: The recipe of the job.
        corpus: The corpus, at the version that is used.
        domain: Domain to fine-tune on.
        name: Name of the search.
        uri: Folder of the search.
        base: URI or hub id of the base model.
        start_checkpoint: Checkpoint that LoRA starts from; None for new weights.
        parent_version: Registered version of that checkpoint, where it has one.
        lrs: Learning rates to try.
        template: Template of the prompts.
        revision: What the base must be: a commit, or a digest of its files.
    """

    recipe: Recipe
    corpus: Corpus
    domain: str
    name: str
    uri: str
    base: str
    start_checkpoint: str | None
    parent_version: int | None
    lrs: tuple[float, ...]
    template: PromptTemplate
    revision: str | None = None

    def describe(self) -> str:
        """Returns which learning rates are tried, and how often, for people."""
        search = self.recipe.search
        return (
            f"learning rates {', '.join(f'{lr:g}' for lr in self.lrs)}, {search.seeds} seed(s) "
            f"each; then the best with {search.winner_seeds}"
        )

    def build_trial(self, lr: float, seed: int, behaviour_weights: str | None) -> Trial:
        """Returns one fine-tuning of the search, which has not started yet.

        Args:
            lr: Its highest learning rate.
            seed: Its seed.
            behaviour_weights: URI of SASRec's weights for behaviour tokens; None: titles only.
        """
        return Trial(
            self.recipe,
            join(self.uri, "trials", f"{lr:g}-{seed}"),
            self.domain,
            self.base,
            self.start_checkpoint,
            behaviour_weights,
            lr,
            seed,
            self.template,
            self.revision,
        )


class SearchIdentity(TypedDict):
    """What a search depends on: the content of identity.json.

    Attributes:
        corpus: Fingerprint of the corpus.
        corpus_version: Corpus version.
        base: Base model.
        base_revision: Commit or digest of the base, as in base.json.
        token_form: Rules by which text becomes tokens (`cprec.runs.token_form`).
        prompt_template: Template of the prompts.
        start: URI of the checkpoint that LoRA starts from; None: from new weights.
        model: The keys of `model`, without `license` and those of FP8, which is for pre-training.
        finetune: The keys of `finetune` that decide a trial.
        baseline: The keys of `baseline` that decide SASRec's training.
        train: The keys of `train` that decide a trial: those of the optimizer.
        seed: Seed of the recipe.
    """

    corpus: str
    corpus_version: int
    base: str
    base_revision: str | None
    token_form: int
    prompt_template: str
    start: str | None
    model: dict[str, Any]
    finetune: dict[str, Any]
    baseline: dict[str, Any]
    train: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class SearchWinner:
    """The best learning rate of a search.

    Attributes:
        lr: The learning rate (`rate` in files of earlier builds).
        best: Its best trial on validation, which is registered.
        seeds: Its trials, one for each seed.
    """

    lr: float
    best: TrialResult
    seeds: Sequence[TrialResult]


@dataclass(frozen=True)
class SearchSummary:
    """The result of a search: the content of search.json.

    Attributes:
        name: Name of the search.
        domain: Domain that was tuned on.
        start: URI of the checkpoint that LoRA started from, or `fresh`.
        trials: Trials of all learning rates.
        winner: The best learning rate.
    """

    name: str
    domain: str
    start: str
    trials: Sequence[TrialResult]
    winner: SearchWinner

    def write(self, search_uri: str) -> None:
        """Writes search.json."""
        write_text(join(search_uri, SEARCH_FILE), json.dumps(asdict(self), indent=1))


def lock_identity(plan: SearchPlan) -> None:
    """Writes what a search depends on at its first start; later ones are checked against it.

    Raises:
        RunError: The search was started with something else.
    """
    check_identity(plan)
    uri = join(plan.uri, IDENTITY)
    if not exists(uri):
        write_text(uri, json.dumps(_identity(plan), indent=1))


def check_identity(plan: SearchPlan) -> None:
    """Checks that a search that was started before depends on the same.

    Raises:
        RunError: The search was started with something else.
    """
    uri = join(plan.uri, IDENTITY)
    if not exists(uri):
        return
    before = rename_old_keys(read_json_object(uri), uri)
    # Earlier releases wrote none of these.
    before.setdefault("prompt_template", UNRECORDED.name)
    before["finetune"].setdefault("curriculum", "all")
    before.setdefault("base_revision", plan.revision)
    before.setdefault("train", _settings(plan.recipe)["train"])
    token_form = before.get("token_form", 1)
    if token_form != TOKEN_FORM:
        tokenizer = load_tokenizer(plan.base, plan.revision)
        require_same_tokens(plan.name, token_form, plan.corpus.read_titles(), tokenizer)
        before["token_form"] = TOKEN_FORM
    # A key that an earlier release did not have had the effect of its default.
    old = _flatten(_settings(Recipe())) | _flatten(before)
    new = _flatten(_identity(plan))
    changed = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    if changed:
        shown = "\n".join(f"  {key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
        raise RunError(
            f"the search {plan.name} was started differently ({uri}):\n{shown}\n"
            "use another --finetune.name or --run, or put the values back"
        )


def _identity(plan: SearchPlan) -> SearchIdentity:
    """Returns what a search depends on, in types that JSON gives back as they were."""
    settings = _settings(plan.recipe)
    identity: SearchIdentity = {
        "corpus": plan.corpus.fingerprint,
        "corpus_version": plan.corpus.version,
        "base": plan.base,
        "base_revision": plan.revision,
        "token_form": TOKEN_FORM,
        "prompt_template": plan.template.name,
        "start": plan.start_checkpoint,
        "model": settings["model"],
        "finetune": settings["finetune"],
        "baseline": settings["baseline"],
        "train": settings["train"],
        "seed": plan.recipe.seed,
    }
    return identity


def _settings(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Returns the sections of a recipe that decide a trial, without the keys that do not."""
    return {
        section: getattr(recipe, section).model_dump(mode="json", exclude=set(keys))
        for section, keys in LEFT_OUT.items()
    }


def _flatten(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an identity with an entry for each key, such as `model.lora_rank`."""
    flat = {name: value for name, value in identity.items() if name not in LEFT_OUT}
    for section, left_out in LEFT_OUT.items():
        values = identity.get(section, {})
        flat |= {f"{section}.{key}": values[key] for key in values if key not in left_out}
    return flat
