"""A language model that is loaded once, and ranks candidates for histories. Needs no Ray.

Scores are those of `evaluate`: the same prompts, the same pass over them. A request is encoded
first, alone, so that what is wrong with one concerns no other; then any number is scored together.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.console import Say
from cluster.errors import DataError, PlatformFault, RecipeError
from corpus.ingest.titles import clean_title
from cprec.config.recipe import Recipe
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.hybrid import HybridModel, build_encoders
from cprec.downstream.scoring import load_model, prepare_scoring
from cprec.encode.prompt import PromptTemplate
from cprec.encode.title_encoding import UncachedPromptEncoder, build_title_encoding
from cprec.encode.title_tokens import CachedPromptEncoder
from cprec.encode.tokens import TitleEncoder
from cprec.evaluation.candidate_rows import Query
from cprec.evaluation.candidate_scoring import PromptEncoder, encode_query, score_queries
from cprec.evaluation.scoring_check import ScoringMethod
from cprec.model.context_length import require_context

MIN_CANDIDATES = 2
"""Candidates of a request, at least: one alone is no ranking."""


@dataclass(frozen=True)
class Ranking:
    """The candidates of one request, best first.

    Attributes:
        order: Positions of the candidates as they were given [candidates].
        scores: Log-likelihood of each, in this order [candidates].
        probabilities: Softmax of the scores [candidates]: shares of the likelihood of these
            candidates alone. They are not calibrated.
    """

    order: NDArray[np.int64]
    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    @classmethod
    def from_scores(cls, query: Query, scores: NDArray[np.float64]) -> "Ranking":
        """Sorts candidates by their scores.

        Equal scores are put in an order drawn from the prompt. So the order in which candidates
        are given favours none, and the same request always gets the same answer.

        Raises:
            PlatformFault: A score is NaN.
        """
        if np.isnan(scores).any():
            raise PlatformFault("the model gave a candidate the score NaN; its weights are damaged")
        seed = zlib.crc32(np.array(query.prompt, dtype=np.int64).tobytes())
        draw = np.random.default_rng(seed).permutation(len(scores))
        order = np.lexsort((draw, -scores))
        ranked = scores[order]
        weights = np.exp(ranked - ranked[0])
        return cls(order, ranked, weights / weights.sum())


class Ranker:
    """A loaded language model that ranks candidates, given as titles or as items of a domain."""

    def __init__(
        self,
        model: EvaluatedModel,
        network: Any,
        method: ScoringMethod,
        batch_size: int,
        title_encoder: TitleEncoder,
        item_encoder: PromptEncoder | None = None,
        domain: Domain | None = None,
    ) -> None:
        """Takes what `load` builds.

        Args:
            model: What the model is.
            network: Its network, in evaluation mode.
            method: How it scores.
            batch_size: Requests of one forward pass, at most.
            title_encoder: Encoder of titles.
            item_encoder: Encoder of items, by their index in the catalogue of `domain`'s corpus.
            domain: Domain of the items; None if the model is asked about titles only.
        """
        self.model = model
        self.is_hybrid = isinstance(network, HybridModel)
        self._network = network
        self._method = method
        self._batch_size = batch_size
        self._title_encoder = title_encoder
        self._item_encoder = item_encoder
        self._domain = domain

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        model: EvaluatedModel,
        say: Say,
        domain: Domain | None = None,
        item_encoder: PromptEncoder | None = None,
    ) -> "Ranker":
        """Loads a model, onto the GPU if there is one.

        Args:
            recipe: Precision, longest prompt, and requests of one pass (`evaluate.batch`).
            model: The language model, checked by `cprec.workflows.evaluation.models.find_model`.
            say: Takes a line where the model is not scored by the fastest method.
            domain: Domain whose items it is asked about. A hybrid model needs it.
            item_encoder: Encoder of the items for a text-only model; None: it is built.

        Raises:
            RecipeError: The base is not a causal model, or has too short a context; or no domain is
                given for a hybrid model.
        """
        max_tokens = recipe.model.max_tokens
        require_context(model.base, model.revision, max_tokens)
        network, tokenizer = load_model(recipe, model)
        if isinstance(network, HybridModel):
            if domain is None:
                raise RecipeError(
                    f"{model.name}: a hybrid model, which ranks items of the domain that it knows, "
                    "and no domain is given"
                )
            items = domain.items_by_index()
            item_encoder = build_encoders(
                tokenizer, max_tokens, network, items, model.template
            ).for_evaluation
        elif domain is not None and item_encoder is None:
            item_encoder = _build_text_encoder(tokenizer, max_tokens, domain, model.template)
        method = prepare_scoring(recipe, network)
        if method.notice:
            say(f"{model.label}: {method.notice}")
        return cls(
            model,
            network,
            method,
            recipe.evaluate.batch,
            TitleEncoder(tokenizer, max_tokens, model.template),
            item_encoder,
            domain,
        )

    def encode_titles(self, history: Sequence[str], candidates: Sequence[str]) -> Query:
        """Encodes a request by titles.

        Args:
            history: Titles, oldest first; may be empty.
            candidates: Titles to rank.

        Raises:
            DataError: A title is empty, there are too few candidates, or they do not fit.
            RecipeError: The model is hybrid; titles do not suffice.
        """
        if self.is_hybrid:
            name = self._domain.name if self._domain else ""
            raise RecipeError(
                f"{self.model.name}: a hybrid model, which ranks items of {name} by their ids; "
                "titles do not suffice"
            )
        titles = [clean_title(title) for title in (*history, *candidates)]
        if "" in titles:
            raise DataError("an empty title; each item of history and candidates needs one")
        _require_candidates(titles[len(history) :])
        encoder = UncachedPromptEncoder(titles, self._title_encoder)
        first = len(history)
        return encode_query(encoder, range(first), range(first, len(titles)))

    def encode_items(self, history: Sequence[int], candidates: Sequence[int]) -> Query:
        """Encodes a request by items of the domain, given by their index in the catalogue.

        Args:
            history: Items, oldest first; may be empty.
            candidates: Items to rank.

        Raises:
            DataError: There are too few candidates, or they do not fit.
            RecipeError: The model was loaded without a domain.
        """
        if self._item_encoder is None:
            raise RecipeError(f"{self.model.name}: loaded without a domain; it knows no items")
        _require_candidates(candidates)
        return encode_query(self._item_encoder, history, candidates)

    def rank(self, queries: Sequence[Query]) -> list[Ranking]:
        """Ranks the candidates of encoded requests, with differently many candidates or not.

        Args:
            queries: What `encode_titles` and `encode_items` returned.
        """
        scores = score_queries(self._network, queries, self._batch_size, self._method.kind)
        return [
            Ranking.from_scores(query, found) for query, found in zip(queries, scores, strict=True)
        ]


def _build_text_encoder(
    tokenizer: Any, max_tokens: int, domain: Domain, template: PromptTemplate
) -> PromptEncoder:
    """Builds the encoder of items for a text-only model, which knows all titles of the corpus."""
    encoding = build_title_encoding(domain.titles, tokenizer, template)
    if encoding.title_tokens is not None:
        return CachedPromptEncoder(encoding.title_tokens, max_tokens)
    return UncachedPromptEncoder(encoding.titles, TitleEncoder(tokenizer, max_tokens, template))


def _require_candidates(candidates: Sequence[object]) -> None:
    """Raises DataError if there are too few candidates, or one occurs twice."""
    if (count := len(candidates)) < MIN_CANDIDATES:
        raise DataError(f"{count} candidate(s); a ranking takes {MIN_CANDIDATES} at least")
    if len(set(candidates)) < len(candidates):
        raise DataError("a candidate is given twice; give each once")
