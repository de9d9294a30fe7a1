"""The steps that tables and figures need, from a recipe. Pure.

    corpus ── pretrain-<variant> ── tune-<model>-<domain> ── score-<model>-<domain>
                                                          └─ generate-<model>-<domain>

A step's inputs are the keys of the recipe that decide its result: neither those of other steps nor
those of `CHANGEABLE_KEYS`, which say where and how a run is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cluster.errors import RecipeError
from cluster.storage import absolute_uri
from cprec.config.recipe import Recipe
from cprec.config.sections.finetuning import BaselineSettings
from cprec.model.base_uri import TINY_BASE
from cprec.reproduction.graph import Graph, Step
from cprec.reproduction.models import UNTUNED, Artefact, Content, Model, Pretraining, artefacts
from cprec.runs.locks.recipe import CHANGEABLE_KEYS


class Kind(StrEnum):
    """What a step computes."""

    CORPUS = "corpus"
    PRETRAIN = "pretrain"
    TUNE = "tune"
    SCORE = "score"
    GENERATE = "generate"


VERSIONS = {
    Kind.CORPUS: 1,
    Kind.PRETRAIN: 1,
    Kind.TUNE: 2,
    Kind.SCORE: 2,
    Kind.GENERATE: 2,
}
"""Version of the code of each kind, to be raised when it computes something else."""

BASE_KEYS = ("seed", "model.", "tiny.")


def baseline_keys(name: str) -> tuple[str, ...]:
    """Returns the keys that decide the training of a baseline."""
    own = sorted(f"baseline.{key}" for key in BaselineSettings.keys_of(name))
    return (*own, "baseline.seeds", "finetune.max_samples", "finetune.validation_users")


DECIDING_KEYS = {
    Kind.CORPUS: ("seed", "data.", "simulate.", "corpus_version"),
    Kind.PRETRAIN: (*BASE_KEYS, "schedule.", "train."),
    Kind.TUNE: (
        *BASE_KEYS,
        *baseline_keys("sasrec"),
        "finetune.",
        "search.",
        "train.gradient_clipping",
        "train.adam_beta2",
    ),
    Kind.SCORE: (*BASE_KEYS, "evaluate.max_users"),
    Kind.GENERATE: (*BASE_KEYS, "evaluate.max_users", "reproduce.generated_users"),
}
"""Keys, or the first parts of keys, that decide the result of each kind."""

SET_BY_STEPS = (
    "schedule.mode",
    "finetune.domain",
    "finetune.start",
    "finetune.name",
    "search.concurrent",
    "search.gpus_per_trial",
)
"""Keys that a step sets itself, or that do not change what it computes."""

COMPUTED = ("evaluate.max_users", "reproduce.generated_users")
"""Keys of `CHANGEABLE_KEYS` that decide what a step computes, though not what a run does."""


FIGURE_OF_ONE_DOMAIN = "figure2"


@dataclass(frozen=True)
class Task:
    """A step, with what it is about.

    Attributes:
        step: The step.
        kind: What it computes.
        pretraining: The variant of pre-training; None unless it pre-trains.
        model: The model; None where it makes a corpus or pre-trains.
        domain: The held-out domain of the model.
    """

    step: Step
    kind: Kind
    pretraining: Pretraining | None = None
    model: Model | None = None
    domain: str = ""


def select_artefacts(recipe: Recipe, only: Sequence[str]) -> list[Artefact]:
    """Returns the tables and figures of these names, all if there are none.

    Raises:
        RecipeError: A name is unknown, or the recipe lacks domains for it.
    """
    known = {artefact.name: artefact for artefact in artefacts(recipe.reproduce.shares)}
    if unknown := [name for name in only if name not in known]:
        raise RecipeError(f"--only {unknown[0]}: no such table or figure; give {', '.join(known)}")
    if not recipe.data.held_out:
        raise RecipeError("data.held_out: empty; name the domains to compare the models on")
    if len(recipe.data.domains) < 2:
        # Pre-training on the first of several domains would be pre-training on all of them.
        if FIGURE_OF_ONE_DOMAIN in only:
            raise RecipeError(f"--only {FIGURE_OF_ONE_DOMAIN}: needs two data.domains, at least")
        known.pop(FIGURE_OF_ONE_DOMAIN)
    return [artefact for name, artefact in known.items() if not only or name in only]


def plan_tasks(recipe: Recipe, wanted: Sequence[Artefact]) -> tuple[Graph, dict[str, Task]]:
    """Returns the steps that tables and figures need, and what each is about, by name."""
    tasks = {
        task.step.name: task for artefact in wanted for task in _artefact_tasks(recipe, artefact)
    }
    return Graph.of(task.step for task in tasks.values()), tasks


def deciding_values(recipe: Recipe, keys: tuple[str, ...]) -> dict[str, Any]:
    """Returns the values of a recipe that decide a step's result, by key, as plain JSON data.

    Args:
        recipe: The recipe.
        keys: Prefixes of the keys that the step depends on. Those that may change between two
            starts of a run, or do nothing in this recipe, are left out.
    """
    values = recipe.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return {
        key: value
        for key, value in flat.items()
        if key.startswith(keys)
        and key not in SET_BY_STEPS
        and (key in COMPUTED or not key.startswith(CHANGEABLE_KEYS))
        and _applies(recipe, key)
    }


def scored_name(model: Model, domain: str) -> str:
    """Returns the name of the step that scores a model on a domain."""
    return f"{Kind.SCORE}-{model.name}-{domain}"


def generated_name(model: Model, domain: str) -> str:
    """Returns the name of the step in which a model generates answers on a domain."""
    return f"{Kind.GENERATE}-{model.name}-{domain}"


def tuned_name(model: Model, domain: str) -> str:
    """Returns the name of the step that fine-tunes a model on a domain."""
    return f"{Kind.TUNE}-{model.name}-{domain}"


def pretrained_name(pretraining: Pretraining) -> str:
    """Returns the name of the step that pre-trains."""
    return f"{Kind.PRETRAIN}-{pretraining.name}"


def _applies(recipe: Recipe, key: str) -> bool:
    """Tells whether a key means anything for this recipe's data and base."""
    if key.startswith("tiny."):
        return recipe.model.base == TINY_BASE
    if key.startswith("simulate."):
        return recipe.data.format == "simulated"
    return True


