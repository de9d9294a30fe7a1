"""Passes in buffers of fixed shape give what plain passes give; a GPU replays them as graphs."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
import pytest
import torch

from cprec.config.sections.model import ModelSettings
from cprec.config.sections.pretraining import TrainSettings
from cprec.encode.tokens import EncodedSample
from cprec.model import adapter
from cprec.model.kernels import attention
from cprec.model.libraries import silence_libraries
from cprec.stream.packing import MicroBatch, MicroBatchSpec, collate
from cprec.train.device import single_process_group
from cprec.train.engine import Engine
from cprec.train.static_pass import MAX_GRAPHS, PassShape, Replay, StaticPasses, can_capture
from tests.models import llama

Kind = Literal["lora", "full", "partial", "prompt"]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    silence_libraries()
    with single_process_group("gloo"):
        yield


def row(seed: int, samples: int) -> MicroBatch:
    """Returns a packed row of 64 tokens with some samples, and padding behind them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 64 // samples, samples).tolist()
    return collate(
        [
            EncodedSample(rng.integers(1, 128, n).astype(np.int32), n - int(rng.integers(1, 4)), 0)
            for n in lengths
        ],
        MicroBatchSpec(packed=True, size=64),
        0,
        64,
    )


def engine(kind: Kind, precision: str, dropout: float = 0.0) -> Engine:
    settings = ModelSettings(adapter=kind, lora_dropout=dropout, last_layers=1)
    model = adapter.attach(llama(128), settings, 0)
    return Engine(model, TrainSettings(zero_stage=0), precision)


class Captures:
    """Captures passes as a GPU does: what was captured is called again at every replay."""

    def __init__(self, room: int = 1000) -> None:
        self.count = self.replays = 0
        self._room = room

    def __call__(self, function: Replay) -> Replay | None:
        if self.count == self._room:
            return None
        self.count += 1

        def replay() -> None:
            self.replays += 1
            function()

        return replay


def with_static_passes(built: Engine, capture: Captures) -> Engine:
    built._static_passes = StaticPasses(built._compute_static_pass, built.device, capture, 2048)
    return built


def row_without_free_places(seed: int) -> MicroBatch:
    """Returns a packed row with as many supervised tokens as its buffer has places."""
    tokens = np.random.default_rng(seed).integers(1, 128, 60).astype(np.int32)
    spec = MicroBatchSpec(packed=True, size=64)
    return collate([EncodedSample(tokens, len(tokens) - 16, 0)], spec, 0, 64)


STEPS = [[row(0, 3), row(1, 2)], [row(2, 4), row(3, 3)], [row(4, 1), row(5, 2)]]


# Dropout draws for free places too, so only where there are none are its masks those of plain rows.
FULL_STEPS = [
    [row_without_free_places(2 * n), row_without_free_places(2 * n + 1)] for n in range(3)
]


def losses(built: Engine, steps: Sequence[Sequence[MicroBatch]] = STEPS) -> list[float]:
    return [
        built.step(step, sum(len(batch.targets) for batch in step), 1e-2, number).loss
        for number, step in enumerate(steps)
    ]


@pytest.mark.parametrize(
    ("kind", "precision", "dropout"),
    [
        *itertools.product(["lora", "full"], ["fp32", "bf16"], [0.0]),
        ("lora", "fp32", 0.1),
        ("partial", "fp32", 0.0),
        ("prompt", "fp32", 0.0),
    ],
)
def test_losses_and_weights_are_those_of_plain_passes(
    kind: Kind, precision: str, dropout: float
) -> None:
    plain, captures = engine(kind, precision, dropout), Captures()
    static = with_static_passes(engine(kind, precision, dropout), captures)
    tolerance = 5e-5 if precision == "fp32" else 2e-2  # 1.7e-5 was seen on one processor

    steps = FULL_STEPS if dropout else STEPS
    assert losses(static, steps) == pytest.approx(losses(plain, steps), rel=tolerance)
    assert captures.count == 1  # all rows have one shape: the second one captures it
    assert captures.replays == sum(map(len, STEPS)) - 1
    expected, actual = plain.gather_state(), static.gather_state()
    for name, weight in expected.weights.items():
        torch.testing.assert_close(actual.weights[name], weight, rtol=0, atol=tolerance)


