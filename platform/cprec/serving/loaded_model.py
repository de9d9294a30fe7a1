"""A model with the items of its domain, which ranks requests. Needs no Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from cluster.console import Say
from cluster.errors import DataError, PlatformFault
from cprec.config.recipe import Recipe
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.evaluation.candidate_rows import Query
from cprec.ranking.batch_input import RowRules, UnusableRow
from cprec.ranking.items import ItemLookup, open_items
from cprec.ranking.ranker import Ranker, Ranking
from cprec.retrieval.candidates import FusedSource, in_item_order
from cprec.retrieval.catalogue import Catalogue
from cprec.retrieval.vector_index import Vectors
from cprec.serving.messages import RankedItem, RankRequest, RankResponse, Refusal


@dataclass(frozen=True)
class ServedModel:
    """What a replica loads, as data.

    Attributes:
        recipe: The recipe, with the domain and the corpus version that are served.
        model: The model that ranks.
        retriever: The model whose vectors of titles are stored; None: candidates must be given.
    """

    recipe: Recipe
    model: EvaluatedModel
    retriever: EvaluatedModel | None

    def open(self) -> tuple[ItemLookup, Catalogue | None]:
        """Opens the items, and what the storage knows about them if candidates are retrieved."""
        corpus, items = open_items(self.recipe, self.model)
        if self.retriever is None:
            return items, None
        return items, Catalogue(self.recipe, corpus, items.domain, self.retriever)

    def load(self, say: Say) -> "LoadedModel":
        """Loads the model, and the sources of candidates if they are retrieved."""
        items, catalogue = self.open()
        ranker = Ranker.load(self.recipe, self.model, say, items.domain)
        source = None if catalogue is None else catalogue.build_source(_refuse_to_embed, say)
        return LoadedModel(self.recipe, ranker, items, source)


def _refuse_to_embed(titles: Sequence[str]) -> Vectors:
    """Stands where nothing is left to embed: that was done before replicas were started."""
    raise PlatformFault(f"{len(titles):,} titles have no stored vector; start the server again")


class LoadedModel:
    """A loaded model, which ranks any number of requests together."""

    def __init__(
        self, recipe: Recipe, ranker: Ranker, items: ItemLookup, source: FusedSource | None
    ) -> None:
        """Takes what `ServedModel.load` builds.

        Args:
            recipe: The section `recommend`.
            ranker: The language model.
            items: Items of the domain.
            source: Finds candidates; None: they must be given.
        """
        self._settings = recipe.recommend
        self._max_history = recipe.data.max_history
        self._ranker = ranker
        self._items = items
        self._source = source

    def rank(self, requests: Sequence[RankRequest]) -> list[RankResponse | Refusal]:
        """Ranks the candidates of requests.

        Args:
            requests: The requests, of any sizes.

        Returns:
            The answer to each, or why there is none. What is wrong with one concerns no other.
        """
        answers: list[RankResponse | Refusal | None] = [None] * len(requests)
        histories: dict[int, list[int]] = {}
        candidates: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            try:
                histories[number], given = self._check(request)
            except UnusableRow as error:
                answers[number] = _refuse(error.detail)
                continue
            if given is not None:
                candidates[number] = given
        candidates |= self._retrieve({n: histories[n] for n in histories if n not in candidates})
        queries: dict[int, Query] = {}
        for number, items in candidates.items():
            try:
                past = histories[number][-self._max_history :]
                queries[number] = self._ranker.encode_items(past, items)
            except DataError as error:
                answers[number] = _refuse(str(error))
        rankings = self._ranker.rank(list(queries.values()))
        for number, ranking in zip(queries, rankings, strict=True):
            answers[number] = self._answer(requests[number], candidates[number], ranking)
        return [answer for answer in answers if answer is not None]

    def _check(self, request: RankRequest) -> tuple[list[int], list[int] | None]:
        """Returns the items of a request's history and, if they are given, of its candidates.

        Raises:
            UnusableRow: They cannot be ranked.
        """
        is_given = request.candidates is not None
        if not is_given and self._source is None:
            raise UnusableRow("no_candidates", "candidates: none, and this server retrieves none")
        rules = RowRules(self._items, is_given, self._max_history, self._settings.exclude_history)
        return rules.check(request.history, request.candidates)

    def _retrieve(self, histories: dict[int, list[int]]) -> dict[int, list[int]]:
        """Finds candidates for histories, by the number of their request."""
        if not histories or self._source is None:
            return {}
        given = list(histories.values())
        found = self._source.find(given, self._settings.retrieve_k)
        chosen = in_item_order(found, given, self._settings.exclude_history)
        return dict(zip(histories, chosen, strict=True))

    def _answer(
        self, request: RankRequest, candidates: list[int], ranking: Ranking
    ) -> RankResponse:
        """Builds the answer to a request."""
        k = request.k or self._settings.k
        best = [candidates[i] for i in ranking.order[:k].tolist()]
        ids, titles = self._items.ids(best), self._items.titles(best)
        scores, shares = ranking.scores[:k].tolist(), ranking.probabilities[:k].tolist()
        shown = zip(ids, titles, scores, shares, strict=True)
        return RankResponse(
            items=tuple(
                RankedItem(item=item, title=title, score=score, probability=share)
                for item, title, score, share in shown
            ),
            candidates=len(candidates),
            model=self._ranker.model.label,
            domain=self._items.domain.name,
        )


def _refuse(message: str) -> Refusal:
    """Returns the refusal of a request that cannot be ranked."""
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, message)
