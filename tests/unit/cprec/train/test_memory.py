"""The memory plan: what the recipe leaves open fits the GPU by estimate, and the rest stays."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from cprec.config.sections.model import ModelSettings
from cprec.config.sections.pretraining import TrainSettings
from cprec.model import adapter
from cprec.train.memory import (
    MAX_PACK_TOKENS,
    PACK_TOKENS_STEP,
    SUPERVISED_FRACTION,
    USABLE_MEMORY,
    choose,
)
from cprec.train.memory_estimate import MemoryEstimate

GB = 1e9


@cache
def estimate_7b(kind: str, compiled: bool = False) -> MemoryEstimate:
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32)).bfloat16()
        settings = ModelSettings.model_validate(
            {"adapter": kind, "lora_rank": 8, "lora_dropout": 0.0}
        )
        return MemoryEstimate.from_model(adapter.attach(base, settings, 0), "bf16", compiled)


pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def test_lora_on_a_7b_is_not_recomputed_where_half_of_the_memory_is_free() -> None:
    settings = TrainSettings(zero_stage=0, pack_tokens=8192)
    assert not choose(estimate_7b("lora"), settings, 1, 141 * GB).recompute
    assert not choose(estimate_7b("lora", True), settings, 1, 80 * GB).recompute
    assert choose(estimate_7b("lora"), settings, 1, 40 * GB).recompute


def test_the_lowest_stage_that_fits_is_taken() -> None:
    settings = TrainSettings(zero_stage=None, pack_tokens=4096)
    assert choose(estimate_7b("lora"), settings, 1, 80 * GB).zero_stage == 0
    assert choose(estimate_7b("full"), settings, 1, 80 * GB).zero_stage == 3
    assert choose(estimate_7b("full"), settings, 8, 80 * GB).zero_stage == 1
    assert choose(estimate_7b("full"), settings, 2, 90 * GB).zero_stage == 2


def test_rows_are_as_long_as_memory_allows() -> None:
    for zero_stage in (0, 1):
        settings = TrainSettings(zero_stage=zero_stage)
        small, large, huge = (
            choose(estimate_7b("lora", True), settings, 1, memory * GB).pack_tokens
            for memory in (60, 141, 4000)
        )
        assert PACK_TOKENS_STEP <= small < large < huge == MAX_PACK_TOKENS


def test_the_longest_rows_leave_room_for_cuda_graphs_where_there_are_any() -> None:
    with_graphs, without = (
        choose(
            estimate_7b("lora", True), TrainSettings(zero_stage=0, cuda_graphs=graphs), 1, 141 * GB
        ).pack_tokens
        for graphs in ("auto", "never")
    )
    assert with_graphs < without <= 2.5 * with_graphs
    settings = TrainSettings(zero_stage=0, recompute="always")  # so there are none
    plain = settings.model_copy(update={"cuda_graphs": "never"})
    assert choose(estimate_7b("lora", True), settings, 1, 48 * GB) == choose(
        estimate_7b("lora", True), plain, 1, 48 * GB
    )


@given(
    st.sampled_from(["lora", "full"]),
    st.integers(1, 64),
    st.floats(20, 400),
    st.sampled_from([None, 0, 1, 2, 3]),
    st.sampled_from([None, 4096, 20_000]),
    st.sampled_from(["auto", "always", "never"]),
)
def test_what_is_chosen_fits_if_anything_does_and_what_is_given_stays(
    kind: str,
    world_size: int,
    gigabytes: float,
    zero_stage: int | None,
    pack_tokens: int | None,
    recompute: str,
) -> None:
    estimate = estimate_7b(kind)
    settings = TrainSettings(
        zero_stage=zero_stage,
        pack_tokens=pack_tokens,
        recompute=recompute,  # type: ignore[arg-type]
    )
    plan = choose(estimate, settings, world_size, gigabytes * GB)
    if zero_stage is not None:
        assert plan.zero_stage == zero_stage
    if recompute != "auto":
        assert plan.recompute == (recompute == "always")
    if pack_tokens is not None:
        assert plan.pack_tokens == pack_tokens

    def fits(stage: int, recomputes: bool, tokens: int) -> bool:
        supervised_tokens = int(tokens * SUPERVISED_FRACTION)
        peak = estimate.peak_bytes(stage, world_size, recomputes, tokens, supervised_tokens)
        return peak <= USABLE_MEMORY * gigabytes * GB

    chosen = fits(plan.zero_stage, plan.recompute, plan.pack_tokens)
    stages = range(4) if zero_stage is None else [zero_stage]
    shortest = pack_tokens or PACK_TOKENS_STEP
    possible = any(fits(stage, recompute != "never", shortest) for stage in stages)
    assert chosen == possible
    # Nothing is recomputed, and no row is short, for nothing.
    if plan.recompute and recompute == "auto":
        assert not fits(plan.zero_stage, False, shortest)
    if pack_tokens is None and plan.pack_tokens < MAX_PACK_TOKENS and plan.zero_stage:
        assert not fits(plan.zero_stage, plan.recompute, plan.pack_tokens + PACK_TOKENS_STEP)
    # The gradients of rows that are all supervised, as windows of text are, need more.
    text = choose(estimate, settings, world_size, gigabytes * GB, supervised_fraction=1.0)
    if text.zero_stage == plan.zero_stage and text.recompute == plan.recompute:
        assert text.pack_tokens <= plan.pack_tokens
