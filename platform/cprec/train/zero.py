"""AdamW with its state spread over the workers by DeepSpeed (ZeRO 1 to 3).

Trained parameters and Adam's moments are gathered and restored by name and whole. So a checkpoint
loads with any number of workers and any ZeRO stage. With the same number, on a CPU, the continued
run is bitwise the same. This relies on private parts of DeepSpeed, hence its exact pin.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cluster import deepspeed_presets as presets
from cluster.processes.imports import collector_at_rest
from cprec.model.training_state import ADAM_MOMENTS, TrainingState


class ZeroAdam:
    """AdamW of DeepSpeed, at ZeRO stage 1, 2 or 3.

    Attributes:
        module: DeepSpeed's engine around the model; call it for a forward pass.
        device: Device of this worker.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Mapping[str, torch.nn.Parameter],
        weight_decay: Mapping[str, float],
        beta2: float,
        max_grad_norm: float,
        precision: str,
        zero_stage: int,
        world_size: int,
    ) -> None:
        """Hands the model to DeepSpeed.

        Args:
            model: The model.
            parameters: The trained parameters by name.
            weight_decay: Weight decay of each of them, by name.
            beta2: Adam's decay of the second moment.
            max_grad_norm: Norm to which gradients are clipped; 0 for no clipping.
            precision: fp32 or bf16.
            zero_stage: 1, 2 or 3.
            world_size: Number of workers.
        """
        with collector_at_rest():
            import deepspeed
            from deepspeed.ops import __compatible_ops__

        # DeepSpeed would compile an extension for shared-memory collectives of inference, which
        # training never calls. That takes most of a minute on a new machine, and a process that is
        # killed meanwhile leaves a lock on which every later training waits silently.
        __compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self._parameters = parameters
        self._zero_stage = zero_stage
        self._world_size = world_size
        # Our own optimizer: DeepSpeed would compile an extension for one that its config names.
        # `step` sets the learning rate every time.
        optimizer = torch.optim.AdamW(
            _parameter_groups(parameters, weight_decay),
            lr=0.0,
            betas=(0.9, beta2),
            weight_decay=0.0,
            fused=torch.cuda.is_available(),
        )
        self.module, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=presets.build_config(zero_stage, world_size, precision, max_grad_norm),
            dist_init_required=False,
        )
        self.device: torch.device = self.module.device
        self._moments_linked = False

    def backward(self, loss_sum: torch.Tensor, supervised_tokens: int) -> None:
        """Adds the gradients of a pass to their sum.

        Args:
            loss_sum: Summed loss of the pass.
            supervised_tokens: Supervised tokens of the global batch, over all workers.
        """
        # DeepSpeed averages gradients over the workers; times their number that is a sum.
        self.module.backward(loss_sum * (self._world_size / supervised_tokens))

    def step(self, lr: float) -> float:
        """Sums the gradients over the workers, and updates the weights. Collective.

        Args:
            lr: Learning rate.

        Returns:
            Norm of the gradients before clipping; nan if the stage does not tell it.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self.module.step()
        if not self._moments_linked and self._zero_stage < 3:
            # DeepSpeed links the moments after the first group's first step, when the other groups
            # have none yet. Let it link them again.
            if len(self._optimizer.param_groups) > 1:
                self._optimizer._hp_optimizer_states_linked = False
                self._optimizer._lazy_init_hp_params_optimizer_state()
            self._moments_linked = True
        grad_norm = self.module.get_global_grad_norm()
        return float("nan") if grad_norm is None else float(grad_norm)

    def gather_state(self, steps: int) -> TrainingState:
        """Returns weights and moments by name and whole, on the CPU. Collective.

        Args:
            steps: Steps taken; before the first one Adam has no moments.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().float().cpu().clone()

        weights = {
            name: copy(safe_get_full_fp32_param(parameter))
            for name, parameter in self._parameters.items()
        }
        moments = {
            moment: {
                name: copy(safe_get_full_optimizer_state(parameter, moment))
                for name, parameter in self._parameters.items()
            }
            for moment in ADAM_MOMENTS
            if steps
        }
        return TrainingState(weights, moments, steps)

    def restore_state(self, state: TrainingState) -> None:
        """Continues from a gathered state. Collective."""
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if state.moments:
            self._create_moments(state.steps)
        for name, parameter in self._parameters.items():
            safe_set_full_fp32_param(parameter, state.weights[name].to(self.device))
            for moment, tensors in state.moments.items():
                safe_set_full_optimizer_state(parameter, tensors[name].to(self.device), moment)
            # The forward pass uses a copy of its own, beside the fp32 master weights.
            if self._zero_stage == 3:
                with GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(state.weights[name])
            else:
                parameter.data.copy_(state.weights[name])

    def _create_moments(self, steps: int) -> None:
        """Creates Adam's moments, which Adam itself would only create at its first step."""
        # What the inner Adam updates: this worker's flat partitions.
        tensors: Sequence[torch.Tensor] = (
            self._optimizer.fp32_partitioned_groups_flat
            if self._zero_stage == 3
            else self._optimizer.single_partition_of_fp32_groups
        )
        for tensor in tensors:
            self._optimizer.optimizer.state[tensor] = {
                "step": torch.tensor(float(steps)),
                **{moment: torch.zeros_like(tensor) for moment in ADAM_MOMENTS},
            }
        if self._zero_stage < 3:
            self._optimizer._lazy_init_hp_params_optimizer_state()
            self._moments_linked = True

    def close(self) -> None:
        """Ends DeepSpeed's engine."""
        self.module.destroy()


def _parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter], weight_decay: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups parameters by weight decay, those without any first."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(weight_decay[name], []).append(parameter)
    return [{"params": groups[decay], "weight_decay": decay} for decay in sorted(groups)]
