"""A training pass over inputs of fixed shape, and its replay as a CUDA graph.

A small model's pass consists of thousands of short kernels, which a CPU cannot launch as fast as a
GPU runs them. A CUDA graph launches all of them at once, but always with the same shapes and the
same memory. So the inputs of a packed row are copied into buffers that leave room: more samples,
which are empty, and more supervised tokens, which have no target.

A shape is computed plainly when it is first seen, which also compiles what is compiled; it is
captured when it is seen again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from cprec.encode.tokens import EncodedSample
from cprec.stream.packing import MicroBatch, MicroBatchSpec, collate
from cprec.train.memory import USABLE_MEMORY

NO_TARGET = -100
"""Target of a position that does not count in the loss, as cross_entropy has it."""

MAX_GRAPHS = 24
"""Shapes that are captured; a pass of any other shape is computed plainly."""


@dataclass(frozen=True)
class PassShape:
    """The sizes of the buffers of a pass.

    Attributes:
        tokens: Tokens of the row.
        samples: Samples of the row, at most.
        supervised: Supervised tokens, at most.
        longest: Tokens of a sample, at most.
    """

    tokens: int
    samples: int
    supervised: int
    longest: int

    @classmethod
    def of(cls, batch: MicroBatch, max_tokens: int) -> "PassShape":
        """Returns the shape of a packed row: its length, and the rest rounded up far.

        Args:
            batch: The row.
            max_tokens: Tokens of the longest sample; only the filling of a row may be longer.
        """
        assert batch.bounds is not None
        tokens = batch.input_ids.size
        return cls(
            tokens,
            _power_of_two(len(batch.bounds) - 1),
            _count_places(len(batch.targets), tokens),
            tokens if np.diff(batch.bounds).max() > max_tokens else min(max_tokens, tokens),
        )


def _power_of_two(number: int) -> int:
    """Returns the smallest power of two that is no smaller, from 16 on."""
    return max(1 << (number - 1).bit_length(), 16)


def _count_places(supervised: int, tokens: int) -> int:
    """Returns places for supervised tokens: a power of two, or some eighths of the row if fewer.

    Of windows of text nearly all tokens are supervised, and a power of two would be beyond the row.
    """
    eighth = -(-tokens // 8)
    return max(min(_power_of_two(supervised), -(-supervised // eighth) * eighth), 16)


class PassInputs:
    """The inputs of a pass on the device, in buffers of one shape.

    Attributes:
        ids: Token ids [1, tokens].
        positions: Positions [1, tokens].
        bounds: Bounds of the samples [samples + 1], int32; those left over are empty.
        supervised: Positions whose next token counts [supervised]; 0 where left over.
        targets: Those next tokens [supervised]; NO_TARGET where left over.
        weight: What the summed loss is multiplied with.
        longest: Tokens of a sample, at most.
    """

    def __init__(self, shape: PassShape, device: torch.device) -> None:
        self.longest = shape.longest
        self.ids = torch.zeros(1, shape.tokens, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.bounds = torch.zeros(shape.samples + 1, dtype=torch.int32, device=device)
        self.supervised = torch.zeros(shape.supervised, dtype=torch.int64, device=device)
        self.targets = torch.zeros_like(self.supervised)
        self.weight = torch.zeros((), device=device)

    def fill(self, batch: MicroBatch, weight: float) -> None:
        """Copies a packed row of this shape into the buffers."""
        assert batch.bounds is not None
        assert batch.position_ids is not None
        _copy(self.ids, batch.input_ids)
        _copy(self.positions, batch.position_ids)
        _copy(self.bounds, _extend(batch.bounds, len(self.bounds), batch.bounds[-1]))
        supervised = np.flatnonzero(batch.supervised_mask[0])
        _copy(self.supervised, _extend(supervised, len(self.supervised), 0))
        _copy(self.targets, _extend(batch.targets, len(self.targets), NO_TARGET))
        self.weight.fill_(weight)


def _extend(values: np.ndarray, length: int, value: int) -> np.ndarray:
    """Returns values, followed by one value up to a length."""
    return np.concatenate([values, np.full(length - len(values), value, dtype=values.dtype)])


def _copy(target: torch.Tensor, values: np.ndarray) -> None:
    """Copies an array to a tensor without waiting for it."""
    source = torch.from_numpy(np.ascontiguousarray(values))
    if target.is_cuda:
        source = source.pin_memory()
    target.copy_(source, non_blocking=True)


Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay | None]
"""Captures a function that has run before, without calling it.

