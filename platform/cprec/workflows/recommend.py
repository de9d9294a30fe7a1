"""Ranks candidates for one history, to try a model by hand."""

from collections.abc import Sequence

from cluster.console import Say
from cluster.errors import RecipeError
from cluster.storage import read_text
from corpus.ingest.titles import clean_title
from cprec.config.recipe import Recipe
from cprec.downstream.scoring import EvaluatedModel
from cprec.ranking.items import DomainItems
from cprec.ranking.ranker import MIN_CANDIDATES, Ranker, Ranking


def read_candidates(uri: str, are_titles: bool) -> list[str]:
    """Reads candidates from a text file, one a line, without empty and repeated ones.

    Args:
        uri: The file.
        are_titles: Whether they are titles, which are cleaned, and not item ids.

    Raises:
        RecipeError: There are fewer than two.
    """
    lines = read_text(uri).splitlines()
    cleaned = (clean_title(line) if are_titles else line.strip() for line in lines)
    candidates = list(dict.fromkeys(line for line in cleaned if line))
    if len(candidates) < MIN_CANDIDATES:
        kind = "title(s)" if are_titles else "item(s)"
        raise RecipeError(
            f"--candidates {uri}: {len(candidates)} {kind}, one a line; a ranking takes two at "
            "least"
        )
    return candidates


def rank_titles(
    recipe: Recipe,
    model: EvaluatedModel,
    history: Sequence[str],
    candidates: Sequence[str],
    say: Say,
) -> list[tuple[str, float]]:
    """Ranks candidate titles as the next item of a history of titles.

    Args:
        recipe: Precision and longest prompt.
        model: The text-only model that ranks.
        history: Titles, the oldest first.
        candidates: Titles.
        say: Takes a line where the model is scored the slow way.

    Returns:
        The candidates, the likeliest first, each with its share of the likelihood of them all. The
        shares are a softmax of summed log-probabilities, and not calibrated: the first is often
        close to 1, also where the model is often wrong.

    Raises:
        RecipeError: The model is hybrid; it ranks items, for which titles do not suffice.
    """
    ranker = Ranker.load(recipe, model, say)
    return _pair(ranker.rank([ranker.encode_titles(history, candidates)])[0], candidates)


def rank_items(
    recipe: Recipe,
    model: EvaluatedModel,
    items: DomainItems,
    history: Sequence[str],
    candidates: Sequence[str],
    say: Say,
) -> list[tuple[str, float]]:
    """Ranks candidate items of a domain as the next item of a history of them.

    Args:
        recipe: Precision and longest prompt.
        model: The model that ranks; a hybrid one knows the items.
        items: Items of the domain.
        history: Item ids, the oldest first.
        candidates: Item ids.
        say: Takes a line where the model is scored the slow way.

    Returns:
        As `rank_titles`: id and title of each candidate, with its share.

    Raises:
        DataError: The domain has no item of such an id.
    """
    indices = items.find(candidates)
    before = items.find(history)
    ranker = Ranker.load(recipe, model, say, items.domain)
    ranking = ranker.rank([ranker.encode_items(before, indices)])[0]
    titles = items.domain.titles
    return _pair(
        ranking,
        [f"{name}  {titles[index]}" for name, index in zip(candidates, indices, strict=True)],
    )


def _pair(ranking: Ranking, names: Sequence[str]) -> list[tuple[str, float]]:
    """Returns the names of candidates, best first, each with its share."""
    order, shares = ranking.order.tolist(), ranking.probabilities.tolist()
    return [(names[i], share) for i, share in zip(order, shares, strict=True)]
