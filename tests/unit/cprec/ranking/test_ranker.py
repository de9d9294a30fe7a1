"""A ranker gives evaluate's scores, whatever else is in the batch, and favours no position."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DataError, PlatformFault, RecipeError
from cprec.downstream.domain import Domain, sort_by_id
from cprec.downstream.hybrid import build_encoders
from cprec.downstream.scoring import load_model
from cprec.encode.prompt import TABLE1
from cprec.evaluation.candidate_rows import PassKind, Query
from cprec.evaluation.candidate_scoring import score_samples
from cprec.ranking.items import ItemLookup
from cprec.ranking.ranker import Ranker, Ranking
from cprec.workflows.recommend import RecommendRequest, rank_with
from tests.unit.cprec.ranking import stored_models
from tests.unit.cprec.ranking.stored_models import Place

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def samples(place: Place) -> pa.Table:
    return sort_by_id(
        place.corpus.read_samples(place.corpus.find_domain_source("A", "test"), "test")
    )


@pytest.fixture(scope="module", params=["text", "hybrid"])
def ranker(place: Place, request: pytest.FixtureRequest) -> Ranker:
    model = place.model(getattr(place, request.param))
    return Ranker.load(place.recipe, model, print, Domain.from_corpus(place.corpus, "A"))


def evaluated_scores(place: Place, ranker: Ranker, samples: pa.Table) -> np.ndarray:
    """Scores samples as a task of `evaluate` does, a text-only model by whole prompts."""
    network, tokenizer = load_model(place.recipe, ranker.model)
    items = Domain.from_corpus(place.corpus, "A").items_by_index()
    encoder = build_encoders(
        tokenizer, stored_models.MAX_TOKENS, network, items, TABLE1
    ).for_evaluation
    return score_samples(network, encoder, samples, 16)


def test_the_first_of_every_user_is_that_of_evaluate(
    place: Place, ranker: Ranker, samples: pa.Table
) -> None:
    assert len(samples) == 1000
    expected = evaluated_scores(place, ranker, samples)
    rows = samples.select(["history", "candidates"]).to_pylist()
    rankings = ranker.rank([ranker.encode_items(**row) for row in rows])
    items = ItemLookup.from_corpus(place.corpus, "A")
    asked = 100 if ranker.is_hybrid else 1000  # what differs is the encoder, and costs time
    for row, scores in zip(rows[:asked], expected[:asked], strict=True):
        history, candidates = items.ids(row["history"]), items.ids(row["candidates"])
        ((first, _), *others) = rank_with(ranker, RecommendRequest(history, candidates, items))
        assert first.split("  ")[0] == candidates[scores.argmax()]
        assert len(others) == 19
    assert [ranking.order[0] for ranking in rankings] == expected.argmax(axis=1).tolist()
    assert len({int(ranking.order[0]) for ranking in rankings}) > 5
    for ranking, scores in zip(rankings, expected, strict=True):
        assert np.abs(ranking.scores - scores[ranking.order]).max() < 1e-3
        assert ranking.probabilities.sum() == pytest.approx(1)


def test_requests_of_all_sizes_share_a_batch(
    place: Place, ranker: Ranker, samples: pa.Table
) -> None:
    rows = samples.slice(0, 40).select(["history", "candidates"]).to_pylist()
    queries = [
        ranker.encode_items(row["history"][: number % 5], row["candidates"][: 2 + number % 19])
        for number, row in enumerate(rows)
    ]
    together = ranker.rank(queries)
    for query, ranking in zip(queries, together, strict=True):
        alone = ranker.rank([query])[0]
        assert alone.order.tolist() == ranking.order.tolist()
        assert np.abs(alone.scores - ranking.scores).max() < 1e-3
    fastest = ranker._method
    assert fastest.kind is PassKind.PACKED
    try:
        for kind in (PassKind.MASKED, PassKind.ALONE):
            ranker._method = dataclasses.replace(fastest, kind=kind)
            for ranking, slow in zip(together, ranker.rank(queries), strict=True):
                assert np.abs(ranking.scores - slow.scores).max() < 1e-3
    finally:
        ranker._method = fastest


def test_titles_are_ranked_as_their_items(place: Place, samples: pa.Table) -> None:
    domain = Domain.from_corpus(place.corpus, "A")
    row = samples.slice(3, 1).select(["history", "candidates"]).to_pylist()[0]
    by_item = Ranker.load(place.recipe, place.model(place.text), print, domain)
    by_title = Ranker.load(place.recipe, place.model(place.text), print)
    titles = {name: [domain.titles[i] for i in items] for name, items in row.items()}
    assert by_title.encode_titles(**titles) == by_item.encode_items(**row)


def test_what_cannot_be_ranked_is_refused(place: Place) -> None:
    domain = Domain.from_corpus(place.corpus, "A")
    text = Ranker.load(place.recipe, place.model(place.text), print, domain)
    first, second = domain.item_indices[:2].tolist()
    with pytest.raises(DataError, match="1 candidate"):
        text.encode_items([first], [second])
    with pytest.raises(DataError, match="given twice"):
        text.encode_items([], [second, second])
    with pytest.raises(DataError, match="an empty title"):
        text.encode_titles(["oak lamp", " "], ["a", "b"])
    with pytest.raises(DataError, match=r"model\.max_tokens"):
        text.encode_titles([], [f"oak lamp {number}" for number in range(200)])
    with pytest.raises(RecipeError, match="no domain is given"):
        Ranker.load(place.recipe, place.model(place.hybrid), print)
    with pytest.raises(RecipeError, match="titles do not suffice"):
        Ranker.load(place.recipe, place.model(place.hybrid), print, domain).encode_titles(
            [], ["a", "b"]
        )
    with pytest.raises(DataError, match="'B01', 'x': no item of A, which has 40"):
        ItemLookup.from_corpus(place.corpus, "A").find(["A01", "B01", "x"])


def test_constant_scores_give_chance_wherever_the_target_stands() -> None:
    candidates, requests = 20, 4000
    for target in (0, 7, candidates - 1):
        first = [
            Ranking.from_scores(Query([number], []), np.zeros(candidates)).order[0]
            for number in range(requests)
        ]
        hits = int(np.sum(np.array(first) == target))
        expected = requests / candidates
        assert abs(hits - expected) < 4 * np.sqrt(expected)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(0, 99))
def test_a_ranking_is_sorted_and_always_the_same(levels: list[int], prompt: int) -> None:
    scores = np.array(levels, dtype=np.float64)
    ranking = Ranking.from_scores(Query([prompt], []), scores)
    assert sorted(ranking.order.tolist()) == list(range(len(scores)))
    assert (np.diff(ranking.scores) <= 0).all()
    assert (ranking.scores == scores[ranking.order]).all()
    again = Ranking.from_scores(Query([prompt], []), scores)
    assert again.order.tolist() == ranking.order.tolist()


def test_a_score_that_is_no_number_is_a_fault() -> None:
    with pytest.raises(PlatformFault, match="NaN"):
        Ranking.from_scores(Query([1], []), np.array([0.0, np.nan]))