def test_a_restored_state_is_seen_by_what_was_captured() -> None:
    built = with_static_passes(engine("lora", "bf16"), Captures())
    first = losses(built)
    built.restore_state(engine("lora", "bf16").gather_state())
    built._adam._adam.state.clear()  # type: ignore[union-attr]
    assert losses(built) == first


def test_where_there_is_no_room_passes_are_computed_plainly() -> None:
    captures = Captures(room=0)
    assert losses(with_static_passes(engine("lora", "fp32"), captures)) == pytest.approx(
        losses(engine("lora", "fp32")), rel=1e-5
    )
    assert captures.replays == 0


def test_no_more_than_some_shapes_are_captured() -> None:
    computed: list[int] = []
    captures = Captures()
    passes = StaticPasses(
        lambda inputs: computed.append(inputs.ids.numel()), torch.device("cpu"), captures, 2048
    )
    shapes = MAX_GRAPHS + 5
    for _ in range(3):
        for tokens in range(64, 64 + shapes):
            passes.run(collate([EncodedSample(np.ones(tokens, np.int32), 1, 0)], spec(), 0), 1.0)
    assert passes.captured == captures.count == MAX_GRAPHS
    assert len(computed) == 3 * shapes


def spec() -> MicroBatchSpec:
    return MicroBatchSpec(packed=True, size=8)


def test_rows_of_one_length_have_few_shapes() -> None:
    """Rows of 8,192 tokens hold 9 to 17 samples, and 26 supervised tokens of each."""
    shapes = set()
    for samples in range(9, 18):
        size = 8192 // samples
        batch = collate(
            [EncodedSample(np.ones(size, np.int32), size - 26, 0) for _ in range(samples)],
            MicroBatchSpec(packed=True, size=8192),
            0,
            8192,
        )
        shapes.add(PassShape.of(batch, 2048))
    assert len(shapes) <= 3


@pytest.mark.parametrize(("windows", "size"), [(17, 2048), (1, 2048), (4, 100)])
def test_windows_of_text_have_no_more_places_than_the_row_has_tokens(
    windows: int, size: int
) -> None:
    """Of a window of text every token but the first is supervised."""
    samples = [EncodedSample(np.ones(size, np.int32), 1, 0)] * windows
    batch = collate(samples, MicroBatchSpec(packed=True, size=36_864), 0, 36_864)
    supervised = windows * (size - 1)
    places = PassShape.of(batch, 2048).supervised
    assert supervised <= places <= min(36_864, 2 * supervised)


def test_a_pass_that_waits_for_the_device_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU does not tell who waits for it, so what waits on a GPU is made to raise."""

    @contextmanager
    def no_waiting() -> Iterator[None]:
        def wait(*_: object) -> None:
            raise RuntimeError("called a synchronizing CUDA operation")

        with monkeypatch.context() as watched:
            watched.setattr(attention, "_attend_by_sample", wait)
            yield

    built = engine("lora", "fp32")
    compute = built._compute_static_pass
    assert not can_capture(compute, built.device, no_waiting)
    assert can_capture(compute, built.device, nullcontext)
    built._adam.drop_gradients()  # type: ignore[union-attr]
    assert losses(built) == losses(engine("lora", "fp32"))
    with pytest.raises(RuntimeError, match="out of memory"):
        can_capture(compute, built.device, out_of_memory)


@contextmanager
def out_of_memory() -> Iterator[None]:
    raise RuntimeError("out of memory")
    yield


def test_a_filling_that_is_longer_than_any_sample_is_attended_to_its_end() -> None:
    empty = collate([], spec(), 0, 64)
    assert PassShape.of(empty, 32).longest == 64
    assert PassShape.of(row(1, 4), 32).longest == 32