def _artefact_tasks(recipe: Recipe, artefact: Artefact) -> Iterator[Task]:
    """Yields what a table or figure needs, parents first; steps may come several times."""
    corpus = _make(recipe, Kind.CORPUS, Kind.CORPUS, {"corpus": absolute_uri(recipe.corpus)}, ())
    yield Task(corpus, Kind.CORPUS)
    for domain in recipe.data.held_out if artefact.models else ():
        for model in artefact.models:
            yield from _model_tasks(recipe, artefact, model, domain)


def _model_tasks(recipe: Recipe, artefact: Artefact, model: Model, domain: str) -> Iterator[Task]:
    """Yields what an artefact needs of a model on one domain."""
    parents: tuple[str, ...] = (Kind.CORPUS,)
    if (pretraining := model.pretraining) is not None:
        inputs = {
            "mode": pretraining.mode,
            "share": pretraining.share,
            "domains": list(recipe.data.domains[: 1 if pretraining.one_domain else None]),
        }
        step = _make(recipe, Kind.PRETRAIN, pretrained_name(pretraining), inputs, parents)
        yield Task(step, Kind.PRETRAIN, pretraining)
        parents = (*parents, step.name)
    if model.tuned:
        step = _make(recipe, Kind.TUNE, tuned_name(model, domain), {"domain": domain}, parents)
        yield Task(step, Kind.TUNE, None, model, domain)
        parents = (Kind.CORPUS, step.name)
    inputs = {"domain": domain, "model": model.name if len(parents) == 1 else ""}
    score_keys = baseline_keys(model.name) if model.is_baseline else ()
    if model == UNTUNED:
        score_keys = (*baseline_keys("sasrec"), "search.winner_seeds")
    if artefact.content is Content.SCORES:
        name = scored_name(model, domain)
        step = _make(recipe, Kind.SCORE, name, inputs, parents, score_keys)
        yield Task(step, Kind.SCORE, None, model, domain)
    is_prompted = not (model.is_baseline or model.writes_rankings)
    if is_prompted and any(measure.is_valid_ratio for measure in artefact.measures):
        step = _make(recipe, Kind.GENERATE, generated_name(model, domain), inputs, parents)
        yield Task(step, Kind.GENERATE, None, model, domain)


def _make(
    recipe: Recipe,
    kind: Kind,
    name: str,
    inputs: dict[str, Any],
    parents: tuple[str, ...],
    more_keys: tuple[str, ...] = (),
) -> Step:
    """Returns a step with the keys that decide its result."""
    values = deciding_values(recipe, (*DECIDING_KEYS[kind], *more_keys))
    return Step(str(name), str(kind), VERSIONS[kind], {"recipe": values, **inputs}, parents)
