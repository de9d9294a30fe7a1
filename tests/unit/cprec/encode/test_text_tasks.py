"""A text task asks for titles of the history, and every encoder makes the same tokens of it."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DataError
from cprec.encode.prompt import MASK, TEMPLATES, PromptTemplate
from cprec.encode.text_tasks import (
    MASK_ITEM,
    ObjectiveEncoder,
    PromptEncoder,
    derive_task,
    draw_objectives,
)
from cprec.encode.title_encoding import UncachedPromptEncoder
from cprec.encode.title_tokens import CachedPromptEncoder, tokenise_titles
from cprec.encode.tokens import EncodedSample, TitleEncoder
from cprec.model.tiny import train_tokenizer
from cprec.schedule.objectives import MIN_TITLES, NEXT_ITEM_ONLY, Objective, Objectives

TITLES = [f"{colour} {thing}" for colour in ("red", "oak", "tin") for thing in ("mug", "lamp")]
TITLES += ["red mug", "lamp", "Öl 5l, (2)", MASK]
"""The title of item 0 is item 6's too, as it may be in another domain."""
TOKENIZER = train_tokenizer(TITLES, 300, TEMPLATES["table1"])
TASKS = [objective for objective in Objective if objective != Objective.NEXT_ITEM]
ALL: dict[str, float] = dict.fromkeys(Objective, 1.0)

ITEMS = st.integers(0, len(TITLES) - 1)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "sample_id": st.integers(0, (1 << 63) - 1),
            "source": st.sampled_from(["domain/A", "mixed"]),
            "history": st.lists(ITEMS, max_size=8),
            "candidates": st.lists(ITEMS, min_size=2, max_size=5),
            "target": st.integers(0, 1),
        }
    ),
    max_size=6,
)
SCHEMA = pa.schema(
    {
        "sample_id": pa.int64(),
        "source": pa.string(),
        "history": pa.list_(pa.int64()),
        "candidates": pa.list_(pa.int64()),
        "target": pa.int8(),
    }
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def encoders(template: PromptTemplate) -> list[PromptEncoder]:
    return [
        CachedPromptEncoder(tokenise_titles(TITLES, TOKENIZER, template), 1 << 20),
        UncachedPromptEncoder(TITLES, TitleEncoder(TOKENIZER, 1 << 20, template)),
    ]


ENCODERS = {template.name: encoders(template) for template in TEMPLATES.values()}
CACHED, _ = ENCODERS["table1"]
PREFIX = TOKENIZER("")["input_ids"]


def plain(samples: list[EncodedSample]) -> list[tuple[list[int], int, int]]:
    return [(s.ids.tolist(), s.answer_start, s.dropped_titles) for s in samples]


@given(
    st.sampled_from(TASKS),
    st.lists(ITEMS, min_size=MIN_TITLES, max_size=10),
    st.lists(ITEMS, min_size=1, max_size=19),
    st.integers(0, (1 << 64) - 1),
)
def test_the_answer_is_what_was_hidden_replaced_or_cut_off(
    objective: Objective, history: list[int], others: list[int], draw: int
) -> None:
    task = derive_task(objective, history, others, draw, TITLES.__getitem__)
    if objective == Objective.NEXT_HISTORY:
        assert task.shown
        assert task.answers
        assert task.shown + task.answers == history
        return
    [answer] = task.answers
    pairs = list(zip(task.shown, history, strict=True))
    if objective == Objective.MASKED_ITEM:
        assert MASK_ITEM in task.shown
        assert all(
            shown == (MASK_ITEM if TITLES[item] == TITLES[answer] else item)
            for shown, item in pairs
        )
        return
    assert answer in others
    replaced = [shown for shown, item in pairs if shown != item]
    titles = {TITLES[item] for item in history}
    if {TITLES[item] for item in others} <= titles:
        assert replaced in ([answer], [])
    else:
        assert replaced == [answer]
        assert TITLES[answer] not in titles


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@given(rows=ROWS, seed=st.integers(0, 3))
def test_tokens_are_those_of_the_whole_text_whatever_the_encoder(
    template: PromptTemplate, rows: list[dict[str, Any]], seed: int
) -> None:
    objectives = Objectives(seed, {"domain": ALL})
    cached, uncached = (
        plain(ObjectiveEncoder(encoder, objectives, 1 << 20).encode_samples(table(rows)))
        for encoder in ENCODERS[template.name]
    )
    assert cached == uncached
    drawn = draw_objectives(table(rows), objectives)
    draws = objectives.task_draws(np.array([row["sample_id"] for row in rows], np.uint64))
    for row, objective, draw, (ids, start, _) in zip(rows, drawn, draws, cached, strict=True):
        if objective == Objective.NEXT_ITEM:
            continue
        others = [c for i, c in enumerate(row["candidates"]) if i != row["target"]]
        task = derive_task(objective, row["history"], others, draw, TITLES.__getitem__)
        shown = [MASK if item == MASK_ITEM else TITLES[item] for item in task.shown]
        prompt = template.render_task(objective, shown)
        answer = ", ".join(TITLES[item] for item in task.answers)
        whole = TOKENIZER(f"{prompt} {answer}", add_special_tokens=False)["input_ids"]
        assert ids == [*PREFIX, *whole, TOKENIZER.eos_token_id]
        own = TOKENIZER(prompt, add_special_tokens=False)["input_ids"]
        assert start == len(PREFIX) + len(own)


@given(ROWS, st.integers(0, 3))
def test_a_sample_is_the_same_in_every_batch(rows: list[dict[str, Any]], seed: int) -> None:
    encoder = ObjectiveEncoder(CACHED, Objectives(seed, {"domain": ALL, "mixed": ALL}), 1 << 20)
    together = plain(encoder.encode_samples(table(rows)))
    alone = [plain(encoder.encode_samples(table([row])))[0] for row in rows]
    assert together == alone


@given(ROWS)
def test_the_default_and_the_next_item_alone_are_the_prompts_of_table_1(
    rows: list[dict[str, Any]],
) -> None:
    expected = plain(CACHED.encode_samples(table(rows)))
    for objectives in (NEXT_ITEM_ONLY, Objectives(0, {"domain": {"next_item": 2.0}})):
        encoder = ObjectiveEncoder(CACHED, objectives, 1 << 20)
        assert plain(encoder.encode_samples(table(rows))) == expected
        assert encoder.shortest_task_lengths(table(rows)) == {}


@given(
    st.sampled_from(TASKS),
    st.lists(ITEMS, min_size=MIN_TITLES, max_size=8),
    st.integers(0, 99),
    st.integers(20, 70),
)
def test_histories_are_cut_to_fit_and_the_answer_is_not(
    objective: Objective, history: list[int], sample_id: int, limit: int
) -> None:
    objectives = Objectives(0, {"mixed": {objective: 1}})

    def encode(items: list[int], limit: int) -> tuple[list[int], int, int]:
        row = {"sample_id": sample_id, "source": "mixed", "candidates": [7, 8], "target": 0}
        encoder = ObjectiveEncoder(CACHED, objectives, limit)
        return plain(encoder.encode_samples(table([{**row, "history": items}])))[0]

    whole = [encode(history[cut:], 1 << 20) for cut in range(len(history) - MIN_TITLES + 1)]
    fitting = [cut for cut, (ids, *_) in enumerate(whole) if len(ids) <= limit]
    if fitting:
        assert encode(history, limit) == (*whole[fitting[0]][:2], fitting[0])
    else:
        shortest = len(whole[-1][0])
        with pytest.raises(DataError, match=f"{objective} takes {shortest} .* with 2 titles"):
            encode(history, limit)
