"""The flash kernel's call. Its numbers are checked on a GPU by benchmarks/gpu.py."""

import types
from typing import Any

import pytest
import torch

from cprec.model.kernels import flash_attention, flash_attention_4


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 3), (False, None)])
def test_torch_takes_the_call_and_returns_the_shapes_that_are_promised(
    heads: int, key_heads: int, causal: bool, window: int | None
) -> None:
    """Tensors of the device meta go through torch's own checks of the call."""
    query = torch.empty(10, heads, 8, dtype=torch.bfloat16, device="meta")
    key = torch.empty(14, key_heads, 8, dtype=torch.bfloat16, device="meta")
    query_bounds = torch.empty(4, dtype=torch.int32, device="meta")
    key_bounds = torch.empty(4, dtype=torch.int32, device="meta")

    out, log_sum_exp = flash_attention.attend_sequences(
        query, key, key, query_bounds, key_bounds, 10, 14, None, causal, window
    )

    assert out.shape == query.shape
    assert log_sum_exp.shape == (heads, 10)
    assert log_sum_exp.dtype == torch.float32


def test_the_newest_kernel_that_is_installed_and_right_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    active: list[str] = []
    factors = {"FlashAttention 2": 1.0, "FlashAttention 4": 1.001}

    def activate(name: str) -> None:
        if name not in factors:
            raise ModuleNotFoundError(name)
        active.append(name)

    def try_out(device: torch.device) -> list[torch.Tensor]:
        return [torch.arange(4.0) * factors[active[-1] if active else "FlashAttention 2"]]

    def name_on(capability: tuple[int, int]) -> str:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        flash_attention.kernel_name.cache_clear()
        return flash_attention.kernel_name()

    monkeypatch.setattr(flash_attention, "_activate", activate)
    monkeypatch.setattr(flash_attention, "_deactivate", active.remove)
    monkeypatch.setattr(flash_attention, "_try_out", try_out)
    assert (name_on((8, 0)), active) == ("FlashAttention 2", [])
    assert (name_on((9, 0)), active) == ("FlashAttention 4", ["FlashAttention 4"])

    active.clear()
    for wrong in (1.1, float("nan")):
        factors["FlashAttention 4"] = wrong
        assert (name_on((9, 0)), active) == ("FlashAttention 2", [])
    flash_attention.kernel_name.cache_clear()


@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_4_is_called_with_what_it_needs_and_has_gradients(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """The package needs a GPU; in its place stand functions that look at the call."""
    calls: list[dict[str, Any]] = []

    def forward(*tensors: torch.Tensor, **others: Any) -> None:
        calls.append(others)
        others["out"].fill_(2)
        others["lse"].fill_(3)

    def backward(*tensors: torch.Tensor, **others: Any) -> None:
        calls.append(others)
        assert [tuple(tensor.shape) for tensor in tensors] == [
            *[(10, 4, 8), (14, 2, 8), (14, 2, 8)],
            *[(10, 4, 8), (10, 4, 8), (4, 10)],
        ]
        for number, name in enumerate(("dq", "dk", "dv")):
            others[name].fill_(number)

    interface = types.SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=backward)
    monkeypatch.setattr(flash_attention_4, "_interface", interface)
    monkeypatch.setattr(flash_attention, "_varlen", flash_attention_4.attend_sequences)
    query = torch.ones(10, 4, 8, requires_grad=True)
    key, value = (torch.ones(14, 2, 8, requires_grad=True) for _ in range(2))
    bounds = torch.tensor([0, 10], dtype=torch.int32)

    out, log_sum_exp = flash_attention.attend_sequences(
        query, key, value, bounds, bounds, 10, 14, window=window
    )
    out.sum().backward()  # type: ignore[no-untyped-call]

    assert not log_sum_exp.requires_grad
    assert [x.grad.mean().item() for x in (query, key, value) if x.grad is not None] == [0, 1, 2]
    for call in calls:
        assert call["softmax_scale"] == pytest.approx(8**-0.5)
        assert (call["max_seqlen_q"], call["max_seqlen_k"]) == (10, 14)
        if window is None:
            assert call["causal"]
        else:
            assert (call["window_size_left"], call["window_size_right"]) == (2, 0)
