"""The measured text is split among the workers: every token once, in equally many passes."""

import pytest

from cluster.errors import RecipeError
from cprec.encode.prompt import TABLE1
from cprec.evaluation import perplexity
from cprec.model.tiny import train_tokenizer
from cprec.stream.packing import MicroBatchSpec
from cprec.tracking.progress import format_progress
from cprec.train.perplexity_monitor import MAX_MEASURED_TOKENS, PerplexityMonitor
from tests.records import trace_row

TOKENIZER = train_tokenizer(["oak lamp", "steel mug"], 300, TABLE1)
SENTENCES = (
    "Rain fell on the hills, and the river rose. "
    "By noon the bridge was gone; by night so was the road. "
)
TEXT = SENTENCES * 9


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "spec",
    [
        MicroBatchSpec(packed=True, size=150),
        MicroBatchSpec(packed=True, size=20, filled=True),
        MicroBatchSpec(packed=False, size=4),
    ],
)
def test_every_token_counts_once_over_all_workers(world_size: int, spec: MicroBatchSpec) -> None:
    ids = TOKENIZER(TEXT, add_special_tokens=False)["input_ids"]
    monitors = [
        PerplexityMonitor.from_text(TEXT, TOKENIZER, 64, spec, rank, world_size)
        for rank in range(world_size)
    ]
    assert {m.num_tokens for m in monitors} == {len(ids)}
    assert sorted(
        token for m in monitors for batch in m.batches for token in batch.targets.tolist()
    ) == sorted(ids)
    assert len({len(m.batches) for m in monitors}) == 1


def test_a_long_text_is_measured_in_part() -> None:
    assert (
        PerplexityMonitor.from_text(
            TEXT * 60, TOKENIZER, 512, MicroBatchSpec(packed=True, size=2048), 0, 2
        ).num_tokens
        == MAX_MEASURED_TOKENS
    )


def test_a_text_without_words_is_refused() -> None:
    with pytest.raises(RecipeError, match="0 token"):
        PerplexityMonitor.from_text("", TOKENIZER, 64, MicroBatchSpec(packed=True, size=64), 0, 1)


def test_an_infinite_loss_still_has_a_finite_perplexity() -> None:
    assert 1e300 < perplexity.from_loss(float("inf"), 3) < float("inf")
    assert perplexity.from_loss(0.0, 3) == 1.0


def test_the_progress_line_shows_the_last_perplexity() -> None:
    row = trace_row(samples=32, batch_samples=32, loss=1.5, tokens=900, tflops=0.1)
    assert "loss 1.5000  text 61.53  " in format_progress([row], 640, 61.5349)
    assert "text" not in format_progress([row], 640)
