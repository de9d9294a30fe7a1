"""The engine: a model in training behind four operations: step, gather, restore and close.

It knows tensors and collectives, but no Ray, no storage and no schedule.

Trained parameters and Adam's moments are gathered and restored by name and whole. So a checkpoint
loads with any number of workers and any ZeRO stage. With the same number, on a CPU, the continued
run is bitwise the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch._dynamo.utils import counters

from cprec.config.sections.pretraining import TrainSettings
from cprec.model import self_check
from cprec.model.adapter import trainable_parameters
from cprec.model.kernels import attention, flash_attention
from cprec.model.kernels.lora_fusion import fuse_lora
from cprec.model.libraries import silence_libraries
from cprec.model.training_state import TrainingState
from cprec.stream.packing import MicroBatch, MicroBatchSpec
from cprec.train import device, memory, pack_check, static_pass
from cprec.train.flat_adam import FlatAdam
from cprec.train.forward import supervised_logits, uncompiled
from cprec.train.memory import SUPERVISED_FRACTION, plan_memory
from cprec.train.static_pass import NO_TARGET, CudaGraphs, PassInputs, StaticPasses
from cprec.train.zero import ZeroAdam


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of an optimizer step, the same on every worker.

    Attributes:
        loss: Mean loss per supervised token of the global batch, before the update (nats).
        grad_norm: Gradient norm before clipping; nan if the ZeRO stage does not tell it; inf if it
            is not finite, where the stage tells that.
        stop: Whether any worker asked to stop.
        save: Whether any worker asked for a checkpoint.
    """

    loss: float
    grad_norm: float
    stop: bool
    save: bool


def compile_layers(model: torch.nn.Module) -> None:
    """Compiles the decoder layers of a model.

    They are compiled one by one, because all have the same code. Embedding, output and loss are
    not compiled: the sizes that they see change.
    """
    for layer in self_check.decoder_layers(model):
        layer.compile()