The result does what the function did; None: there is no room for it.
"""


class StaticPasses:
    """Computes passes in buffers of fixed shape, and replays those whose shape it has captured.

    Attributes:
        captured: Number of shapes that were captured.
    """

    def __init__(
        self,
        compute: Callable[[PassInputs], None],
        device: torch.device,
        capture: Capture,
        max_tokens: int,
    ) -> None:
        """Prepares for passes.

        Args:
            compute: Computes a pass. It depends on nothing but the buffers, the weights and the
                random numbers, and does not wait for the device.
            device: The device.
            capture: Captures a pass.
            max_tokens: Tokens of the longest sample.
        """
        self.captured = 0
        self._compute = compute
        self._device = device
        self._capture = capture
        self._max_tokens = max_tokens
        self._has_room = True
        self._inputs: dict[PassShape, PassInputs] = {}
        self._replays: dict[PassShape, Replay] = {}

    def run(self, batch: MicroBatch, weight: float) -> None:
        """Computes the pass of a packed row.

        Args:
            batch: The row.
            weight: What the summed loss is multiplied with.
        """
        shape = PassShape.of(batch, self._max_tokens)
        inputs = self._inputs.get(shape)
        seen = inputs is not None
        if inputs is None:
            inputs = self._inputs[shape] = PassInputs(shape, self._device)
        inputs.fill(batch, weight)
        if seen and shape not in self._replays and self._has_room and self.captured < MAX_GRAPHS:
            self._capture_pass(shape, inputs)
        if shape in self._replays:
            self._replays[shape]()
        else:
            self._compute(inputs)

    def _capture_pass(self, shape: PassShape, inputs: PassInputs) -> None:
        """Captures the pass of a shape, if there is room for it."""
        replay = self._capture(lambda: self._compute(inputs))
        if replay is None:
            self._has_room = False
        else:
            self._replays[shape] = replay
            self.captured += 1


WAITS = "called a synchronizing CUDA operation"
"""What PyTorch says where the CPU waits for the GPU and must not."""


@contextmanager
def no_waiting() -> Iterator[None]:
    """Makes PyTorch raise RuntimeError where the CPU waits for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def can_capture(
    compute: Callable[[PassInputs], None],
    device: torch.device,
    watch: Callable[[], AbstractContextManager[None]] = no_waiting,
) -> bool:
    """Tries whether a pass never waits for the device, which a pass that is captured cannot.

    Attention that is computed sample by sample waits for their bounds, as it is in fp32; a mixture
    of experts may wait for what was routed where.

    Args:
        compute: Computes a pass, as for `StaticPasses`; it is called twice, with a weight of 0.
        device: The device.
        watch: Makes a wait raise RuntimeError.
    """
    samples = [EncodedSample(np.arange(8, dtype=np.int32), 4, dropped_titles=0)] * 2
    batch = collate(samples, MicroBatchSpec(packed=True, size=16), 0, 16)
    inputs = PassInputs(PassShape.of(batch, 16), device)
    inputs.fill(batch, 0.0)
    compute(inputs)  # what is loaded or compiled at the first call may wait
    try:
        with watch():
            compute(inputs)
    except RuntimeError as error:
        if WAITS not in str(error):
            raise
        return False
    return True


class CudaGraphs:
    """Captures functions as CUDA graphs, which share their memory: one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._count = 0

    def __call__(self, function: Callable[[], None]) -> Replay | None:
        """Captures a function that has run before; None if memory would not suffice."""
        torch.cuda.synchronize()
        if not self._count and not self._fits():
            return None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        self._count += 1
        return graph.replay

    def _fits(self) -> bool:
        """Returns whether what a pass takes fits twice: for graphs, and for passes without one."""
        resting = torch.cuda.memory_allocated()
        taken = torch.cuda.max_memory_allocated() - resting
        _, total = torch.cuda.mem_get_info()
        return bool(resting + 2 * taken < USABLE_MEMORY * total)
