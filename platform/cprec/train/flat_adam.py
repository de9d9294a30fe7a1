"""AdamW on every worker for all trained weights (ZeRO 0), in flat buffers.

Weights, moments and gradients of all matrices lie in one fp32 buffer each. So a pass, a step and
its collective take a handful of kernels, however many matrices are trained: LoRA trains hundreds of
small ones. In bf16 the model computes with a copy of the weights, which is one buffer too.

The sum of the gradients is kept in fp32, also where the model computes in bf16.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from cprec.model.training_state import ADAM_MOMENTS, TrainingState

ALIGNMENT = 64
"""Elements to whose multiple a matrix's place in a buffer is rounded up, for fast kernels."""


class FlatAdam:
    """AdamW over the trained parameters of a model that every worker holds whole.

    Attributes:
        module: The model; call it for a forward pass.
        device: Device of the model.
        parameters: The trained parameters by name, in the order of the buffers.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Mapping[str, torch.nn.Parameter],
        weight_decay: Mapping[str, float],
        beta2: float,
        max_grad_norm: float,
        dtype: torch.dtype,
    ) -> None:
        """Moves the trained parameters into flat buffers.

        Args:
            model: The model, on its device.
            parameters: The trained parameters by name.
            weight_decay: Weight decay of each of them, by name.
            beta2: Adam's decay of the second moment.
            max_grad_norm: Norm to which gradients are clipped; 0 for no clipping.
            dtype: Number format in which the model computes.
        """
        self.module = model
        self.parameters = dict(sorted(parameters.items(), key=lambda item: weight_decay[item[0]]))
        self.device = next(model.parameters()).device
        self._max_grad_norm = max_grad_norm
        self._places, size = _lay_out(self.parameters)
        self._weights = torch.zeros(size, device=self.device)
        for view, parameter in zip(self._views(self._weights), self._trained, strict=True):
            view.copy_(parameter.data)
        dist.broadcast(self._weights, 0)
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.dtype.itemsize > 1:  # not those in FP8
                parameter.data = parameter.data.to(dtype)
        # What the model computes with: the weights themselves, or their copy.
        self._computed = self._weights if dtype == torch.float32 else self._weights.to(dtype)
        for view, parameter in zip(self._views(self._computed), self._trained, strict=True):
            parameter.data = view
        self._gradients = torch.zeros_like(self._weights)
        # Gradients of one pass, where they are not of the type of their sum.
        self._pass_gradients = None if dtype == torch.float32 else torch.zeros_like(self._computed)
        self._gradient_views = self._views(
            self._gradients if self._pass_gradients is None else self._pass_gradients
        )
        self._adam = torch.optim.AdamW(
            [
                {"params": [torch.nn.Parameter(self._weights[start:stop])], "weight_decay": decay}
                for decay, start, stop in self._decay_groups(weight_decay)
            ],
            lr=0.0,
            betas=(0.9, beta2),
            fused=self.device.type == "cuda",
        )
        for group in self._adam.param_groups:
            (weights,) = group["params"]
            start = weights.storage_offset()
            weights.grad = self._gradients[start : start + weights.numel()]

    @property
    def _trained(self) -> list[torch.nn.Parameter]:
        return list(self.parameters.values())

    def _views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """Returns the part of a buffer that belongs to each parameter, in its shape."""
        return [
            buffer[start : start + parameter.numel()].view(parameter.shape)
            for start, parameter in zip(self._places, self._trained, strict=True)
        ]

    def _decay_groups(self, weight_decay: Mapping[str, float]) -> list[tuple[float, int, int]]:
        """Returns the parts of a buffer that have one weight decay: (decay, start, stop)."""
        decays = [weight_decay[name] for name in self.parameters]
        starts = [
            place
            for number, place in enumerate(self._places)
            if not number or decays[number] != decays[number - 1]
        ]
        distinct = list(dict.fromkeys(decays))
        return list(zip(distinct, starts, [*starts[1:], len(self._weights)], strict=True))

    def backward(self, loss_sum: torch.Tensor, supervised_tokens: int) -> None:
        """Adds the gradients of a pass to their sum.

        Args:
            loss_sum: Summed loss of the pass.
            supervised_tokens: Supervised tokens of the global batch, over all workers.
        """
        self.differentiate(loss_sum / supervised_tokens)

    def differentiate(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss to their sum."""
        # The pass hands over its own tensors, without a copy.
        self.add_gradients(torch.autograd.grad(loss, self._trained, allow_unused=True))

    def add_gradients(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Adds gradients of all parameters, in the order of `parameters`, to their sum.

        Args:
            gradients: The gradients; None for a parameter that the pass did not use.
        """
        used = [
            (view, gradient)
            for view, gradient in zip(self._gradient_views, gradients, strict=True)
            if gradient is not None
        ]
        if not used:
            return
        views, present = (list(tensors) for tensors in zip(*used, strict=True))
        if self._pass_gradients is None:
            torch._foreach_add_(views, present)
            return
        if len(present) < len(gradients):
            self._pass_gradients.zero_()
        torch._foreach_copy_(views, present)
        self._gradients.add_(self._pass_gradients)

    def drop_gradients(self) -> None:
        """Forgets the gradients of the passes since the last step."""
        self._gradients.zero_()

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Sums the gradients over the workers, and updates the weights. Collective.

        Args:
            lr: Learning rate.

        Returns:
            Norm of the gradients before clipping; inf if it is not finite: then no weight has
            changed.
        """
        dist.all_reduce(self._gradients)
        grad_norm = float(torch.linalg.vector_norm(self._gradients))
        if math.isfinite(grad_norm):
            if 0 < self._max_grad_norm < grad_norm:
                self._gradients.mul_(self._max_grad_norm / (grad_norm + 1e-6))
            for group in self._adam.param_groups:
                group["lr"] = lr
            self._adam.step()
            if self._computed is not self._weights:
                self._computed.copy_(self._weights)
        self.drop_gradients()
        return grad_norm if math.isfinite(grad_norm) else math.inf

    def gather_state(self, steps: int) -> TrainingState:
        """Returns copies of the weights and of Adam's moments by parameter name, on the CPU.

        Not collective: every worker holds all of them.

        Args:
            steps: Steps taken; before the first one Adam has no moments.
        """
        moments = {name: self._by_name(self._moment(name)) for name in ADAM_MOMENTS if steps}
        return TrainingState(self._by_name(self._weights), moments, steps)

    def _by_name(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns a copy of each parameter's part of a buffer, by name, on the CPU."""
        return {
            name: view.clone()
            for name, view in zip(self.parameters, self._views(buffer.cpu()), strict=True)
        }

    def _moment(self, name: str) -> torch.Tensor:
        """Returns one of Adam's moments as one buffer on the CPU, in the order of the parameters.

        Not on the device, where the plan of memory has no room for another buffer.
        """
        moments = [self._adam.state[group["params"][0]][name] for group in self._adam.param_groups]
        return torch.cat([moment.cpu() for moment in moments])

    @torch.no_grad()
    def restore_state(self, state: TrainingState) -> None:
        """Continues from a gathered state."""
        self._fill(self._weights, state.weights)
        if self._computed is not self._weights:
            self._computed.copy_(self._weights)
        if not state.moments:
            return
        buffers = {}
        for moment in ADAM_MOMENTS:
            buffers[moment] = torch.zeros_like(self._weights)
            self._fill(buffers[moment], state.moments[moment])
        for group in self._adam.param_groups:
            (weights,) = group["params"]
            part = slice(weights.storage_offset(), weights.storage_offset() + weights.numel())
            # A fused step counts on the device.
            counter = torch.tensor(
                float(state.steps), device=self.device if group["fused"] else "cpu"
            )
            self._adam.state[weights] = {
                "step": counter,
                **{name: buffer[part] for name, buffer in buffers.items()},
            }

    def _fill(self, buffer: torch.Tensor, values: Mapping[str, torch.Tensor]) -> None:
        """Copies values by parameter name into a buffer."""
        for name, view in zip(self.parameters, self._views(buffer), strict=True):
            view.copy_(values[name])

    def close(self) -> None:
        """Releases nothing: the buffers go with the object."""


def _lay_out(parameters: Mapping[str, torch.nn.Parameter]) -> tuple[list[int], int]:
    """Returns the first element of each parameter in a buffer, and the elements of the buffer."""
    places, size = [], 0
    for parameter in parameters.values():
        places.append(size)
        size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
    return places, size
