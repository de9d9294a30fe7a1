"""The flash kernel's call. Its numbers are checked on a GPU by benchmarks/gpu.py."""

import pytest
import torch

from cprec.model.kernels import flash_attention


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


def test_the_newest_kernel_that_is_installed_and_works_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    active: list[str] = []

    def activate(name: str) -> None:
        if name != "FA4":
            raise ModuleNotFoundError(name)
        active.append(name)

    def fail(device: torch.device) -> None:
        raise TypeError("a version that torch does not know")

    def name_on(capability: tuple[int, int]) -> str:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        flash_attention.kernel_name.cache_clear()
        return flash_attention.kernel_name()

    monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", activate)
    monkeypatch.setattr("torch.nn.attention.restore_flash_attention_impl", active.clear)
    monkeypatch.setattr(flash_attention, "_run_once", lambda device: None)
    assert (name_on((8, 0)), active) == ("FlashAttention 2", [])
    assert (name_on((9, 0)), active) == ("FlashAttention 4", ["FA4"])

    monkeypatch.setattr(flash_attention, "_run_once", fail)
    assert (name_on((9, 0)), active) == ("FlashAttention 2", [])
    flash_attention.kernel_name.cache_clear()
