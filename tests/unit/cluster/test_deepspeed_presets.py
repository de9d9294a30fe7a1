"""The estimate that chooses ZeRO stage and recomputation: more is needed for more, and the known cases come out right."""

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
    world: int, tokens: int, gigabytes: float
) -> None:
    for shape in (LORA_7B, FULL_7B):
        less, more = (
            choose_zero_stage(shape, world, tokens, n * GB) for n in (gigabytes, 2 * gigabytes)
        )
        assert more <= less
        assert shape.model_state_bytes(less, world) <= shape.model_state_bytes(0, world)
        if needs_recompute(shape, 3, world, tokens, 2 * gigabytes * GB):
            assert needs_recompute(shape, 3, world, tokens, gigabytes * GB)
    assert shape.activation_bytes(tokens, recompute=True) < shape.activation_bytes(
        tokens, recompute=False
    )


def test_every_stage_has_its_configuration() -> None:
    assert [build_config(s, 2, "bf16", 1.0)["zero_optimization"]["stage"] for s in range(4)] == [
        0,
        1,
        2,
        3,
    ]
    assert build_config(1, 2, "fp32", 1.0)["bf16"] == {"enabled": False}
