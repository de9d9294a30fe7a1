"""The base, prompted otherwise than a model that was trained here: LLaRA untuned, and ChatRec."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cluster.errors import RecipeError
from cluster.storage import join
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream import stored_baselines
from cprec.downstream.evaluated_model import CHATREC, LLARA_UNTUNED, EvaluatedModel
from cprec.evaluation.listwise.instruction import FORM, LISTED


def find_prompted_bases(
    base: EvaluatedModel, recipe: Recipe, corpus: Corpus | None
) -> Iterator[EvaluatedModel]:
    """Yields the models that a name of the base stands for: LLaRA untuned has several seeds.

    Args:
        base: The base, by one of its names.
        recipe: Domain and settings of SASRec, and the number of seeds: that of a tuned LLaRA.
        corpus: The corpus; None: it is opened if it is needed.
    """
    if base.name != LLARA_UNTUNED:
        yield base
        return
    corpus = corpus or Corpus.open(recipe.corpus, recipe.corpus_version)
    domain = recipe.evaluate.domain or next(iter(recipe.data.held_out), "")
    uri = stored_baselines.baseline_uri(recipe, corpus, domain, "sasrec", recipe.seed)
    for seed in recipe.seeds(recipe.search.winner_seeds):
        yield replace(
            base,
            label=f"{base.name}-seed{seed}",
            seed=seed,
            behaviour_weights=join(uri, stored_baselines.WEIGHTS),
        )


def describe_prompted_base(model: EvaluatedModel) -> str:
    """Returns how the base is prompted, for people."""
    if model.name == CHATREC:
        return f"{model.base}, asked in words for its first {LISTED} candidates"
    if model.name == LLARA_UNTUNED:
        return f"{model.base}, with SASRec's items through an untrained projector"
    return f"{model.base}, as it is"


def prompted_inputs(model: EvaluatedModel) -> dict[str, object]:
    """Returns what predictions of the base depend on as it is prompted; empty for other models."""
    if model.name == CHATREC:
        return {"instruction": FORM}
    if model.name == LLARA_UNTUNED:
        return {"behaviour_weights": model.behaviour_weights, "projector_seed": model.seed}
    return {}


def require_sampled(recipe: Recipe, models: Sequence[EvaluatedModel]) -> None:
    """Checks that nothing that answers in words is to rank a catalogue.

    Raises:
        RecipeError: ChatRec is.
    """
    if recipe.evaluate.form == "catalogue" and any(model.writes_rankings for model in models):
        raise RecipeError(
            f"evaluate.models: {CHATREC} answers in words, and ranks the candidates of a sample "
            "only; leave it out, or give evaluate.candidates sampled"
        )
