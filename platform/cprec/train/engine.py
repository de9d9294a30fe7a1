"""DeepSpeed behind four verbs: step, gather, restore, close. Knows tensors and collectives; no Ray, no storage, no schedule.

The trained parameters and Adam's moments are gathered and restored *by name*, whole, so that a checkpoint loads at any number of workers and any
ZeRO stage; at the same number on a CPU the continued run is bitwise the same. This leans on private parts of DeepSpeed, hence its exact pin.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from cluster import deepspeed_presets as presets
from cprec.config.recipe import TrainSettings
from cprec.model import attention
from cprec.model.adapter import fuse_lora, trainable_parameters
from cprec.model.library_logging import silence_libraries
from cprec.model.training_state import ADAM_MOMENTS, TrainingState
from cprec.stream.packing import MicroBatch, MicroBatchSpec
from cprec.train import device


@dataclass(frozen=True)
class StepResult:
    """loss: mean over the supervised tokens of the global batch, before the update; grad_norm: before clipping, nan if the stage hides it;
    stop: whether any worker asked to stop, the same on all of them."""

    loss: float
    grad_norm: float
    stop: bool


def micro_batch_spec(settings: TrainSettings) -> MicroBatchSpec:
    """How the settings cut a share into forward passes."""
    if not settings.pack:
        return MicroBatchSpec(packed=False, size=settings.micro_batch)
    return MicroBatchSpec(packed=True, size=pack_tokens(settings), pad_to_size=settings.compile)


def pack_tokens(settings: TrainSettings) -> int:
    """Tokens of one forward pass when packed: the recipe's, else what suits the device (docs/performance.md)."""
    return settings.pack_tokens or (4096 if torch.cuda.is_available() else 2048)


def choose_memory_settings(
    model: torch.nn.Module, settings: TrainSettings, world_size: int
) -> tuple[int, bool]:
    """ZeRO stage, and whether activations are recomputed: the recipe's choice, else what an estimate says that the GPU's memory needs."""
    stage, recompute = settings.zero_stage, settings.recompute == "always"
    if not torch.cuda.is_available():
        return (1 if stage is None else stage), recompute
    shape, memory = (
        model_dimensions(model),
        float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory),
    )
    tokens = pack_tokens(settings)  # a padded micro-batch is of the same order
    stage = presets.choose_zero_stage(shape, world_size, tokens, memory) if stage is None else stage
    if settings.recompute == "auto":
        recompute = presets.needs_recompute(shape, stage, world_size, tokens, memory)
    return stage, recompute


def model_dimensions(model: torch.nn.Module) -> presets.ModelSize:
    """What the memory of a model's training depends on."""
    counts = [(p.numel(), p.requires_grad, p.element_size()) for p in model.parameters()]
    settings: Any = model.config
    return presets.ModelSize(
        num_parameters=sum(n for n, _, _ in counts),
        num_trainable=sum(n for n, trained, _ in counts if trained),
        num_layers=settings.num_hidden_layers,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        bytes_per_parameter=max(size for _, _, size in counts),
    )


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The decoder's layers: what is compiled one by one, each the same code; embedding, output and loss see sizes that change."""
    return next(
        (
            list(m)
            for m in model.modules()
            if isinstance(m, torch.nn.ModuleList) and m and hasattr(m[0], "self_attn")
        ),
        [],
    )


