"""A served model ranks as evaluate does, whatever else is in the batch; what is wrong is named."""

from typing import Any

import pytest

from cprec.downstream.domain import Domain, sort_by_id
from cprec.downstream.hybrid import build_encoders
from cprec.downstream.scoring import load_model
from cprec.encode.prompt import TABLE1
from cprec.evaluation.candidate_scoring import score_samples
from cprec.ranking.items import ItemLookup
from cprec.retrieval.catalogue import Catalogue
from cprec.retrieval.title_vectors import embed_titles
from cprec.serving.loaded_model import LoadedModel, ServedModel
from cprec.serving.messages import RankRequest, RankResponse, Refusal
from tests.unit.cprec.ranking import stored_models
from tests.unit.cprec.ranking.stored_models import Place

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def samples(place: Place) -> Any:
    source = place.corpus.find_domain_source("A", "test")
    return sort_by_id(place.corpus.read_samples(source, "test"))


@pytest.fixture(scope="module")
def items(place: Place) -> ItemLookup:
    return ItemLookup.from_corpus(place.corpus, "A")


@pytest.fixture(scope="module", params=["text", "hybrid"])
def loaded(place: Place, request: pytest.FixtureRequest, items: ItemLookup) -> LoadedModel:
    """A model whose candidates are retrieved by vectors of titles, which were stored before."""
    recipe = place.recipe.model_copy(
        update={"retrieval": place.recipe.retrieval.model_copy(update={"sources": ("titles",)})}
    )
    model = place.model(getattr(place, request.param))
    base = place.model(None)
    network, tokenizer = load_model(recipe, base)
    catalogue = Catalogue(recipe, place.corpus, items.domain, base)
    catalogue.ensure_vectors(lambda titles: embed_titles(network, tokenizer, titles), print)
    return ServedModel(recipe, model, base).load(print)


def requests_of(samples: Any, items: ItemLookup) -> list[RankRequest]:
    return [
        RankRequest(
            history=tuple(items.ids(row["history"])), candidates=tuple(items.ids(row["candidates"]))
        )
        for row in samples.select(["history", "candidates"]).to_pylist()
    ]


def test_the_first_of_every_user_is_that_of_evaluate(
    place: Place, loaded: LoadedModel, samples: Any, items: ItemLookup
) -> None:
    if loaded._ranker.is_hybrid:  # what differs is the encoder, and costs time
        samples = samples.slice(0, 200)
    network, tokenizer = load_model(place.recipe, loaded._ranker.model)
    by_index = Domain.from_corpus(place.corpus, "A").items_by_index()
    encoder = build_encoders(
        tokenizer, stored_models.MAX_TOKENS, network, by_index, TABLE1
    ).for_evaluation
    best = score_samples(network, encoder, samples, 16).argmax(axis=1)
    requests = requests_of(samples, items)
    assert len(requests) == (200 if loaded._ranker.is_hybrid else 1000)
    for request, answer, first in zip(requests, loaded.rank(requests), best, strict=True):
        assert isinstance(answer, RankResponse)
        assert request.candidates is not None
        assert answer.items[0].item == request.candidates[first]
        assert len(answer.items) == place.recipe.recommend.k
        assert 0 < sum(item.probability for item in answer.items) <= 1 + 1e-9


def test_without_candidates_new_items_of_the_domain_are_ranked(
    loaded: LoadedModel, samples: Any, items: ItemLookup
) -> None:
    asked = [
        request.model_copy(update={"candidates": None, "k": 5})
        for request in requests_of(samples.slice(0, 50), items)
    ]
    for request, answer in zip(asked, loaded.rank(asked), strict=True):
        assert isinstance(answer, RankResponse)
        found = [item.item for item in answer.items]
        assert len(set(found)) == 5
        assert not set(found) & set(request.history)
        assert [items.titles(items.find([item.item]))[0] for item in answer.items] == [
            item.title for item in answer.items
        ]
        scores = [item.score for item in answer.items]
        assert scores == sorted(scores, reverse=True)


def test_what_is_wrong_with_a_request_concerns_no_other(
    loaded: LoadedModel, samples: Any, items: ItemLookup
) -> None:
    (good,) = requests_of(samples.slice(0, 1), items)
    assert good.candidates is not None
    wrong: dict[str, dict[str, Any]] = {
        "the history is empty": {"history": ()},
        "history: 'nothing' is no item of A": {"history": ("nothing",)},
        "candidates: 'nothing' is no item of A": {"candidates": ("nothing",)},
        "1 candidates, 0 of them not in the history": {"candidates": good.history[:1]},
        "1 candidates, 1 of them not": {"candidates": good.candidates[-1:] * 9},
        r"history: '\ud800\x00' is no item of A": {"history": ("\ud800\x00",)},
    }
    mixed = [good, *(good.model_copy(update=change) for change in wrong.values()), good]
    first, *refused, last = loaded.rank(mixed)
    assert isinstance(first, RankResponse)
    assert isinstance(last, RankResponse)
    assert [item.item for item in first.items] == [item.item for item in last.items]
    for answer, message in zip(refused, wrong, strict=True):
        assert isinstance(answer, Refusal)
        assert answer.status == 422
        assert message in answer.message


def test_a_server_without_retrieval_asks_for_candidates(
    place: Place, samples: Any, items: ItemLookup
) -> None:
    short = place.recipe.model.model_copy(update={"max_tokens": 128})
    recipe = place.recipe.model_copy(update={"model": short})
    loaded = ServedModel(recipe, place.model(place.text), None).load(print)
    (request,) = requests_of(samples.slice(0, 1), items)
    assert request.candidates is not None
    few = request.model_copy(update={"candidates": request.candidates[:3]})
    given, none, long = loaded.rank([few, few.model_copy(update={"candidates": None}), request])
    assert isinstance(given, RankResponse)
    assert given.candidates == 3
    assert isinstance(none, Refusal)
    assert "this server retrieves none" in none.message
    assert isinstance(long, Refusal)
    assert "model.max_tokens" in long.message
