"""AdamW in flat buffers is AdamW, in few kernels, and its state goes out and in whole."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cprec.model.training_state import ADAM_MOMENTS
from cprec.train.device import single_process_group
from cprec.train.flat_adam import FlatAdam

LR = 1e-2
DECAY = 0.1


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with single_process_group("gloo"):
        yield


def network(layers: int = 3) -> torch.nn.Sequential:
    """Returns layers of odd sizes, the first of which is frozen."""
    torch.manual_seed(0)
    built = torch.nn.Sequential(*[torch.nn.Linear(7, 7) for _ in range(layers)])
    built[0].requires_grad_(False)
    return built


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def flat(model: torch.nn.Module, dtype: torch.dtype = torch.float32, clip: float = 0.0) -> FlatAdam:
    """Returns the optimizer; biases have weight decay."""
    parameters = trained(model)
    decay = {name: DECAY * name.endswith("bias") for name in parameters}
    return FlatAdam(model, parameters, decay, 0.99, clip, dtype)


def loss(model: torch.nn.Module, step: int) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(step)).to(dtype)
    output: torch.Tensor = model(rows)
    return output.float().square().sum()


def take_steps(adam: FlatAdam, first: int, stop: int) -> list[float]:
    """Takes steps of two passes each; returns the norms of their gradients."""
    norms = []
    for step in range(first, stop):
        for part in range(2):
            adam.backward(loss(adam.module, 2 * step + part), 10)
        norms.append(adam.step(LR))
    return norms


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_it_is_adamw_with_clipping_and_weight_decay(clip: float) -> None:
    expected, actual = network(), network()
    parameters = trained(expected)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p], "weight_decay": DECAY * name.endswith("bias")}
            for name, p in parameters.items()
        ],
        lr=LR,
        betas=(0.9, 0.99),
    )
    norms = []
    for step in range(4):
        optimizer.zero_grad()
        for part in range(2):
            (loss(expected, 2 * step + part) / 10).backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in parameters.values() if p.grad is not None]
        norms.append(
            float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), clip or 1e9))
            if grads
            else 0.0
        )
        optimizer.step()

    assert take_steps(flat(actual, clip=clip), 0, 4) == pytest.approx(norms)
    for a, b in zip(expected.parameters(), actual.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_state_continues_bit_for_bit(dtype: torch.dtype) -> None:
    whole = flat(network(), dtype)
    take_steps(whole, 0, 2)
    state = copy.deepcopy(whole.gather_state(2))
    expected = take_steps(whole, 2, 4)

    resumed = flat(network(), dtype)
    resumed.restore_state(state)
    assert take_steps(resumed, 2, 4) == expected
    for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert state.steps == 2
    assert set(state.moments) == {"exp_avg", "exp_avg_sq"}


def test_a_state_goes_out_and_in_without_memory_that_no_plan_counts() -> None:
    """Moments that go on are parts of one buffer, and leave it on the CPU only."""
    adam = flat(network())
    take_steps(adam, 0, 2)
    state = adam.gather_state(2)
    restored = flat(network())
    restored.restore_state(state)
    moments = [
        restored._adam.state[group["params"][0]][name]
        for name in ADAM_MOMENTS
        for group in restored._adam.param_groups
    ]
    assert len(moments) == 4
    assert len({moment.untyped_storage().data_ptr() for moment in moments}) == 2


def test_before_the_first_step_there_are_weights_and_no_moments() -> None:
    adam = flat(network(), torch.bfloat16)
    state = adam.gather_state(0)
    assert state.moments == {}
    # The weights are those before they were rounded to bf16.
    for name, parameter in trained(network()).items():
        assert torch.equal(state.weights[name], parameter)
    adam.restore_state(state)
    assert take_steps(adam, 0, 1)[0] > 0


def test_in_bf16_small_updates_are_not_lost_in_rounding() -> None:
    """A weight of 1 in bf16 does not feel an update of 1e-4; the fp32 master weights do."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    adam = FlatAdam(model, trained(model), {"weight": 0.0}, 0.99, 0.0, torch.bfloat16)
    for _ in range(100):
        adam.backward(model(torch.ones(1, 1, dtype=torch.bfloat16)).float().sum(), 1)
        adam.step(1e-4)
    assert float(adam.gather_state(100).weights["weight"]) == pytest.approx(0.99, abs=1e-4)
    assert model.weight.item() < 0.995


def test_gradients_that_are_not_finite_change_no_weight() -> None:
    adam = flat(network())
    take_steps(adam, 0, 1)
    before = adam.gather_state(1)
    adam.backward(loss(adam.module, 0) * float("nan"), 1)
    assert adam.step(LR) == float("inf")
    after = adam.gather_state(1)
    for name, weight in before.weights.items():
        assert torch.equal(weight, after.weights[name])
    assert all(norm > 0 for norm in take_steps(adam, 1, 3))


def test_a_parameter_that_a_pass_does_not_use_keeps_its_sum() -> None:
    model = network()
    adam = flat(model, torch.bfloat16)
    rows = torch.ones(2, 7, dtype=torch.bfloat16)
    adam.backward(model(rows).float().sum(), 1)
    once = adam.step(0.0)
    adam.backward(model(rows).float().sum(), 1)
    adam.backward(0 * model.get_parameter("1.weight").float().sum(), 1)
    assert adam.step(0.0) == pytest.approx(once)


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_kernels_does_not_grow_with_the_number_of_matrices(
    dtype: torch.dtype,
) -> None:
    counts = []
    for layers in (3, 30):
        model = network(layers)
        adam = flat(model, dtype)
        gradients = [torch.ones_like(p) for p in adam.parameters.values()]
        views = ("view", "slice", "detach", "alias")
        with Kernels() as kernels:
            adam.add_gradients(gradients)
            adam.step(LR)
        counts.append(sum(not any(v in call for v in views) for call in kernels.calls))
    assert counts[0] == counts[1]
