"""The forward pass of training: from a micro-batch to the logits of its supervised tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

from cprec.model.kernels import attention
from cprec.model.layouts import strips
from cprec.stream.packing import MicroBatch


def supervised_logits(
    model: Callable[..., Any], batch: MicroBatch, device: torch.device
) -> torch.Tensor:
    """Returns the logits of the supervised tokens [N, vocabulary]; others are not computed.

    Args:
        model: The model, or an engine around it; for packed samples `attention.enable_packing` has
            been called on it.
        batch: The micro-batch.
        device: Device of the model.
    """

    def to_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    ids = to_device(batch.input_ids)
    if batch.bounds is None or batch.position_ids is None:  # padded
        mask = to_device(batch.supervised_mask)
        logits = model(input_ids=ids, logits_to_keep=mask, use_cache=False).logits
        # Few models do not know `logits_to_keep`, and return all.
        return cast(torch.Tensor, logits if logits.dim() == 2 else logits[mask])
    # Arguments that keep the samples of the row apart.
    if batch.visible is None:
        longest = int(np.diff(batch.bounds).max())
        arguments = attention.packed_arguments(to_device(batch.bounds), longest)
    else:
        arguments = strips.strip_arguments(
            batch.bounds.tolist(),
            [to_device(indices) for indices in batch.visible],
            int(batch.position_ids.max()) + 1,
        )
    logits = model(
        input_ids=ids,
        position_ids=to_device(batch.position_ids),
        # Indices, not a mask: for a mask the CPU would have to ask the device for the count.
        logits_to_keep=to_device(np.flatnonzero(batch.supervised_mask[0])),
        use_cache=False,
        **arguments,
    ).logits[0]
    return cast(torch.Tensor, logits)


@contextmanager
def uncompiled(model: torch.nn.Module) -> Iterator[None]:
    """Lets a model run uncompiled: it was compiled for the shapes of training, not for others."""
    if all(module._compiled_call_impl is None for module in model.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
