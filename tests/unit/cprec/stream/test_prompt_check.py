"""Prompts that are too long without a history are found before training, wherever they stand."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from cluster.errors import DataError
from corpus.build import build
from corpus.sampling.source import SourceKind
from corpus.store.tables import Corpus, read_rows
from cprec.config.recipe import Recipe
from cprec.encode.prompt import TABLE1
from cprec.encode.text_tasks import ObjectiveEncoder
from cprec.encode.title_tokens import CachedPromptEncoder, TitleTokens, tokenise_titles
from cprec.model.tiny import train_tokenizer
from cprec.runs.run_planning import create_run_plan
from cprec.schedule.objectives import NEXT_ITEM_ONLY, Objectives
from cprec.schedule.plan import Plan
from cprec.stream import prompt_check
from cprec.stream.prompt_check import require_prompts_fit, require_streams_fit
from cprec.stream.segments import read_plan_rows
from tests.unit.corpus.worlds import settings, shop, write_root


@dataclass
class Encoder:
    """A row encoder whose titles need no object store."""

    titles: TitleTokens
    max_tokens: int
    objectives: Objectives = NEXT_ITEM_ONLY

    def load_prompt_encoder(self) -> CachedPromptEncoder:
        return CachedPromptEncoder(self.titles, self.max_tokens)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    place = tmp_path_factory.mktemp("prompts")
    root = write_root(place / "root", shop(("A", "B", "C")))
    return build(settings(root), 0, str(place / "corpus"), lambda line: None)


@pytest.fixture(scope="module")
def plan(corpus: Corpus) -> Plan:
    return create_run_plan(Recipe(), corpus).plan


@pytest.fixture(scope="module")
def titles(corpus: Corpus) -> TitleTokens:
    texts = corpus.read_titles()
    return tokenise_titles(texts, train_tokenizer(texts, 300, TABLE1), TABLE1)


@pytest.fixture(scope="module")
def lengths(corpus: Corpus, plan: Plan, titles: TitleTokens) -> np.ndarray:
    """Tokens of each sample of the plan without its history, counted by the encoder itself."""
    encoder = CachedPromptEncoder(titles, 10_000)
    found = []
    for era in plan.eras:
        rows = read_plan_rows(era, corpus.streams_by_key(), era.start, era.stop)
        index = rows.column_names.index("history")
        kind = rows.schema.field("history").type
        empty = rows.set_column(index, "history", [cast(Any, [[]] * len(rows))]).cast(
            rows.schema.set(index, rows.schema.field("history").with_type(kind))
        )
        found += [len(sample.ids) for sample in encoder.encode_samples(empty)]
    return np.array(found)


def test_exactly_the_prompts_that_fit_pass(
    corpus: Corpus, plan: Plan, titles: TitleTokens, lengths: np.ndarray
) -> None:
    streams = corpus.streams_by_key()
    longest = int(lengths.max())
    require_prompts_fit(cast(Any, Encoder(titles, longest)), plan, streams, 0)
    too_long = int((lengths > longest - 1).sum())
    with pytest.raises(
        DataError, match=f"the longest of {too_long:,} prompts .* takes {longest:,} tokens"
    ):
        require_prompts_fit(cast(Any, Encoder(titles, longest - 1)), plan, streams, 0)


def test_what_is_trained_already_and_what_is_far_away_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
    corpus: Corpus,
    plan: Plan,
    titles: TitleTokens,
    lengths: np.ndarray,
) -> None:
    encoder, streams = cast(Any, Encoder(titles, int(lengths.max()) - 1)), corpus.streams_by_key()
    last = int(np.flatnonzero(lengths == lengths.max())[-1])
    first = int(np.flatnonzero(lengths == lengths.max())[0])
    require_prompts_fit(encoder, plan, streams, last + 1)
    with pytest.raises(DataError, match="of 1 prompts"):
        require_prompts_fit(encoder, plan, streams, last)
    monkeypatch.setattr(prompt_check, "CHECKED_SAMPLES", first)
    require_prompts_fit(encoder, plan, streams, 0)


def test_streams_that_join_are_looked_at_like_a_plan(corpus: Corpus, titles: TitleTokens) -> None:
    streams = [s for s in corpus.streams() if s.source.kind is not SourceKind.DOWNSTREAM]
    encoder = CachedPromptEncoder(titles, 10_000)
    found = [encoder.shortest_lengths(read_rows(s, 0, s.rows)) for s in streams]
    longest = max(int(lengths.max()) for lengths in found)
    require_streams_fit(cast(Any, Encoder(titles, longest)), streams)
    too_long = sum(int((lengths == longest).sum()) for lengths in found)
    with pytest.raises(DataError, match=f"of {too_long:,} prompts .* takes {longest:,} tokens"):
        require_streams_fit(cast(Any, Encoder(titles, longest - 1)), streams)


def test_text_tasks_need_no_room_for_candidates(
    corpus: Corpus, plan: Plan, titles: TitleTokens, lengths: np.ndarray
) -> None:
    masked = Objectives(0, {"domain": {"masked_item": 1}, "mixed": {"masked_item": 1}})
    streams, prompts = corpus.streams_by_key(), CachedPromptEncoder(titles, 10_000)
    tasks = ObjectiveEncoder(prompts, masked, 10_000)
    shortest = [
        length
        for era in plan.eras
        for length in tasks.shortest_task_lengths(
            read_plan_rows(era, streams, era.start, era.stop)
        ).values()
    ]
    assert len(shortest) == len(lengths)
    limit = max(shortest)
    assert limit < lengths.min()
    require_prompts_fit(cast(Any, Encoder(titles, limit, masked)), plan, streams, 0)
    with pytest.raises(DataError, match=f"takes {limit} tokens .*even with the shortest history"):
        require_prompts_fit(cast(Any, Encoder(titles, limit - 1, masked)), plan, streams, 0)
