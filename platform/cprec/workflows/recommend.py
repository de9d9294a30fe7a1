"""Ranks candidates for one history, to try a model by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.console import Say
from cluster.errors import DataError, RecipeError
from cluster.storage import read_text
from corpus.ingest.titles import clean_title
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.model.base_uri import is_unbuilt, resolve_base
from cprec.ranking.histories import read_user_history
from cprec.ranking.items import ItemLookup, open_items, require_text_only
from cprec.ranking.ranker import MIN_CANDIDATES, Ranker
from cprec.workflows.evaluation.models import describe_model

BYTE_ORDER_MARK = "\ufeff"
"""First character of what some editors write."""


@dataclass(frozen=True)
class RecommendRequest:
    """A history, and the candidates that are to be ranked as its next item.

    Attributes:
        history: Titles or item ids, the oldest first.
        candidates: Titles or item ids.
        items: Items of the domain that the ids are of; None: they are titles.
    """

    history: Sequence[str]
    candidates: Sequence[str]
    items: ItemLookup | None

    def describe(self, model: EvaluatedModel) -> str:
        """Returns what is ranked by which model, for people."""
        return (
            f"{len(self.candidates)} candidates after a history of {len(self.history)}, with "
            f"{model.label}:\n  {describe_model(model)}"
        )


def plan_request(
    recipe: Recipe,
    model: EvaluatedModel,
    history: Sequence[str],
    candidates_uri: str,
    are_ids: bool = False,
    user: str | None = None,
) -> RecommendRequest:
    """Reads and checks a request. Loads no model.

    Args:
        recipe: Corpus and domain of items.
        model: The model that is to rank.
        history: Titles or item ids, the oldest first.
        candidates_uri: Text file of candidates, one a line.
        are_ids: Whether history and candidates are item ids.
        user: User of the corpus whose history is taken; then the candidates are item ids.

    Raises:
        RecipeError: Titles for a hybrid model, too few candidates, or both history and user.
        DataError: The domain has no such item or user.
        RunError: The model is hybrid, and does not know the items.
    """
    if user is not None and history:
        raise RecipeError("--user and --history: give one of them")
    if user is None and not are_ids:
        require_text_only(model)
        candidates = _read_lines(candidates_uri, clean_title)
        return RecommendRequest([clean_title(title) for title in history], candidates, None)
    corpus, items = open_items(recipe, model)
    candidates = _read_lines(candidates_uri, str.strip)
    items.find(candidates)
    if user is not None:
        found = read_user_history(corpus, items.domain.name, user)
        history = items.ids(found[-recipe.data.max_history :])
    items.find(history)
    return RecommendRequest(history, candidates, items)


def rank(
    recipe: Recipe, model: EvaluatedModel, request: RecommendRequest, say: Say
) -> list[tuple[str, float]]:
    """Loads a model, and ranks the candidates of a request.

    Args:
        recipe: Precision and longest prompt.
        model: The model that ranks.
        request: The request.
        say: Takes lines of progress.

    Returns:
        What `rank_with` returns.

    Raises:
        DataError: The candidates do not fit into model.max_tokens.
    """
    return rank_with(load_ranker(recipe, model, request.items, say), request)


def load_ranker(
    recipe: Recipe, model: EvaluatedModel, items: ItemLookup | None, say: Say
) -> Ranker:
    """Loads a model, after its base was built where that is the tiny one.

    Args:
        recipe: Precision and longest prompt.
        model: The model.
        items: The items that it is asked about; None: it is asked about titles only.
        say: Takes lines of progress.
    """
    if is_unbuilt(recipe, model.base):
        resolve_base(recipe, Corpus.open(recipe.corpus, recipe.corpus_version), say)
    return Ranker.load(recipe, model, say, None if items is None else items.domain)


def rank_with(ranker: Ranker, request: RecommendRequest) -> list[tuple[str, float]]:
    """Ranks the candidates of a request by a loaded model.

    Returns:
        The candidates, the likeliest first, each with its share of the likelihood of them all. The
        shares are a softmax of summed log-probabilities, and not calibrated: the first is often
        close to 1, also where the model is often wrong.

    Raises:
        DataError: The candidates do not fit into model.max_tokens.
    """
    if (items := request.items) is None:
        query = ranker.encode_titles(request.history, request.candidates)
        names = list(request.candidates)
    else:
        indices = items.find(request.candidates)
        query = ranker.encode_items(items.find(request.history), indices)
        titles = items.titles(indices)
        names = [f"{name}  {title}" for name, title in zip(request.candidates, titles, strict=True)]
    ranking = ranker.rank([query])[0]
    order, shares = ranking.order.tolist(), ranking.probabilities.tolist()
    return [(names[i], share) for i, share in zip(order, shares, strict=True)]


def _read_lines(uri: str, clean: Callable[[str], str]) -> list[str]:
    """Reads candidates from a text file, one a line, without empty and repeated ones.

    Raises:
        RecipeError: There are fewer than two.
        DataError: It is no UTF-8.
    """
    try:
        lines = read_text(uri).removeprefix(BYTE_ORDER_MARK).splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"--candidates {uri}: no UTF-8 text ({error})") from None
    cleaned = (clean(line) for line in lines)
    candidates = list(dict.fromkeys(line for line in cleaned if line))
    if len(candidates) < MIN_CANDIDATES:
        raise RecipeError(
            f"--candidates {uri}: {len(candidates)} of them, one a line; a ranking takes two at "
            "least"
        )
    return candidates
