"""A packed row gives every sample the logits and gradients that it has alone."""

from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from cprec.encode.tokens import EncodedSample
from cprec.model.kernels import attention
from cprec.stream.packing import MicroBatchSpec, collate
from tests.models import SHAPE, llama

VOCABULARY, END = 97, 0


def model(adapted: bool = False) -> PreTrainedModel:
    plain: torch.nn.Module = llama(VOCABULARY, spread=6)
    if adapted:
        config = LoraConfig(
            r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        plain = get_peft_model(cast(PreTrainedModel, plain), config)
    return cast(PreTrainedModel, plain)


PACKED = MicroBatchSpec(packed=True, size=128)


def samples() -> list[EncodedSample]:
    rng = np.random.default_rng(0)
    return [
        EncodedSample(rng.integers(1, VOCABULARY, n).astype(np.int32), int(rng.integers(1, n)), 0)
        for n in (31, 2, 17, 40, 5)
    ]


def packed_logits(network: PreTrainedModel, length: int = 1) -> torch.Tensor:
    batch = collate(samples(), PACKED, END, length)
    assert batch.bounds is not None
    arguments = attention.packed_arguments(
        torch.from_numpy(batch.bounds), int(np.diff(batch.bounds).max())
    )
    ids = torch.from_numpy(batch.input_ids)
    positions = torch.from_numpy(batch.position_ids)
    return cast(
        torch.Tensor,
        network(input_ids=ids, position_ids=positions, use_cache=False, **arguments).logits[0],
    )


def gradients(network: torch.nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad]))


# PEFT calls transformers by a deprecated name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("length", [1, 128])
@pytest.mark.parametrize("adapted", [False, True])
def test_logits_and_gradients_are_those_of_each_sample_alone(adapted: bool, length: int) -> None:
    alone, together = model(adapted), model(adapted)
    attention.enable_packing(together)
    logits = packed_logits(together, length)
    expected = torch.cat(
        [
            alone(input_ids=torch.from_numpy(s.ids.astype(np.int64))[None]).logits[0]
            for s in samples()
        ]
    )
    targets = torch.from_numpy(np.concatenate([s.ids for s in samples()]).astype(np.int64))
    losses = [F.cross_entropy(x[: len(targets) - 1], targets[1:]) for x in (logits, expected)]
    assert (logits[: len(targets)] - expected).abs().max() <= 1e-5 * expected.abs().max()
    for gradient, reference in zip(
        gradients(together, losses[0]), gradients(alone, losses[1]), strict=True
    ):
        assert (gradient - reference).abs().max() <= 1e-5 * max(1.0, float(reference.abs().max()))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_recomputed_activations_change_nothing() -> None:
    losses = []
    all_gradients = []
    for recomputed in (False, True):
        network = model(adapted=True)
        attention.enable_packing(network)
        if recomputed:
            network.train().activation_checkpointing_enable({"use_reentrant": False})
        losses.append(packed_logits(network).square().mean())
        all_gradients.append(gradients(network, losses[-1]))
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*all_gradients, strict=True))


def test_without_bounds_an_enabled_model_computes_what_it_did_before() -> None:
    plain, enabled = model(), model()
    attention.enable_packing(enabled)
    ids = torch.randint(1, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    for extra in ({}, {"attention_mask": mask}, {"use_cache": False}):
        assert torch.equal(
            plain(input_ids=ids, **extra).logits[:, -3:],
            enabled(input_ids=ids, **extra).logits[:, -3:],
        )
    generated = [
        network.generate(ids, max_new_tokens=5, do_sample=False)  # type: ignore[operator]
        for network in (plain, enabled)
    ]
    assert torch.equal(*generated)


def test_without_bounds_samples_see_each_other_when_there_is_a_cache() -> None:
    """transformers keeps samples apart by restarted positions, but only without a cache.

    If it ever does so with a cache too, the bounds are still right.
    """
    batch = collate(samples(), PACKED, END)
    ids = torch.from_numpy(batch.input_ids)
    positions = torch.from_numpy(batch.position_ids)
    expected = packed_logits_of_enabled()
    without_cache = model()(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    with_cache = model()(input_ids=ids, position_ids=positions, use_cache=True).logits[0]
    assert (without_cache - expected).abs().max() <= 1e-4
    assert (with_cache - expected).abs().max() > 0.1


def packed_logits_of_enabled() -> torch.Tensor:
    network = model()
    attention.enable_packing(network)
    return packed_logits(network)


def test_the_cache_does_not_matter_when_there_are_bounds() -> None:
    network = model()
    attention.enable_packing(network)
    batch = collate(samples(), PACKED, END)
    assert batch.bounds is not None
    arguments = attention.packed_arguments(torch.from_numpy(batch.bounds), 40)
    logits = network(
        input_ids=torch.from_numpy(batch.input_ids),
        position_ids=torch.from_numpy(batch.position_ids),
        use_cache=True,
        **arguments,
    ).logits[0]
    expected = packed_logits(network)
    assert (logits - expected).abs().max() <= 1e-5


def test_a_sliding_window_is_kept_within_each_sample() -> None:
    torch.manual_seed(0)
    network = MistralForCausalLM(MistralConfig(**SHAPE, vocab_size=VOCABULARY, sliding_window=8))
    expected = torch.cat(
        [
            network(input_ids=torch.from_numpy(s.ids.astype(np.int64))[None]).logits[0]
            for s in samples()
        ]
    )
    attention.enable_packing(network)
    logits = packed_logits(network)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