class Engine:
    """A model in training, spread over the workers of the process group that is already there (or alone, without one)."""

    def __init__(
        self,
        model: torch.nn.Module,
        settings: TrainSettings,
        precision: str,
        weight_decay_by_prefix: Mapping[str, float] | None = None,
    ) -> None:
        """decay: weight decay of the parameters whose names start so; the others have none."""
        silence_libraries()
        import deepspeed
        from deepspeed.ops import __compatible_ops__

        # DeepSpeed would compile an extension for shared-memory inference collectives, which training never calls: most of a minute on a new
        # machine, and a process that is killed while it compiles leaves a lock for which every later training waits without a word.
        __compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self.model = model
        self.world_size = dist.get_world_size()
        self.zero_stage, self.recomputes_activations = choose_memory_settings(
            model, settings, self.world_size
        )
        self.trained_parameters = trainable_parameters(model)
        if settings.pack:
            attention.enable_packing(model)
        if self.zero_stage < 3:
            fuse_lora(model)
        self.operation_count = device.OperationCount.from_model(model, model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        if self.recomputes_activations:
            model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        if settings.compile:
            for layer in decoder_layers(model):
                layer.compile()
        # A client optimizer: one that is named in the config compiles an extension first. The rate is set at every step.
        optimizer = torch.optim.AdamW(
            _parameter_groups(self.trained_parameters, weight_decay_by_prefix or {}),
            lr=0.0,
            betas=(0.9, settings.adam_beta2),
            weight_decay=0.0,
            fused=torch.cuda.is_available(),
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=presets.build_config(
                self.zero_stage, self.world_size, precision, settings.gradient_clipping
            ),
            dist_init_required=False,
        )
        self.device = self._engine.device
        self.steps = 0

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        supervised_tokens: int,
        lr: float,
        seed: int,
        stop: bool = False,
    ) -> StepResult:
        """One optimizer step over this worker's micro-batches of a global batch.

        supervised: supervised tokens of the global batch over all workers; the loss is their mean however the batch is cut (method.md; the sum of
        micro-batch means would weigh short answers more). seed: makes dropout a function of step and rank, so that a resumed run draws the same.
        stop: this worker's wish to stop, which reaches all in the collective that sums the loss.
        """
        torch.manual_seed(seed)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        total = torch.tensor([0.0, float(stop)], device=self.device)
        for micro_batch in micro_batches:
            loss = self._loss_sum(micro_batch)
            total[0] += loss.detach()
            # DeepSpeed averages gradients over the workers; times world makes that a sum.
            self._engine.backward(loss * (self.world_size / supervised_tokens))
        self._engine.step()
        if not self.steps and self.zero_stage in (1, 2) and len(self._optimizer.param_groups) > 1:
            # DeepSpeed looks for the moments after the first group's first step, when the other groups have none yet: let it look again.
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()
        self.steps += 1
        dist.all_reduce(total)
        norm = self._engine.get_global_grad_norm()
        loss_sum, stops = total.tolist()
        return StepResult(
            loss_sum / supervised_tokens, float("nan") if norm is None else float(norm), stops > 0
        )

    @torch.no_grad()
    def total_loss(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Sum of -log p over the supervised tokens of all workers' micro-batches, in evaluation mode. Changes nothing that a step depends on.

        Collective, with equally many micro-batches on every worker: under ZeRO 3 a forward pass gathers the weights from all of them.
        """
        modes = [(module, module.training) for module in self._engine.modules()]
        self._engine.eval()
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        for micro_batch in micro_batches:
            total += self._loss_sum(micro_batch)
        for module, mode in modes:
            module.training = mode
        dist.all_reduce(total)
        return float(total)

    def _loss_sum(self, batch: MicroBatch) -> torch.Tensor:
        """Sum of -log p over the supervised tokens; logits are computed for those alone."""
        ids, targets = self._to_device(batch.input_ids), self._to_device(batch.targets)
        if batch.bounds is None or batch.position_ids is None:
            logits = self._engine(
                input_ids=ids,
                logits_to_keep=self._to_device(batch.supervised_mask),
                use_cache=False,
            ).logits
        else:
            # Indices, not a mask: the device need not be asked how many there are.
            kept = self._to_device(np.flatnonzero(batch.supervised_mask[0]))
            if batch.visible is None:
                apart = attention.packed_arguments(
                    self._to_device(batch.bounds), int(np.diff(batch.bounds).max())
                )
            else:
                apart = attention.strip_arguments(
                    batch.bounds.tolist(),
                    [self._to_device(part) for part in batch.visible],
                    int(batch.position_ids.max()) + 1,
                )
            logits = self._engine(
                input_ids=ids,
                position_ids=self._to_device(batch.position_ids),
                logits_to_keep=kept,
                use_cache=False,
                **apart,
            ).logits[0]
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def gather_state(self) -> TrainingState:
        """The state by name. Collective: every worker calls it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        def copy(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().float().cpu().clone()

        if self.zero_stage == 0:
            inner: Any = self._optimizer.state
            weights = {name: copy(p) for name, p in self.trained_parameters.items()}
            moments = (
                {
                    m: {name: copy(inner[p][m]) for name, p in self.trained_parameters.items()}
                    for m in ADAM_MOMENTS
                }
                if self.steps
                else {}
            )
        else:
            weights = {
                name: copy(safe_get_full_fp32_param(p))
                for name, p in self.trained_parameters.items()
            }
            moments = (
                {
                    m: {
                        name: copy(safe_get_full_optimizer_state(p, m))
                        for name, p in self.trained_parameters.items()
                    }
                    for m in ADAM_MOMENTS
                }
                if self.steps
                else {}
            )
        return TrainingState(weights, moments, self.steps)

    def restore_state(self, state: TrainingState) -> None:
        """Continue from a gathered state, at any number of workers. Collective. Raises ValueError when the names differ."""
        if set(state.weights) != set(self.trained_parameters):
            raise ValueError(
                f"the checkpoint trains other parameters: {sorted(set(state.weights) ^ set(self.trained_parameters))[:4]} ..."
            )
        if state.moments:
            self._create_moments(state.steps)
        self._load_state(state)
        self.steps = state.steps

    def _create_moments(self, steps: int) -> None:
        """Adam makes its moments at the first step; a resumed run needs them before, to fill them."""
        owned: Sequence[torch.Tensor]
        if self.zero_stage == 0:
            owned = list(self.trained_parameters.values())
            inner: Any = self._optimizer
        else:
            inner = self._optimizer.optimizer
            owned = (
                self._optimizer.fp32_partitioned_groups_flat
                if self.zero_stage == 3
                else self._optimizer.single_partition_of_fp32_groups
            )
        for tensor in owned:
            inner.state[tensor] = {
                "step": torch.tensor(float(steps)),
                **{m: torch.zeros_like(tensor) for m in ADAM_MOMENTS},
            }
        if self.zero_stage in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _load_state(self, state: TrainingState) -> None:
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, parameter in self.trained_parameters.items():
            if self.zero_stage == 0:
                parameter.data.copy_(state.weights[name])
                for m, tensors in state.moments.items():
                    self._optimizer.state[parameter][m].copy_(tensors[name])
                continue
            safe_set_full_fp32_param(parameter, state.weights[name].to(self.device))
            for m, tensors in state.moments.items():
                safe_set_full_optimizer_state(parameter, tensors[name].to(self.device), m)
            # The copy that the forward pass uses.
            if self.zero_stage == 3:
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


def _parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter], weight_decay_by_prefix: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Parameters by weight decay, those without any first."""
    by_decay: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_decay.setdefault(
            next(
                (
                    value
                    for prefix, value in weight_decay_by_prefix.items()
                    if name.startswith(prefix)
                ),
                0.0,
            ),
            [],
        ).append(parameter)
    return [
        {"params": group, "weight_decay": value}
        for value, group in sorted(by_decay.items(), key=lambda item: item[0])
    ]
