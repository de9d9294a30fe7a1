"""The memory estimate behind ZeRO stage and recomputation: monotonic, and right in known cases."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.deepspeed_presets import ModelSize, build_config, choose_zero_stage, needs_recompute

GB = 1e9
LORA_7B = ModelSize(
    num_parameters=6_760_000_000,
    num_trainable=20_000_000,
    num_layers=32,
    hidden_size=4096,
    intermediate_size=11008,
    bytes_per_parameter=2,
)
FULL_7B = replace(LORA_7B, num_trainable=6_740_000_000)


def test_lora_on_7b_fits_one_large_gpu_as_it_is_and_full_training_does_not() -> None:
    assert choose_zero_stage(LORA_7B, 1, 4096, 80 * GB) == 0
    assert not needs_recompute(LORA_7B, 0, 1, 4096, 80 * GB)
    assert needs_recompute(LORA_7B, 0, 1, 4096, 40 * GB)
    assert choose_zero_stage(FULL_7B, 1, 4096, 80 * GB) == 3
    assert choose_zero_stage(FULL_7B, 8, 4096, 80 * GB) == 1
    assert choose_zero_stage(FULL_7B, 2, 4096, 80 * GB) == 2


@given(st.integers(1, 64), st.integers(64, 1 << 15), st.floats(1, 200))
def test_more_memory_never_needs_a_higher_stage_nor_recomputation(
    world_size: int, tokens: int, gigabytes: float
) -> None:
    for model_size in (LORA_7B, FULL_7B):
        stage = choose_zero_stage(model_size, world_size, tokens, gigabytes * GB)
        stage_with_more = choose_zero_stage(model_size, world_size, tokens, 2 * gigabytes * GB)
        assert stage_with_more <= stage
        assert model_size.model_state_bytes(stage, world_size) <= model_size.model_state_bytes(
            0, world_size
        )
        if needs_recompute(model_size, 3, world_size, tokens, 2 * gigabytes * GB):
            assert needs_recompute(model_size, 3, world_size, tokens, gigabytes * GB)
        assert model_size.activation_bytes(tokens, recompute=True) < model_size.activation_bytes(
            tokens, recompute=False
        )


def test_every_stage_has_its_configuration() -> None:
    for stage in range(4):
        config = build_config(stage, 2, "bf16", 1.0)
        assert config["zero_optimization"]["stage"] == stage
    assert build_config(1, 2, "fp32", 1.0)["bf16"] == {"enabled": False}
