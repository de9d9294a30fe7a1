"""Builds what finds candidates among the items of one domain, from what the storage keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from cluster.console import Say
from cluster.storage import absolute_uri
from corpus.store.tables import Corpus
from cprec.baselines.popularity import order_by_count
from cprec.baselines.sasrec import SASRec
from cprec.config.recipe import Recipe
from cprec.downstream import stored_baselines
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.retrieval.candidates import CandidateSource, FusedSource, Items
from cprec.retrieval.sequence_source import SequenceSource
from cprec.retrieval.stored_vectors import ensure_vectors
from cprec.retrieval.title_vectors import VECTOR_FORM, Embed, TitleSource
from cprec.retrieval.vector_index import Vectors


def vector_identity(recipe: Recipe, model: EvaluatedModel) -> Mapping[str, Any]:
    """Returns everything that the vectors of titles by a model depend on besides the titles."""
    return {
        "form": VECTOR_FORM,
        "base": model.base,
        "base_revision": model.revision,
        "checkpoint": model.checkpoint,
        "precision": recipe.model.precision,
    }


@dataclass(frozen=True)
class Catalogue:
    """The items of one domain, and what the storage knows about them.

    Attributes:
        recipe: The recipe: storage, and the section `retrieval`.
        corpus: The corpus, at the version that is used.
        domain: The domain.
        model: The language model whose hidden states are the vectors of titles.
    """

    recipe: Recipe
    corpus: Corpus
    domain: Domain
    model: EvaluatedModel

    @property
    def items(self) -> Items:
        """The items, by their index in the corpus, ascending."""
        return self.domain.item_indices

    @property
    def vector_identity(self) -> Mapping[str, Any]:
        """Everything that the vector of a title depends on."""
        return vector_identity(self.recipe, self.model)

    @property
    def sasrec(self) -> Corpus | None:
        """The newest corpus version, up to this one, for which a SASRec of the domain is stored."""
        return stored_baselines.find_trained_version(
            self.recipe, self.corpus, self.domain.name, "sasrec", self.recipe.seed
        )

    def build_source(self, embed: Embed, say: Say) -> FusedSource:
        """Builds the source of candidates that the section `retrieval` describes.

        Nothing is trained. Without a stored SASRec the other sources find the candidates.

        Args:
            embed: Computes vectors of titles, for those that the storage does not have.
            say: Takes lines of progress.
        """
        settings = self.recipe.retrieval
        counts = stored_baselines.count_training_purchases(self.recipe, self.corpus, self.domain)
        popular = order_by_count(self.items, counts)
        build: Mapping[str, Callable[[], CandidateSource | None]] = {
            "titles": lambda: self._build_title_source(embed, say),
            "sasrec": lambda: self._build_sequence_source(say),
            "popularity": lambda: FusedSource([], popular, settings.exclude_history),
        }
        built = {name: build[name]() for name in dict.fromkeys(settings.sources)}
        sources = [source for name in settings.sources if (source := built[name]) is not None]
        return FusedSource(sources, popular, settings.exclude_history)

    def _build_title_source(self, embed: Embed, say: Say) -> TitleSource:
        """Builds the source that knows the titles of all items."""
        vectors = self.ensure_vectors(embed, say)
        return TitleSource.from_vectors(
            self.items, vectors, self.items, self.recipe.retrieval.decay
        )

    def ensure_vectors(self, embed: Embed, say: Say) -> Vectors:
        """Returns the vectors of the items' titles [items, H]; missing ones are stored first."""
        titles = [self.domain.titles[item] for item in self.items.tolist()]
        storage_uri = absolute_uri(self.recipe.storage)
        return ensure_vectors(storage_uri, self.vector_identity, titles, embed, say)

    def _build_sequence_source(self, say: Say) -> SequenceSource | None:
        """Builds the source that knows the items of the newest stored SASRec; None without one."""
        if (trained := self.sasrec) is None:
            say(f"no SASRec of {self.domain.name} is stored: candidates are found without it")
            return None
        domain = Domain.from_corpus(trained, self.domain.name)
        if unknown := len(self.items) - len(domain.item_indices):
            say(
                f"SASRec of corpus version {trained.version} does not know {unknown:,} items of "
                f"{self.domain.name}, which the other sources find"
            )
        network = stored_baselines.load_trained(
            self.recipe, trained, domain, "sasrec", self.recipe.seed
        )
        return SequenceSource(cast(SASRec, network), domain.item_indices)
