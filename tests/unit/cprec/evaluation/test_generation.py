"""Generated answers: greedy, restricted to the candidates if asked, and counted by both rules."""

from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedModel

from cluster.errors import PlatformFault
from cprec.encode.prompt import TABLE1
from cprec.encode.title_encoding import UncachedPromptEncoder
from cprec.encode.tokens import TitleEncoder
from cprec.evaluation.answer_matching import Answer, match_exact, match_llara
from cprec.evaluation.candidate_scoring import score_samples
from cprec.evaluation.generation import MAX_LISTED, build_trie, generate_answers, greedy_decode
from cprec.evaluation.predictions import from_answers, from_bytes, to_bytes, to_metrics
from cprec.model import tiny
from tests.models import llama
from tests.tokenizers import KINDS

TITLES = [
    "red oak lamp",
    "red oak",
    "steel mug",
    "blue lamp",
    "blue oak lamp",
    "Acme mug",
    "Acme steel lamp",
    "glass mug",
]
TOKENIZER = tiny.train_tokenizer(TITLES * 3, 400, TABLE1)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    special = {
        f"{name}_token_id": getattr(TOKENIZER, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    return cast(PreTrainedModel, llama(len(TOKENIZER), spread=8, **special).eval())


def samples(rows: int = 6, candidates: int = 6) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "sample_id": pa.array(range(rows), pa.int64()),
            "user_id": [f"u{row}" for row in range(rows)],
            "history": [rng.integers(0, len(TITLES), 3).tolist() for _ in range(rows)],
            "candidates": [rng.permutation(len(TITLES))[:candidates].tolist() for _ in range(rows)],
            "target": pa.array(rng.integers(0, candidates, rows).astype(np.int8)),
        }
    )


def test_greedy_answers_equal_those_of_transformers(model: PreTrainedModel) -> None:
    prompts = [
        TOKENIZER(text)["input_ids"] for text in ("red oak", "blue lamp and a steel mug", "Acme")
    ]
    answers = greedy_decode(model, prompts, int(TOKENIZER.eos_token_id), 9)
    for prompt, ids in zip(prompts, answers, strict=True):
        generated = model.generate(  # type: ignore[operator]
            torch.tensor([prompt]), max_new_tokens=9, do_sample=False
        )
        whole = generated[0, len(prompt) :].tolist()
        until_end = (
            whole[: whole.index(TOKENIZER.eos_token_id)]
            if TOKENIZER.eos_token_id in whole
            else whole
        )
        assert ids == until_end


def test_constrained_answers_are_candidates_and_none_is_repeated(
    model: PreTrainedModel,
) -> None:
    rows = samples()
    encoder = UncachedPromptEncoder(TITLES, TitleEncoder(TOKENIZER, 512, TABLE1))
    answers = generate_answers(
        model, TOKENIZER, encoder, rows, TITLES, batch_size=4, constrained=True
    )
    table = from_answers(rows, answers)
    for ranking, candidates in zip(
        table["ranking"].to_pylist(), rows["candidates"].to_pylist(), strict=True
    ):
        assert len(set(ranking)) == MAX_LISTED
        assert set(ranking) <= set(candidates)
    assert to_metrics(table, "m", "A", "constrained")["valid_ratio"]["exact"] == 1.0


def test_free_answers_of_an_untrained_model_name_no_candidate(model: PreTrainedModel) -> None:
    rows = samples()
    answers = generate_answers(
        model,
        TOKENIZER,
        UncachedPromptEncoder(TITLES, TitleEncoder(TOKENIZER, 512, TABLE1)),
        rows,
        TITLES,
        batch_size=4,
        constrained=False,
        max_new_tokens=8,
    )
    assert all(len(given) == 1 for given in answers)
    result = to_metrics(from_answers(rows, answers), "m", "A", "generate")
    assert result["valid_ratio"]["exact"] == result["hr"]["5"] == 0.0
    assert result["hr1_of_valid"] is None or result["valid_ratio"]["llara"]


def test_a_trie_of_one_answer_leaves_no_choice_and_one_of_all_follows_likely_tokens(
    model: PreTrainedModel,
) -> None:
    encoder = UncachedPromptEncoder(TITLES, TitleEncoder(TOKENIZER, 512, TABLE1))
    prompt = encoder.encode_prompt([0, 1, 2], list(range(3, len(TITLES))), 20)[0]
    for item in range(len(TITLES)):
        trie = build_trie([encoder.encode_answer(item)])
        assert greedy_decode(model, [prompt], encoder.eos_token_id, 20, [trie]) == [
            encoder.encode_answer(item)[:-1]
        ]
    rows = samples()
    scores = score_samples(model, encoder, rows, batch_size=4)
    answers = generate_answers(
        model, TOKENIZER, encoder, rows, TITLES, batch_size=4, constrained=True
    )
    named = from_answers(rows, answers)["named_exact"].to_numpy()
    # Greedy decoding may miss the best whole answer, but it begins with likely tokens.
    ranks = (scores > np.take_along_axis(scores, named[:, None].astype(int), axis=1)).sum(axis=1)
    assert ranks.mean() < 2.5


