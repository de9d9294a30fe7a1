"""DeepSpeed behind four verbs: step, gather, restore, close. Knows tensors and collectives; no Ray, no storage, no schedule.

The trained parameters and Adam's moments are gathered and restored *by name*, whole, so that a checkpoint loads at any number of workers and any
ZeRO stage; at the same number on a CPU the continued run is bitwise the same. This leans on private parts of DeepSpeed, hence its exact pin.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from cluster.deepspeed_presets import config
from cprec.model.adapter import trainable
from cprec.model.quiet import quiet
from cprec.recipe import TrainSettings
from cprec.stream.shares import MicroBatch

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class StepResult:
    """loss: mean over the supervised tokens of the global batch, before the update; grad_norm: before clipping, nan if the stage hides it."""

    loss: float
    grad_norm: float


@dataclass(frozen=True)
class State:
    """Trained parameters in fp32 and Adam's moments, by name and whole. Full on rank 0; other ranks may hold them too."""

    weights: dict[str, torch.Tensor]
    moments: dict[str, dict[str, torch.Tensor]]
    steps: int


class Engine:
    """A model in training, spread over the workers of the process group that is already there (or alone, without one)."""

    def __init__(self, model: torch.nn.Module, settings: TrainSettings, precision: str, decay: Mapping[str, float] | None = None) -> None:
        """decay: weight decay of the parameters whose names start so; the others have none."""
        quiet()
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self.model = model
        self.world = dist.get_world_size()
        self.stage = settings.zero_stage
        self.parameters = trainable(model)
        # A client optimizer: one that is named in the config compiles an extension first. The rate is set at every step.
        optimizer = torch.optim.AdamW(_groups(self.parameters, decay or {}), lr=0.0, betas=(0.9, settings.adam_beta2), weight_decay=0.0)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=config(settings.zero_stage, self.world, precision, settings.gradient_clipping),
            dist_init_required=False,
        )
        self.device = self._engine.device
        self.steps = 0

    def step(self, micro_batches: Sequence[MicroBatch], supervised: int, rate: float, seed: int) -> StepResult:
        """One optimizer step over this worker's micro-batches of a global batch.

        supervised: supervised tokens of the global batch over all workers; the loss is their mean however the batch is cut (method.md; the sum of
        micro-batch means would weigh short answers more). seed: makes dropout a function of step and rank, so that a resumed run draws the same.
        """
        torch.manual_seed(seed)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.device)
        for micro_batch in micro_batches:
            loss = self._loss_sum(micro_batch)
            total += loss.detach()
            # DeepSpeed averages gradients over the workers; times world makes that a sum.
            self._engine.backward(loss * (self.world / supervised))
        self._engine.step()
        if not self.steps and self.stage in (1, 2) and len(self._optimizer.param_groups) > 1:
            # DeepSpeed looks for the moments after the first group's first step, when the other groups have none yet: let it look again.
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()
        self.steps += 1
        dist.all_reduce(total)
        norm = self._engine.get_global_grad_norm()
        return StepResult(total.item() / supervised, float("nan") if norm is None else float(norm))

    def _loss_sum(self, batch: MicroBatch) -> torch.Tensor:
        """Sum of -log p over the supervised tokens; logits are computed for those alone."""
        ids, mask = torch.from_numpy(batch.ids).to(self.device), torch.from_numpy(batch.supervised).to(self.device)
        logits = self._engine(input_ids=ids, logits_to_keep=mask, use_cache=False).logits
        return F.cross_entropy(logits.float(), torch.from_numpy(batch.targets).to(self.device), reduction="sum")

    def gather(self) -> State:
        """The state by name. Collective: every worker calls it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().float().cpu().clone()

        if self.stage == 0:
            inner: Any = self._optimizer.state
            weights = {name: copy(p) for name, p in self.parameters.items()}
            moments = {m: {name: copy(inner[p][m]) for name, p in self.parameters.items()} for m in MOMENTS} if self.steps else {}
        else:
            weights = {name: copy(safe_get_full_fp32_param(p)) for name, p in self.parameters.items()}
            moments = (
                {m: {name: copy(safe_get_full_optimizer_state(p, m)) for name, p in self.parameters.items()} for m in MOMENTS} if self.steps else {}
            )
        return State(weights, moments, self.steps)

    def restore(self, state: State) -> None:
        """Continue from a gathered state, at any number of workers. Collective. Raises ValueError when the names differ."""
        if set(state.weights) != set(self.parameters):
            raise ValueError(f"the checkpoint trains other parameters: {sorted(set(state.weights) ^ set(self.parameters))[:4]} ...")
        if state.moments:
            self._create_moments(state.steps)
        self._set(state)
        self.steps = state.steps

    def _create_moments(self, steps: int) -> None:
        """Adam makes its moments at the first step; a resumed run needs them before, to fill them."""
        owned: Sequence[torch.Tensor]
        if self.stage == 0:
            owned = list(self.parameters.values())
            inner: Any = self._optimizer
        else:
            inner = self._optimizer.optimizer
            owned = self._optimizer.fp32_partitioned_groups_flat if self.stage == 3 else self._optimizer.single_partition_of_fp32_groups
        for tensor in owned:
            inner.state[tensor] = {"step": torch.tensor(float(steps)), **{m: torch.zeros_like(tensor) for m in MOMENTS}}
        if self.stage in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _set(self, state: State) -> None:
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, parameter in self.parameters.items():
            if self.stage == 0:
                parameter.data.copy_(state.weights[name])
                for m, tensors in state.moments.items():
                    self._optimizer.state[parameter][m].copy_(tensors[name])
                continue
            safe_set_full_fp32_param(parameter, state.weights[name].to(self.device))
            for m, tensors in state.moments.items():
                safe_set_full_optimizer_state(parameter, tensors[name].to(self.device), m)
            # The copy that the forward pass uses.
            if self.stage == 3:
                with GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(state.weights[name])
            else:
                parameter.data.copy_(state.weights[name])

    def close(self) -> None:
        """Leave the process group; without this gloo aborts at exit under ZeRO-3. Collective."""
        self._engine.destroy()
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def _groups(parameters: Mapping[str, torch.nn.Parameter], decay: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters by weight decay, those without any first."""
    by_decay: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_decay.setdefault(next((value for prefix, value in decay.items() if name.startswith(prefix)), 0.0), []).append(parameter)
    return [{"params": group, "weight_decay": value} for value, group in sorted(by_decay.items(), key=lambda item: item[0])]
