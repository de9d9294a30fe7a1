"""One pass over all candidates gives each candidate the score that it has alone."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from cprec.evaluation.candidate_scoring import encode_query, score_samples
from tests.models import llama

END = 1


class CharacterEncoder:
    """Encodes titles with one token per character."""

    def __init__(self, titles: Sequence[str]) -> None:
        self.titles = titles

    def encode_prompt(
        self, history: Sequence[int], candidates: Sequence[int], reserved_tokens: int
    ) -> tuple[list[int], int]:
        shown = [*(self.titles[i] for i in history), ">", *(self.titles[i] for i in candidates)]
        return [2 + ord(c) % 60 for c in "|".join(shown)], 0

    def encode_answer(self, item: int) -> list[int]:
        return [*(2 + ord(c) % 60 for c in self.titles[item]), END]


def tiny(attention: str, adapted: bool) -> PreTrainedModel:
    model: torch.nn.Module = llama(64, spread=8, attn_implementation=attention)
    if adapted:
        model = get_peft_model(
            cast(PreTrainedModel, model),
            LoraConfig(
                r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
            ),
        )
    return cast(PreTrainedModel, model.train(False))


@torch.inference_mode()
def score_alone(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    return float(
        logits.log_softmax(-1)[
            torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1), torch.tensor(answer)
        ].sum()
    )


@pytest.fixture(scope="module")
def samples_and_titles() -> tuple[pa.Table, list[str]]:
    rng = np.random.default_rng(0)
    titles = ["".join(rng.choice(list("abcdefgh "), rng.integers(1, 12))) for _ in range(50)]
    rows = range(4)
    samples = pa.table(
        {
            "history": [rng.integers(0, 50, rng.integers(1, 11)).tolist() for _ in rows],
            "candidates": [rng.choice(50, 20, replace=False).tolist() for _ in rows],
        }
    )
    return samples, titles


# PEFT calls transformers by a deprecated name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("attention", "adapted"), [("sdpa", False), ("eager", False), ("sdpa", True)]
)
def test_one_pass_equals_each_candidate_alone(
    samples_and_titles: tuple[pa.Table, list[str]], attention: str, adapted: bool
) -> None:
    samples, titles = samples_and_titles
    model, encoder = tiny(attention, adapted), CharacterEncoder(titles)
    scores = score_samples(model, encoder, samples, batch_size=3)
    for row, sample in enumerate(samples.to_pylist()):
        q = encode_query(encoder, sample["history"], sample["candidates"])
        expected = [score_alone(model, q.prompt, answer) for answer in q.answers]
        assert np.abs(scores[row] - expected).max() <= 1e-4
    assert np.ptp(scores) > 1


def test_scores_do_not_depend_on_the_batch(samples_and_titles: tuple[pa.Table, list[str]]) -> None:
    samples, titles = samples_and_titles
    model = tiny("sdpa", False)
    one_by_one, all_at_once = (
        score_samples(model, CharacterEncoder(titles), samples, batch_size)
        for batch_size in (1, 16)
    )
    assert np.abs(one_by_one - all_at_once).max() <= 1e-4


def test_no_samples_no_scores(samples_and_titles: tuple[pa.Table, list[str]]) -> None:
    samples, titles = samples_and_titles
    scores = score_samples(
        tiny("sdpa", False), CharacterEncoder(titles), samples.slice(0, 0), batch_size=4
    )
    assert scores.shape[0] == 0