@pytest.mark.parametrize(
    ("text", "by_exact", "by_llara"),
    [
        ("red oak lamp", 0, None),  # contains "red oak" too: lost by LLaRA's rule
        ("  Red   OAK ", 1, 1),
        ("steel mug.", None, 2),
        ("steel mug and blue lamp", None, None),
        ("a kettle", None, None),
        ("", None, None),
    ],
)
def test_a_text_names_a_candidate_by_two_rules(
    text: str, by_exact: int | None, by_llara: int | None
) -> None:
    assert (match_exact(text, TITLES[:4]), match_llara(text, TITLES[:4])) == (by_exact, by_llara)


@pytest.mark.parametrize("decoded", ["", " \n"])
def test_a_title_of_which_nothing_is_decoded_is_named_by_its_own_words_alone(decoded: str) -> None:
    titles, forms = ["日本語", "Lamp"], [decoded, "lamp"]
    for text, exact, llara in (
        ("", None, None),
        (" ", None, None),
        ("lamp", 1, 1),
        ("a lamp", None, 1),
        ("日本語", 0, 0),
        ("a kettle", None, None),
    ):
        assert (match_exact(text, titles, forms), match_llara(text, titles, forms)) == (
            exact,
            llara,
        )


def test_metrics_are_over_all_samples_and_computed_from_the_file() -> None:
    items = [2, 3, 5]

    def answer(text: str) -> Answer:
        shown = [TITLES[item] for item in items]
        exact, llara = match_exact(text, shown), match_llara(text, shown)
        return Answer(
            text,
            None if exact is None else items[exact],
            None if llara is None else items[llara],
        )

    rows = pa.table(
        {
            "sample_id": pa.array(range(4), pa.int64()),
            "user_id": list("abcd"),
            "history": [[1, 2, 3]] * 4,
            "candidates": [items] * 4,  # steel mug, blue lamp, Acme mug
            "target": pa.array([0, 1, 2, 0], pa.int8()),
        }
    )
    texts = [
        ["steel mug", "blue lamp"],
        ["steel mug", "Acme mug", "blue lamp"],
        ["the Acme mug"],
        ["nothing"],
    ]
    answers = [[answer(text) for text in given] for given in texts]
    result = to_metrics(from_bytes(to_bytes(from_answers(rows, answers))), "m", "A", "generate")
    assert result["hr"] == {"1": 0.25, "3": 0.5, "5": 0.5}
    assert result["ndcg"]["3"] == pytest.approx((1 + 0.5) / 4)
    assert result["valid_ratio"] == {"exact": 0.5, "llara": 0.75}
    assert result["hr1_of_valid"] == pytest.approx(2 / 3)


ODD_TITLES = [
    'Blue Lamp (2-Pack), 3.5" #1',
    "Ｌａｍｐ ½ price",
    "CAFÉ mug",
    "cafe mug",  # WordPiece gives it the tokens of the title before
    "don't panic",
    "日本 茶 🙂",
    "tea , green ( loose )",
    "</s> [SEP]",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_constrained_answer_names_a_candidate_whatever_it_is_decoded_to(
    kind: str, seed: int
) -> None:
    tokenizer = KINDS[kind](ODD_TITLES * 3)
    network = cast(PreTrainedModel, llama(len(tokenizer), seed=seed, spread=8).eval())
    encoder = UncachedPromptEncoder(ODD_TITLES, TitleEncoder(tokenizer, 1024, TABLE1))
    rows = samples(4)
    answers = generate_answers(
        network, tokenizer, encoder, rows, ODD_TITLES, batch_size=2, constrained=True
    )
    for given, candidates in zip(answers, rows["candidates"].to_pylist(), strict=True):
        named = [answer.exact for answer in given]
        assert len(set(named)) == MAX_LISTED
        assert set(named) <= set(candidates)
    metrics = to_metrics(from_answers(rows, answers), "m", "A", "constrained")
    assert metrics["valid_ratio"]["exact"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_free_answer_that_is_a_title_as_it_is_decoded_names_it(kind: str) -> None:
    tokenizer = KINDS[kind](ODD_TITLES * 3)
    encoder = TitleEncoder(tokenizer, 1024, TABLE1)
    ids = [encoder.encode_answer(title)[:-1] for title in ODD_TITLES]
    decoded = [str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in ids]
    for position, text in enumerate(decoded):
        named = match_exact(text, ODD_TITLES, decoded)
        if not text:  # all of it is unknown to the tokenizer
            assert named is None
            continue
        assert named is not None
        assert ids[named] == ids[position] or decoded[named] == text


def test_a_model_whose_logits_are_not_numbers_is_a_fault() -> None:
    network = llama(len(TOKENIZER)).eval()
    network.lm_head.weight.data.fill_(float("nan"))
    encoder = UncachedPromptEncoder(TITLES, TitleEncoder(TOKENIZER, 512, TABLE1))
    with pytest.raises(PlatformFault, match="NaN logits"):
        generate_answers(network, TOKENIZER, encoder, samples(1), TITLES, 1, constrained=True)
