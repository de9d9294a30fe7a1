"""Puts a model before the gate, which decides whether it becomes the champion."""

from dataclasses import dataclass, replace
from typing import Literal

from cluster.console import Say
from cluster.errors import RecipeError
from cprec.config.recipe import Recipe
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.known_items import is_hybrid, read_known_items
from cprec.evaluation.gate import Decision, Measurements, decide
from cprec.model.base_files import identify
from cprec.model.base_uri import is_unbuilt, resolve_base
from cprec.tracking.lineage import HUB_ID, stored_lineage
from cprec.tracking.registry import Registry, Version
from cprec.tracking.version_names import CANDIDATE
from cprec.workflows.champion import record_decision, set_champion
from cprec.workflows.evaluate import compare_models, run_evaluation
from cprec.workflows.evaluation.models import describe_model, find_model
from cprec.workflows.evaluation.plan import EvaluationPlan, plan_evaluation


@dataclass(frozen=True)
class PromotionPlan:
    """A promotion whose inputs are checked.

    Attributes:
        recipe: The recipe.
        registry: The registry of the candidate's model.
        model: The model that is put before the gate.
        name: Its name in the comparison.
        candidate: Its version; None if it is not registered yet.
        champion: The champion; None where there is none.
        comparison: What is scored: the champion, if there is one, and the candidate.
        forgetting: What is measured for gate.max_forgetting: the base and the candidate; or None.
    """

    recipe: Recipe
    registry: Registry
    model: EvaluatedModel
    name: str
    candidate: Version | None
    champion: Version | None
    comparison: EvaluationPlan
    forgetting: EvaluationPlan | None

    @property
    def is_champion(self) -> bool:
        """Whether the candidate is the champion already."""
        return (
            self.champion is not None
            and self.candidate is not None
            and self.champion.number == self.candidate.number
        )


def plan_promotion(recipe: Recipe, registry: Registry, model: str, say: Say) -> PromotionPlan:
    """Finds the candidate and the champion, checks them, and says what is compared. Writes nothing.

    Args:
        recipe: The recipe.
        registry: The registry of the recipe.
        model: The model that is put before the gate, as `find_model` takes it. One that is no
            version yet becomes one.
        say: Takes lines of progress.

    Raises:
        UserError: There is no such model, or it cannot be compared or registered.
    """
    found = find_model(recipe, registry, model)
    registry = registry.with_model(_registered_model(registry, found))
    candidate = None if found.version is None else registry.version(found.version)
    if candidate is None:
        _require_place(found)
    champion = registry.version_by_alias("champion")
    shown = candidate or f"{describe_model(found)}, which becomes a version of {registry.model}"
    say(f"candidate: {shown}; champion: {champion or 'none yet'}")
    if recipe.gate.max_forgetting is not None and recipe.evaluate.text is None:
        raise RecipeError(
            "gate.max_forgetting asks for a perplexity; name a plain text with evaluate.text"
        )
    scoring = _with_mode(recipe, "score")
    name = str(candidate.number) if candidate else _stored_name(recipe, found)
    names = [name] if champion is None else [str(champion.number), name]
    comparison = plan_evaluation(scoring, registry, list(dict.fromkeys(names)), say)
    forgetting = None
    if recipe.gate.max_forgetting is not None:
        forgetting = plan_evaluation(scoring, registry, ["base", names[-1]], lambda line: None)
    return PromotionPlan(recipe, registry, found, name, candidate, champion, comparison, forgetting)


def promote(
    recipe: Recipe,
    registry: Registry,
    say: Say,
    model: str = CANDIDATE,
    by: str | None = None,
) -> tuple[int, Decision]:
    """Puts a model before the gate, and makes it the champion if it passes.

    A model that is no version yet is registered first. What the gate needs to know and nobody has
    measured yet is measured then. Arguments and errors are those of `plan_promotion`; `by` is who
    asked.

    Returns:
        The version, and the decision.
    """
    plan = plan_promotion(recipe, registry, model, say)
    if plan.candidate is None:
        number = _register(plan, say)
        plan = plan_promotion(recipe, plan.registry, str(number), say)
    else:
        number = plan.candidate.number
    if plan.is_champion:
        return number, Decision(True, "it was before")
    decision = decide(_measure(plan, say), recipe.gate)
    for line in decision.lines:
        say(str(line))
    if decision.promote:
        set_champion(plan.registry, number)
    record_decision(plan.registry, number, decision, by)
    return number, decision


def _registered_model(registry: Registry, model: EvaluatedModel) -> str:
    """Returns the registered model that a model is, or becomes, a version of."""
    if model.registered_model is not None:
        return model.registered_model
    # As fine-tuning registers it: a hybrid model serves one domain.
    if model.checkpoint is not None and is_hybrid(model.checkpoint):
        return f"{registry.model}-{read_known_items(model.checkpoint).domain}"
    return registry.model


def _stored_name(recipe: Recipe, model: EvaluatedModel) -> str:
    """Returns the name of a model that is no version: its folder, unless that is still to be built.

    The name `base` would mean the base of the champion beside it.
    """
    if model.checkpoint is None and is_unbuilt(recipe, model.base):
        return "base"
    return model.checkpoint or model.base


def _require_place(model: EvaluatedModel) -> None:
    """Checks that a model that is to be registered has a folder of its own.

    Raises:
        RecipeError: It is a base on a hub.
    """
    if model.checkpoint is None and HUB_ID.fullmatch(model.base):
        raise RecipeError(
            f"--model {model.name}: {model.base} is on a hub, and a version needs a folder; write "
            "one with jobs/merge.py --model base --out FOLDER, and promote that"
        )


def _register(plan: PromotionPlan, say: Say) -> int:
    """Registers the model of a plan that is no version yet, and returns its number."""
    model = plan.model
    if is_unbuilt(plan.recipe, model.base):
        resolve_base(plan.recipe, plan.comparison.corpus, say)
    revision = identify(model.base, model.revision).revision
    tags = stored_lineage(plan.recipe, plan.registry, replace(model, revision=revision))
    number = plan.registry.register(model.checkpoint or model.base, tags)
    say(f"registered {plan.registry.model} version {number}: {model.checkpoint or model.base}")
    return number


def _measure(plan: PromotionPlan, say: Say) -> Measurements:
    """Measures what the gate asks for."""
    forgetting = None
    if plan.forgetting is not None:
        base, own = run_evaluation(plan.forgetting, plan.registry, say).rows
        if base.perplexity is not None and own.perplexity is not None:
            forgetting = own.perplexity / base.perplexity - 1
    comparison = run_evaluation(plan.comparison, plan.registry, say)
    valid_ratio = None
    if plan.recipe.gate.min_valid_ratio:
        generating = _with_mode(plan.recipe, "generate")
        row = compare_models(generating, plan.registry, [plan.name], say).rows[0]
        valid_ratio = row.metrics["valid_ratio"]["exact"]
    return Measurements(
        comparison.rows[-1].metrics,
        comparison.chance,
        comparison.rows[0].metrics if plan.champion else None,
        comparison.rows[-1].against,
        valid_ratio,
        forgetting,
    )


def _with_mode(recipe: Recipe, mode: Literal["score", "generate"]) -> Recipe:
    """Returns the recipe with another `evaluate.mode`, and the candidates of the samples.

    The gate knows no other candidates and no days: a version and a champion have to be measured
    alike.
    """
    update = {"mode": mode, "candidates": "sampled", "from_day": None, "to_day": None}
    evaluate = recipe.evaluate.model_copy(update=update)
    return recipe.model_copy(update={"evaluate": evaluate})
