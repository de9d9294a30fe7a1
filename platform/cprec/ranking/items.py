"""The items of a domain by the ids of the platform, and which domain a model can be asked about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cluster.errors import DataError, RecipeError
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.known_items import is_hybrid, read_known_items, require_known_items

MAX_NAMED = 3
"""Unknown items that a message names."""


@dataclass(frozen=True)
class ItemLookup:
    """Looks up items of a domain: their index in the catalogue, id and title.

    Attributes:
        domain: The domain.
        index_of_id: Index in the catalogue, by item id.
    """

    domain: Domain
    index_of_id: Mapping[str, int]

    @cached_property
    def _id_of_index(self) -> Mapping[int, str]:
        return {index: item_id for item_id, index in self.index_of_id.items()}

    def ids(self, indices: Sequence[int]) -> list[str]:
        """Returns the ids of items."""
        return [self._id_of_index[index] for index in indices]

    def titles(self, indices: Sequence[int]) -> list[str]:
        """Returns the titles of items."""
        return [self.domain.titles[index] for index in indices]

    @classmethod
    def from_corpus(cls, corpus: Corpus, name: str) -> "ItemLookup":
        """Reads the items of a domain.

        Raises:
            CorpusError: There is no such domain; the message names those that there are.
        """
        domain = Domain.from_corpus(corpus, name)
        ids = corpus.read_items()["item_id"].to_pylist()
        return cls(domain, {ids[index]: index for index in domain.item_indices.tolist()})

    def find(self, item_ids: Sequence[str]) -> list[int]:
        """Returns the index in the catalogue of each item.

        Raises:
            DataError: The domain has no item of such an id.
        """
        unknown = [item for item in item_ids if item not in self.index_of_id]
        if unknown:
            named = ", ".join(map(repr, unknown[:MAX_NAMED])) + ", ..." * (len(unknown) > MAX_NAMED)
            raise DataError(
                f"{named}: no item of {self.domain.name}, which has {len(self.index_of_id):,}"
            )
        return [self.index_of_id[item] for item in item_ids]


def choose_domain(recipe: Recipe, model: EvaluatedModel) -> str:
    """Returns the domain whose items a model is asked about.

    It is `recommend.domain`, else the one that a hybrid model knows, else that of `evaluate`.

    Raises:
        RecipeError: There is none.
    """
    domain = (
        recipe.recommend.domain
        or known_domain(model)
        or recipe.evaluate.domain
        or next(iter(recipe.data.held_out), None)
    )
    if domain is None:
        raise RecipeError("recommend.domain: none given, and data.held_out is empty; name a domain")
    return domain


def open_items(recipe: Recipe, model: EvaluatedModel) -> tuple[Corpus, ItemLookup]:
    """Opens the corpus, and reads the items that a model is asked about.

    Raises:
        RunError: The model is hybrid, and knows another domain, corpus or version.
        CorpusError: There is no such corpus, or no such domain in it.
        RecipeError: No domain is named.
    """
    domain = choose_domain(recipe, model)
    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    if model.checkpoint is not None:
        require_known_items(model.name, model.checkpoint, corpus, domain)
    return corpus, ItemLookup.from_corpus(corpus, domain)


def require_text_only(model: EvaluatedModel) -> None:
    """Checks that a model needs no more than the titles of items.

    Raises:
        RecipeError: The model is hybrid: it also needs their ids, and knows those of one domain.
    """
    if (domain := known_domain(model)) is not None:
        raise RecipeError(
            f"--model {model.name}: a hybrid model, which ranks items of {domain} by their ids; "
            "titles do not suffice"
        )


def known_domain(model: EvaluatedModel) -> str | None:
    """Returns the domain that a hybrid model knows; None of a text-only model."""
    if model.checkpoint is None or not is_hybrid(model.checkpoint):
        return None
    return read_known_items(model.checkpoint).domain
