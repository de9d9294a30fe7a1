"""DeepSpeed's configuration, and the memory that it keeps, at every ZeRO stage."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.deepspeed_presets import REDUCE_BUCKET_ELEMENTS, ModelState, build_config

STATES = st.builds(
    ModelState,
    frozen_parameters=st.integers(0, 10**10),
    trained_parameters=st.integers(1, 10**10),
    buffer_bytes=st.integers(0, 10**10),
    element_bytes=st.sampled_from([2, 4]),
)


@given(STATES, st.integers(2, 64))
def test_each_stage_partitions_one_more_part_of_the_state(
    state: ModelState, world_size: int
) -> None:
    stages = [state.bytes_by_kind(stage, world_size) for stage in range(4)]
    assert stages[1]["optimizer"] == 12 * (state.trained_parameters / world_size)
    assert stages[2]["gradients"] < stages[1]["gradients"]
    assert [stage["optimizer"] for stage in stages[2:]] == [stages[1]["optimizer"]] * 2
    assert [stage["weights"] for stage in stages[:3]] == [stages[0]["weights"]] * 3
    assert {stage["buffers"] for stage in stages} == {state.buffer_bytes}


def test_a_trained_parameter_takes_20_bytes_in_bf16_and_16_in_fp32() -> None:
    for element_bytes, expected in ((2, 20), (4, 16)):
        state = ModelState(0, 1000, 0, element_bytes)
        assert sum(state.bytes_by_kind(0, 1).values()) == 1000 * expected
        with_zero = sum(state.bytes_by_kind(1, 1).values())
        assert with_zero - REDUCE_BUCKET_ELEMENTS * element_bytes == 1000 * (2 * element_bytes + 12)


def test_every_stage_has_its_configuration() -> None:
    for stage in range(4):
        config = build_config(stage, 2, "bf16", 1.0)
        assert config["zero_optimization"]["stage"] == stage
    assert build_config(1, 2, "fp32", 1.0)["bf16"] == {"enabled": False}
