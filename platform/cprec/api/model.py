"""Models of a program or a notebook: loaded once, to rank."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import polars as pl

from cluster.console import Say
from cluster.errors import RecipeError
from cprec.api.recipe import Recipe
from cprec.config import recipe as checked

# The workflows are imported late: they load torch, and reading what this offers need not wait.
if TYPE_CHECKING:
    from cprec.ranking.items import ItemLookup
    from cprec.ranking.ranker import Ranker

RANKING = {
    "candidate": pl.String,
    "title": pl.String,
    "share": pl.Float64,
    "log_likelihood": pl.Float64,
}
"""Columns of a ranking."""


class Model:
    """A language model in memory, which ranks what a user may want next."""

    def __init__(self, ranker: "Ranker", items: "ItemLookup | None") -> None:
        """Takes a loaded model; `Model.load` and `Run.model` make one."""
        self._ranker = ranker
        self._items = items

    @classmethod
    def load(
        cls,
        name: str,
        recipe: checked.Recipe | None = None,
        *,
        domain: str | None = None,
        say: Say = print,
    ) -> "Model":
        """Finds a model by its name, and loads it, onto the GPU if there is one.

        Args:
            name: `models:/NAME@champion`, `models:/NAME/3`, `champion`, `candidate` (the newest
                version of the recipe's run) or a number: a registered version. `base`: the base of
                the recipe. Else the path or URI of a checkpoint, of an adapter (a PEFT directory)
                or of a whole model.
            recipe: Where registry, corpus and base are, and how prompts are made; by default a
                recipe of defaults.
            domain: Domain whose items it ranks by their ids; None: it ranks titles. A hybrid model
                knows its domain.
            say: Takes lines of progress.

        Raises:
            UserError: There is no such model or domain, or the model is damaged.
        """
        from cprec.ranking.items import known_domain, open_items
        from cprec.tracking.registry import Registry
        from cprec.workflows.evaluation.models import find_model
        from cprec.workflows.recommend import load_ranker

        recipe = Recipe() if recipe is None else recipe
        if domain is not None:
            changed = recipe.recommend.model_copy(update={"domain": domain})
            recipe = recipe.model_copy(update={"recommend": changed})
        found = find_model(recipe, Registry.from_recipe(recipe), name, "Model.load")
        by_ids = domain is not None or known_domain(found) is not None
        items = open_items(recipe, found)[1] if by_ids else None
        return cls(load_ranker(recipe, found, items, say), items)

    def rank(
        self, history: Iterable[str], candidates: Iterable[str], *, ids: bool = False
    ) -> pl.DataFrame:
        """Ranks candidates by how likely each comes next.

        Args:
            history: What the user had, oldest first: titles, or item ids. It may be empty.
            candidates: What is ranked: titles, or item ids; two at least, each once.
            ids: Whether both are item ids of the domain that the model was loaded with.

        Returns:
            The likeliest first, with the columns candidate (as given), title, share (of the
            likelihood of these candidates alone; not calibrated, so no confidence) and
            log_likelihood.

        Raises:
            UserError: An item is unknown, a title is empty, or the candidates do not fit into
                `model.max_tokens`.
        """
        history, candidates = list(history), list(candidates)
        if ids:
            if self._items is None:
                raise RecipeError(
                    f"{self.name}: loaded without a domain, so it knows no item ids; "
                    "give Model.load a domain"
                )
            indices = self._items.find(candidates)
            query = self._ranker.encode_items(self._items.find(history), indices)
            titles = self._items.titles(indices)
        else:
            query = self._ranker.encode_titles(history, candidates)
            titles = candidates
        [ranking] = self._ranker.rank([query])
        order = ranking.order.tolist()
        return pl.DataFrame(
            {
                "candidate": [candidates[i] for i in order],
                "title": [titles[i] for i in order],
                "share": ranking.probabilities,
                "log_likelihood": ranking.scores,
            },
            schema=RANKING,
        )

    @property
    def name(self) -> str:
        """Name that it was loaded by."""
        return self._ranker.model.name

    @property
    def checkpoint(self) -> str | None:
        """Where its trained weights are (path or URI); None of a base as it is."""
        return self._ranker.model.checkpoint

    @property
    def base(self) -> str:
        """The base that it stands on: a directory, or a hub id."""
        return self._ranker.model.base

    @property
    def version(self) -> int | None:
        """Its number in the registry; None if it is not registered."""
        return self._ranker.model.version

    @property
    def domain(self) -> str | None:
        """Domain whose item ids it knows; None: it ranks titles only."""
        return None if self._items is None else self._items.domain.name

    def __repr__(self) -> str:
        """Shows what it is."""
        from cprec.workflows.evaluation.models import describe_model

        return f"<Model {self.name}: {describe_model(self._ranker.model)}>"
