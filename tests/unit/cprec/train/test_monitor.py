"""The text that is measured while training: dealt over the workers, every token once, in passes that all of them make."""

import pytest

from cluster.errors import RecipeError
from cprec.evaluate import perplexity
from cprec.model.tiny import train_tokenizer
from cprec.stream.packing import Cut
from cprec.tracking.progress import line
from cprec.train.monitor import MOST_TOKENS, Monitor

TOKENIZER = train_tokenizer(["oak lamp", "steel mug"], 300)
TEXT = (
    "Rain fell on the hills, and the river rose. By noon the bridge was gone; by night so was the road. "
    * 9
)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "cut",
    [Cut(packed=True, size=150), Cut(packed=True, size=20, fill=True), Cut(packed=False, size=4)],
)
def test_every_token_counts_once_over_all_workers(world: int, cut: Cut) -> None:
    ids = TOKENIZER(TEXT, add_special_tokens=False)["input_ids"]
    monitors = [Monitor.of(TEXT, TOKENIZER, 64, cut, rank, world) for rank in range(world)]
    assert {m.tokens for m in monitors} == {len(ids)}
    assert sorted(i for m in monitors for part in m.parts for i in part.targets.tolist()) == sorted(
        ids
    )
    assert len({len(m.parts) for m in monitors}) == 1


def test_a_long_text_is_measured_in_part() -> None:
    assert (
        Monitor.of(TEXT * 60, TOKENIZER, 512, Cut(packed=True, size=2048), 0, 2).tokens
        == MOST_TOKENS
    )


def test_a_text_without_words_is_refused() -> None:
    with pytest.raises(RecipeError, match="0 token"):
        Monitor.of("", TOKENIZER, 64, Cut(packed=True, size=64), 0, 1)


def test_a_model_that_is_lost_still_has_a_number() -> None:
    assert 1e300 < perplexity.of(float("inf"), 3) < float("inf")
    assert perplexity.of(0.0, 3) == 1.0


def test_the_live_line_shows_the_last_one() -> None:
    row = {
        "phase": "stable", "samples": 32, "batch_samples": 32, "lr": 1e-3, "loss": 1.5, "tokens": 900, "tflops": 0.1, "memory_gb": 1.0,
        "step_s": 0.5, "data_wait_s": 0.0,
    }  # fmt: skip
    assert "loss 1.5000  text 61.53  " in line([row], 640, 61.5349)
    assert "text" not in line([row], 640)
