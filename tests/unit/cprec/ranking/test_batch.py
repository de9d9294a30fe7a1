"""Blocks of a batch: evaluate's order for every user, the right number of items, no row lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import PlatformFault
from cprec.downstream.domain import Domain, sort_by_id
from cprec.encode.tokens import too_long_error
from cprec.evaluation.candidate_scoring import PromptEncoder
from cprec.ranking import batch
from cprec.ranking.batch import BlockRanking
from cprec.ranking.histories import read_histories, read_user_history
from cprec.ranking.items import ItemLookup
from cprec.ranking.ranker import Ranker
from cprec.tracking.registry import Registry
from cprec.workflows import batch_recommend
from tests.unit.cprec.ranking.stored_models import Place
from tests.unit.cprec.ranking.test_ranker import evaluated_scores

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def block_ranking(place: Place, uri: str, checkpoint: str, k: int) -> BlockRanking:
    recommend = place.recipe.recommend.model_copy(update={"k": k})
    return BlockRanking(
        place.recipe.model_copy(update={"recommend": recommend}),
        place.model(checkpoint),
        ItemLookup.from_corpus(place.corpus, "A"),
        None,
        uri,
        "histories",
    )


@pytest.mark.parametrize("kind", ["text", "hybrid"])
def test_a_block_has_the_order_of_evaluate(place: Place, kind: str, tmp_path: Path) -> None:
    rows = read_histories(place.corpus, Domain.from_corpus(place.corpus, "A"), "test")
    samples = sort_by_id(
        place.corpus.read_samples(place.corpus.find_domain_source("A", "test"), "test")
    ).sort_by("user_id")
    assert rows["user_id"].to_pylist() == samples["user_id"].to_pylist()
    if kind == "hybrid":  # what differs is the encoder, and costs time
        rows, samples = rows.slice(0, 150), samples.slice(0, 150)
    assert len(rows) == (150 if kind == "hybrid" else 1000)
    ranking = block_ranking(place, str(tmp_path), getattr(place, kind), 30)
    items = ranking.items
    assert items is not None
    ranker = ranking.load()
    table = ranking.rank(ranker, rows)
    expected = evaluated_scores(place, ranker, samples)
    candidates = samples["candidates"].to_pylist()
    for row, scores, given in zip(table.to_pylist(), expected, candidates, strict=True):
        order = np.argsort(-scores, kind="stable")
        # 30 were asked for, and there are 20.
        assert row["items"] == items.ids([given[i] for i in order])
        assert row["titles"] == items.titles([given[i] for i in order])
        assert sum(row["probabilities"]) == pytest.approx(1)
    top = block_ranking(place, str(tmp_path), getattr(place, kind), 3).rank(
        ranker, rows.slice(0, 100)
    )
    assert top["items"].to_pylist() == [row[:3] for row in table["items"].to_pylist()[:100]]
    assert max(map(sum, top["probabilities"].to_pylist())) < 1


def test_rows_that_do_not_fit_are_kept_with_their_block(place: Place, tmp_path: Path) -> None:
    ranking = block_ranking(place, str(tmp_path), place.text, 2)
    known = Domain.from_corpus(place.corpus, "A").item_indices.tolist()
    rows = pa.table(
        {
            "user_id": ["long", "none", "short"],
            "history": [known[:1]] * 3,
            "candidates": [known[1:], [], known[5:9]],
        }
    )
    ranker = ranking.load()
    encoder = ranker._item_encoder
    assert encoder is not None
    narrow = Ranker(
        ranking.model,
        ranker._network,
        ranker._method,
        4,
        ranker._title_encoder,
        _Narrow(encoder, 12),
    )
    table = ranking.rank(narrow, rows)
    assert table["user_id"].to_pylist() == ["short"]
    batch.write_block(str(tmp_path), 0, table)
    assert batch.list_missing(str(tmp_path), 3) == [1, 2]
    batch.write_block(str(tmp_path), 1, ranking.rank(narrow, rows.slice(0, 1)))
    users, rejected = batch.read_counts(str(tmp_path), 2)
    assert users == 1
    assert [(row.user_id, row.reason) for row in rejected] == [
        ("long", "too_long"),
        ("none", "too_few_candidates"),
        ("long", "too_long"),
    ]


@dataclass(frozen=True)
class _Narrow:
    """An encoder in whose prompts few candidates fit."""

    encoder: PromptEncoder
    most: int

    def encode_prompt(
        self, history: Sequence[int], candidates: Sequence[int], reserved_tokens: int
    ) -> tuple[list[int], int]:
        if len(candidates) > self.most:
            raise too_long_error(f"a prompt of {len(candidates)} candidates", 65, 64)
        return self.encoder.encode_prompt(history, candidates, reserved_tokens)

    def encode_answer(self, item: int) -> list[int]:
        return self.encoder.encode_answer(item)


def test_a_history_up_to_now_holds_nothing_out(place: Place) -> None:
    domain = Domain.from_corpus(place.corpus, "A")
    now = read_histories(place.corpus, domain, "now")
    tested = read_histories(place.corpus, domain, "test")
    samples = place.corpus.read_samples(domain.source, "test")
    target = {
        row["user_id"]: row["candidates"][row["target"]]
        for row in samples.select(["user_id", "candidates", "target"]).to_pylist()
    }
    assert now["user_id"].to_pylist() == tested["user_id"].to_pylist() == sorted(target)
    for row, before in zip(now.to_pylist(), tested.to_pylist(), strict=True):
        # Samples have the last 4 items before the target; every user bought 8.
        assert len(row["history"]) == 8
        assert row["history"][-5:] == [*before["history"], target[row["user_id"]]]
        assert read_user_history(place.corpus, domain.name, row["user_id"]) == row["history"]


def test_progress_says_how_long_it_takes() -> None:
    line = batch_recommend.format_batch_progress(300, 1500, 60.0)
    assert line == "ranked       300/1,500 users  5.00 users/s  4:00 left"


def test_a_batch_that_lacks_a_user_is_no_batch(place: Place, tmp_path: Path) -> None:
    recipe = place.recipe.model_copy(
        update={
            "recommend": place.recipe.recommend.model_copy(
                update={
                    "domain": "A",
                    "as_of": "test",
                    "candidates": "given",
                    "block_users": 600,
                    "out": str(tmp_path),
                    "exclude_history": False,
                }
            )
        }
    )
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", "cprec", "cprec")
    plan = batch_recommend.plan_batch(recipe, registry, place.model(place.text), print)
    assert (plan.num_blocks, len(plan.input.rows)) == (2, 1000)
    ranking = block_ranking(place, plan.uri, place.text, 2)
    few = ranking.rank(ranking.load(), plan.input.rows.slice(0, 5))
    for number in range(2):
        batch.write_block(plan.uri, number, few)
    with pytest.raises(PlatformFault, match="10 users are ranked and 0 are not, of 1,000"):
        batch_recommend.run_batch(plan, print)
    assert not plan.is_done