class Engine:
    """A model in training, spread over the workers of the existing process group.

    Attributes:
        model: The model.
        world_size: Number of workers.
        memory_plan: How the model is made to fit into memory.
        zero_stage: ZeRO stage.
        recomputes_activations: Whether the backward pass recomputes activations.
        packed: Whether samples are packed.
        padding_reason: Why samples are padded although the recipe packs them; None otherwise.
        trained_parameters: Parameters that are trained, by name.
        operation_count: Operations of a step.
        device: Device of this worker.
        steps: Optimizer steps taken.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        settings: TrainSettings,
        precision: str,
        weight_decay_by_prefix: Mapping[str, float] | None = None,
        max_tokens: int = 2048,
        supervised_fraction: float = SUPERVISED_FRACTION,
    ) -> None:
        """Prepares a model for training, and checks how its samples can be computed exactly.

        Args:
            model: The model, with its trainable part.
            settings: The recipe's section `train`.
            precision: fp32 or bf16.
            weight_decay_by_prefix: Weight decay by first part of a parameter's name; other
                parameters have none.
            max_tokens: Tokens of the longest sample.
            supervised_fraction: Fraction of the tokens of a row that have logits, at most.

        Raises:
            RecipeError: The model is not causal, or samples are to share tokens and cannot.
        """
        silence_libraries()
        self.model = model
        self.world_size = dist.get_world_size()
        self.memory_plan = plan_memory(model, settings, precision, supervised_fraction)
        self.zero_stage = self.memory_plan.zero_stage
        self.recomputes_activations = self.memory_plan.recompute
        self.trained_parameters = trainable_parameters(model)
        if self.zero_stage < 3:
            fuse_lora(model)
        if self.recomputes_activations:
            enable = model.activation_checkpointing_enable
            enable({"use_reentrant": False})  # type: ignore[operator]
        decay = {
            name: _weight_decay(name, weight_decay_by_prefix or {})
            for name in self.trained_parameters
        }
        self._adam: FlatAdam | ZeroAdam
        if self.zero_stage == 0:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            self._adam = FlatAdam(
                model.to(device.worker_device()),
                self.trained_parameters,
                decay,
                settings.adam_beta2,
                settings.gradient_clipping,
                dtype,
            )
        else:
            self._adam = ZeroAdam(
                model,
                self.trained_parameters,
                decay,
                settings.adam_beta2,
                settings.gradient_clipping,
                precision,
                self.zero_stage,
                self.world_size,
            )
        self.device = self._adam.device
        self.steps = 0
        self._settings, self._precision = settings, precision
        with self._evaluation_mode(), torch.no_grad():
            self.packed, self.padding_reason = pack_check.choose_packing(
                self._logits, model, settings, max_tokens, self._any_worker
            )
        vocab_size = int(self_check.text_config(model).vocab_size)
        self.operation_count = device.OperationCount.from_model(model, vocab_size)
        # Not before the check, whose shapes are not those of training.
        if settings.compile:
            compile_layers(model)
        self._loss_total = torch.zeros((), device=self.device)
        self._static_passes = self._prepare_static_passes(settings, max_tokens)

    @property
    def micro_batch_spec(self) -> MicroBatchSpec:
        """How a worker batch becomes forward passes."""
        if not self.packed:
            return MicroBatchSpec(packed=False, size=self._settings.micro_batch)
        # Every new length costs a compilation, or memory that the allocator cannot use again. Rows
        # of strips, in which samples share tokens, are not filled.
        few_lengths = self._settings.compile or self.device.type == "cuda"
        return MicroBatchSpec(
            packed=True,
            size=self.memory_plan.pack_tokens,
            filled=few_lengths and not self._settings.inexact_keys,
        )

    def _any_worker(self, flag: bool) -> bool:
        """Returns whether a flag is set on any worker. Collective."""
        count = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(count)
        return float(count) > 0

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        """Sets the model to evaluation mode, and every module back to the mode that it had.

        Nothing is compiled meanwhile: the shapes are not those of training.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with uncompiled(self.model):
                yield
        finally:
            for module, was_training in modes:
                module.training = was_training

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        supervised_tokens: int,
        lr: float,
        seed: int,
        stop: bool = False,
        save: bool = False,
    ) -> StepOutcome:
        """Takes one optimizer step. Collective: every worker calls it.

        The loss is the mean over all supervised tokens of the global batch, however the batch is
        split. A mean of the micro-batches' means would give short answers more weight.

        Args:
            micro_batches: This worker's part of the global batch.
            supervised_tokens: Supervised tokens of the global batch, over all workers.
            lr: Learning rate.
            seed: Seed of this worker's dropout.
            stop: Whether this worker wants to stop. All workers learn of it from the collective
                that sums the loss.
            save: Whether this worker wants a checkpoint; all learn of it in the same way.
        """
        torch.manual_seed(seed)
        self._loss_total.zero_()
        for micro_batch in micro_batches:
            if self._static_passes is not None:
                self._static_passes.run(micro_batch, 1 / supervised_tokens)
            else:
                loss = self._loss_sum(micro_batch)
                self._loss_total += loss.detach()
                self._adam.backward(loss, supervised_tokens)
        grad_norm = self._adam.step(lr)
        self.steps += 1
        wishes = torch.tensor([float(stop), float(save)], device=self.device)
        totals = torch.cat([self._loss_total.reshape(1), wishes])
        dist.all_reduce(totals)
        loss_sum, stops, saves = totals.tolist()
        return StepOutcome(
            loss=loss_sum / supervised_tokens,
            grad_norm=grad_norm,
            stop=stops > 0,
            save=saves > 0,
        )

    def notices(self) -> list[str]:
        """Returns what a user should know of how this engine computes, a line each."""
        lines = []
        if self.padding_reason is not None:
            lines.append(
                "train.pack: packed rows are not exact for this base, samples are padded: "
                f"{self.padding_reason}"
            )
        if self.device.type == "cuda":
            by_flash = self.packed and self._precision == "bf16"
            kernel = flash_attention.kernel_name(self.device.index) if by_flash else "sdpa"
            plan = self.memory_plan
            lines.append(
                f"training: attention {kernel}, ZeRO {self.zero_stage}, rows of up to "
                f"{plan.pack_tokens:,} tokens, layers "
                f"{'compiled' if self._settings.compile else 'not compiled (train.compile)'}, "
                f"activations {'recomputed' if plan.recompute else 'kept'}, CUDA graphs "
                f"{'off' if self._static_passes is None else 'on'}"
            )
        return lines

    @property
    def compiled_graphs(self) -> int:
        """Number of graphs that this process has compiled."""
        return int(counters["stats"]["unique_graphs"])

    @property
    def captured_passes(self) -> int:
        """Number of input shapes whose passes are replayed as CUDA graphs; 0 without graphs."""
        return 0 if self._static_passes is None else self._static_passes.captured

    def _prepare_static_passes(
        self, settings: TrainSettings, max_tokens: int
    ) -> StaticPasses | None:
        """Returns what replays passes as CUDA graphs; None where they are computed plainly."""
        may_replay = memory.may_replay(settings, self.zero_stage, self.recomputes_activations)
        if not (may_replay and self.packed and self.device.type == "cuda" and self._can_capture()):
            return None
        return StaticPasses(self._compute_static_pass, self.device, CudaGraphs(), max_tokens)

    def _can_capture(self) -> bool:
        """Returns whether a pass as the model computes it can become a CUDA graph."""
        assert isinstance(self._adam, FlatAdam)
        try:
            with uncompiled(self.model):
                return static_pass.can_capture(self._compute_static_pass, self.device)
        finally:
            self._adam.drop_gradients()

    def _compute_static_pass(self, inputs: PassInputs) -> None:
        """Adds the loss of a pass to its total, and the gradients to their sum."""
        assert isinstance(self._adam, FlatAdam)
        logits = self.model(
            input_ids=inputs.ids,
            position_ids=inputs.positions,
            logits_to_keep=inputs.supervised,
            use_cache=False,
            **attention.packed_arguments(inputs.bounds, inputs.longest),
        ).logits[0]
        loss = F.cross_entropy(
            logits.float(), inputs.targets, reduction="sum", ignore_index=NO_TARGET
        )
        self._loss_total += loss.detach()
        self._adam.differentiate(loss * inputs.weight)

    @torch.no_grad()
    def total_loss(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Returns the summed loss (nats) of all workers' micro-batches, in evaluation mode.

        Changes nothing that a step depends on. Collective, with equally many micro-batches on
        every worker: under ZeRO 3 a forward pass gathers the weights from all of them.
        """
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        with self._evaluation_mode():
            for micro_batch in micro_batches:
                total += self._loss_sum(micro_batch)
        dist.all_reduce(total)
        return float(total)

    def _loss_sum(self, batch: MicroBatch) -> torch.Tensor:
        """Returns the sum of -log p over the supervised tokens."""
        targets = torch.from_numpy(batch.targets).to(self.device, non_blocking=True)
        return F.cross_entropy(self._logits(batch).float(), targets, reduction="sum")

    def _logits(self, batch: MicroBatch) -> torch.Tensor:
        """Returns the logits of the supervised tokens [N, vocabulary]."""
        return supervised_logits(self._adam.module, batch, self.device)

    def gather_state(self) -> TrainingState:
        """Returns the trained parameters and moments, by name and whole, on the CPU.

        Collective: every worker calls it.
        """
        return self._adam.gather_state(self.steps)

    def restore_state(self, state: TrainingState) -> None:
        """Continues from a gathered state, with any number of workers.

        Collective: every worker calls it.

        Raises:
            ValueError: The state has other parameters than the model.
        """
        if set(state.weights) != set(self.trained_parameters):
            different = sorted(set(state.weights) ^ set(self.trained_parameters))
            raise ValueError(f"the checkpoint trains other parameters: {different[:4]} ...")
        self._adam.restore_state(state)
        self.steps = state.steps

    def close(self) -> None:
        """Leaves the process group; otherwise gloo aborts at exit under ZeRO 3.

        Collective: every worker calls it.
        """
        self._adam.close()
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def _weight_decay(name: str, weight_decay_by_prefix: Mapping[str, float]) -> float:
    """Returns the weight decay of a parameter: that of the first prefix of its name, or none."""
    decays = (decay for prefix, decay in weight_decay_by_prefix.items() if name.startswith(prefix))
    return next(decays, 0.0)
