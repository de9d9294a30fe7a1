"""How a model is made to fit into memory: ZeRO stage, recomputed activations, tokens of a row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from cprec.config.sections.pretraining import TrainSettings
from cprec.stream.packing import MicroBatch
from cprec.train.memory_estimate import MemoryEstimate

PACK_TOKENS_ON_CPU = 2048
"""Tokens of a row on a CPU, whose cache holds no more."""
PACK_TOKENS_STEP = 4096
"""Tokens of the shortest row on a GPU, and the step in which rows are made longer."""
MAX_PACK_TOKENS = 1 << 16
"""Tokens of the longest row that is chosen; longer ones are no faster."""
USABLE_MEMORY = 0.85
"""Fraction of a GPU's memory to plan with; allocator, kernels and NCCL need the rest."""
SUPERVISED_FRACTION = 1 / 16
"""Fraction of the tokens of prompts with answers that have logits; of Amazon's prompts, 4 %."""


@dataclass(frozen=True)
class MemoryPlan:
    """How the training of a model is made to fit into memory, the same on every worker.

    Attributes:
        zero_stage: ZeRO stage of DeepSpeed.
        recompute: Whether activations are recomputed in the backward pass.
        pack_tokens: Tokens of a packed row, at most.
        world_size: Number of workers.
        estimate: What the model takes; None on a CPU, where nothing is planned.
    """

    zero_stage: int
    recompute: bool
    pack_tokens: int
    world_size: int
    estimate: MemoryEstimate | None = None

    def peak_bytes(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Returns the estimated peak of a step with these passes; 0 where nothing is planned."""
        if self.estimate is None:
            return 0.0
        return max(
            self.estimate.peak_bytes(
                self.zero_stage,
                self.world_size,
                self.recompute,
                micro_batch.computed_tokens,
                len(micro_batch.targets),
            )
            for micro_batch in micro_batches
        )


def plan_memory(
    model: torch.nn.Module,
    settings: TrainSettings,
    precision: str,
    supervised_fraction: float = SUPERVISED_FRACTION,
) -> MemoryPlan:
    """Plans how a model is made to fit into the memory of this worker's device.

    Collective on GPUs: all workers plan with the smallest one.

    Args:
        model: The model with its trainable part, before DeepSpeed has it.
        settings: The recipe's section `train`.
        precision: fp32 or bf16.
        supervised_fraction: Fraction of the tokens of a row that have logits, at most.
    """
    world_size = dist.get_world_size()
    if not torch.cuda.is_available():
        return MemoryPlan(
            zero_stage=1 if settings.zero_stage is None else settings.zero_stage,
            recompute=settings.recompute == "always",
            pack_tokens=settings.pack_tokens or PACK_TOKENS_ON_CPU,
            world_size=world_size,
        )
    memory = torch.tensor(
        [torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory],
        device="cuda",
    )
    dist.all_reduce(memory, op=dist.ReduceOp.MIN)
    estimate = MemoryEstimate.from_model(model, precision, settings.compile)
    return choose(estimate, settings, world_size, float(memory), supervised_fraction)


def may_replay(settings: TrainSettings, zero_stage: int, recompute: bool) -> bool:
    """Returns whether passes may be replayed as CUDA graphs, if the model allows it."""
    return (
        settings.cuda_graphs == "auto"
        and zero_stage == 0
        and not recompute
        and not settings.inexact_keys
    )


def choose(
    estimate: MemoryEstimate,
    settings: TrainSettings,
    world_size: int,
    memory_bytes: float,
    supervised_fraction: float = SUPERVISED_FRACTION,
) -> MemoryPlan:
    """Chooses what a recipe leaves open, so that a step fits into memory by estimate.

    In this order: the lowest ZeRO stage, because higher ones communicate more; no recomputation,
    which costs a third more time; the longest rows that leave room for CUDA graphs, which keep the
    memory of a pass beside that of passes without one.

    Args:
        estimate: What the model takes.
        settings: The recipe's section `train`.
        world_size: Number of workers.
        memory_bytes: Memory of the smallest GPU [bytes].
        supervised_fraction: Fraction of the tokens of a row that have logits, at most.
    """

    def fits(stage: int, recompute: bool, tokens: int, passes: int = 1) -> bool:
        supervised_tokens = int(tokens * supervised_fraction)
        peak = estimate.peak_bytes(stage, world_size, recompute, tokens, supervised_tokens)
        state = sum(estimate.state.bytes_by_kind(stage, world_size).values())
        return state + passes * (peak - state) <= USABLE_MEMORY * memory_bytes

    tokens = settings.pack_tokens or PACK_TOKENS_STEP
    stage = settings.zero_stage
    if stage is None:
        stages = (s for s in range(3) if fits(s, settings.recompute != "never", tokens))
        stage = next(stages, 3)
    recompute = settings.recompute == "always"
    if settings.recompute == "auto":
        recompute = not fits(stage, False, tokens)
    if settings.pack_tokens is None:
        passes = 2 if may_replay(settings, stage, recompute) else 1
        longer = range(MAX_PACK_TOKENS, tokens, -PACK_TOKENS_STEP)
        tokens = next((n for n in longer if fits(stage, recompute, n, passes)), tokens)
    return MemoryPlan(stage, recompute, tokens, world_size, estimate)
