"""Measures a case on one GPU: trains, scores, or saves and resumes, without Ray."""

import gc
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from support import workload
from support import gpu_time
from support.gpu_cases import (
    RESUME,
    SCORING,
    SHAPES,
    TRAINING,
    Case,
    Sizes,
    make_queries,
    make_samples,
)
from cprec.config.sections.model import ModelSettings
from cprec.config.sections.pretraining import TrainSettings
from cprec.evaluation.candidate_rows import Query
from cprec.evaluation.candidate_scoring import score_queries
from cprec.evaluation.scoring_check import choose_scoring
from cprec.model import adapter
from cprec.model.kernels import fp8
from cprec.schedule.wsa import Phase
from cprec.stream.packing import divide
from cprec.stream.worker_batches import WorkerBatch
from cprec.train import device
from cprec.train.engine import Engine, compile_layers
from cprec.train.loop import Observer, StepRecord, TrainingStep, train

BATCHES = 3
"""Global batches that are trained in turn."""
WARMUP_STEPS = 2 * BATCHES
"""Steps that do not count: layers are compiled when a length of rows is new, and a pass of that
length is captured when it comes again."""
LR = 1e-4
PAD_TOKEN = 2


@dataclass(frozen=True)
class Measurement:
    """What a case gave.

    Attributes:
        rate: The rate, in the case's unit.
        figures: Everything else, by name.
        profiler: Profile of its last step; None if there is none.
    """

    rate: float
    figures: dict[str, Any]
    profiler: torch.profiler.profile | None


def build_model(case: Case) -> torch.nn.Module:
    """Builds the model with random weights, directly on the device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if computes_in_bf16(case) else torch.float32)
    torch.manual_seed(0)
    with device.worker_device():
        base = LlamaForCausalLM(LlamaConfig(**SHAPES[case.shape], max_position_embeddings=8192))
    torch.set_default_dtype(before)
    if case.kind == SCORING:
        return base.eval().requires_grad_(False)
    settings = ModelSettings(
        adapter="lora" if case.rank else "full", lora_rank=case.rank or 8, lora_dropout=0.0
    )
    model = adapter.attach(base, settings, 0).to(device.worker_device())
    if case.fp8:
        fp8.quantise_frozen_layers(model)
    return model


def computes_in_bf16(case: Case) -> bool:
    """Returns whether a case runs in bf16: on a CPU only where FP8 needs it."""
    return torch.cuda.is_available() or case.fp8


def build_engine(case: Case, sizes: Sizes) -> Engine:
    """Builds the model and its engine."""
    settings = TrainSettings(
        zero_stage=0,
        pack_tokens=sizes.pack_tokens,
        compile=sizes.compile,
        recompute=sizes.recompute,
        global_batch=sizes.batch,
    )
    precision = "bf16" if computes_in_bf16(case) else "fp32"
    return Engine(build_model(case), settings, precision, max_tokens=sizes.longest)


class Recorder(Observer):
    """Keeps the record of every step, and profiles the last one."""

    def __init__(self, steps: int) -> None:
        self.records: list[StepRecord] = []
        self.profiler = torch.profiler.profile(record_shapes=True)
        self._steps = steps

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        self.records.append(record)
        if len(self.records) == self._steps - 1:
            self.profiler.start()
        if len(self.records) == self._steps:
            self.profiler.stop()


def measure_training(case: Case, sizes: Sizes, ceilings: gpu_time.Ceilings) -> Measurement:
    """Trains some steps. The last one is profiled and does not count."""
    engine = build_engine(case, sizes)
    samples = make_samples(sizes, BATCHES * sizes.batch, SHAPES[case.shape]["vocab_size"])
    batches = workload.worker_batches(samples, sizes.batch)
    steps = WARMUP_STEPS + sizes.steps + 1
    recorder = Recorder(steps)
    train(
        engine,
        (training_step(batches[i % len(batches)]) for i in range(steps)),
        recorder,
        engine.micro_batch_spec,
        PAD_TOKEN,
        0,
    )
    passes_of_batches = [
        divide(batch.lengths_by_rank, engine.micro_batch_spec)[0] for batch in batches
    ]
    counted = recorder.records[WARMUP_STEPS:-1]
    seconds = sum(record.step_s for record in counted)
    useful = sum(record.batch.num_tokens for record in counted)
    computed = sum(record.computed_tokens + record.filled_tokens for record in counted)
    operations = sum(record.operations for record in counted) / seconds
    passes = len(passes_of_batches[(steps - 1) % len(batches)])
    figures = {
        "useful_tokens_per_s": useful / seconds,
        "computed_tokens_per_s": computed / seconds,
        "filled_percent": 100 * (1 - useful / computed),
        "tflops": operations / 1e12,
        "fraction_of_ceiling": operations / ((case.fp8 and ceilings.fp8) or ceilings.bf16),
        "step_s": [record.step_s for record in recorder.records],
        "row_tokens": sorted({row.length for rows in passes_of_batches for row in rows}),
        "recomputed": engine.recomputes_activations,
        "cuda_graphs": engine.captured_passes,
        "planned_gb": counted[-1].planned_memory_bytes / 1e9,
        "loss": counted[-1].loss,
        **profile_figures(
            recorder.profiler, passes, statistics.median(record.step_s for record in counted)
        ),
    }
    return Measurement(useful / seconds, figures, recorder.profiler)


def training_step(batch: WorkerBatch) -> TrainingStep:
    """Returns a step of the stable phase."""
    return TrainingStep(batch, LR, Phase.STABLE, 0, 0)


def measure_scoring(case: Case, sizes: Sizes, ceilings: gpu_time.Ceilings) -> Measurement:
    """Scores users, twice: the first time compiles and warms up."""
    model = build_model(case)
    queries = make_queries(sizes, SHAPES[case.shape]["vocab_size"])
    kind = choose_scoring(model, max(query.longest for query in queries)).kind

    if sizes.compile:
        compile_layers(model)

    def score(part: list[Query]) -> list[np.ndarray]:
        return score_queries(model, part, sizes.queries_per_pass, kind)

    score(queries[: len(queries) // 4])
    gpu_time.synchronize()
    began = time.perf_counter()
    scores = score(queries)
    seconds = time.perf_counter() - began
    with torch.profiler.profile(record_shapes=True) as profiler:
        score(queries[: sizes.queries_per_pass])
        gpu_time.synchronize()
    tokens = sum(query.num_tokens for query in queries)
    count = device.OperationCount.from_model(model, SHAPES[case.shape]["vocab_size"])
    computed = sum(query.num_tokens - len(query.answers) for query in queries)
    predictors = sum(query.num_predictors for query in queries)
    operations = count.step_operations(computed, predictors) / 2  # there is no backward pass
    figures = {
        "users_per_s": len(queries) / seconds,
        "tokens_per_s": tokens / seconds,
        "tflops": operations / seconds / 1e12,
        "fraction_of_ceiling": operations / seconds / ceilings.bf16,
        "way": str(kind),
        "mean_score": float(np.mean(np.concatenate(scores))),
        **profile_figures(profiler, 1, seconds * min(sizes.queries_per_pass / len(queries), 1)),
    }
    return Measurement(len(queries) / seconds, figures, profiler)


def measure_resume(case: Case, sizes: Sizes, ceilings: gpu_time.Ceilings) -> Measurement:
    """Saves a checkpoint after two steps, and takes two more steps with and without a restart."""
    from cprec.runs import checkpoint  # needs the libraries of storage, which training does not

    samples = make_samples(sizes, 4 * sizes.batch, SHAPES[case.shape]["vocab_size"])
    batches = workload.worker_batches(samples, sizes.batch)

    def take_steps(engine: Engine, first: int) -> list[float]:
        recorder = Recorder(0)
        steps = [training_step(batch) for batch in batches[first : first + 2]]
        train(engine, steps, recorder, engine.micro_batch_spec, PAD_TOKEN, 0, first)
        return [record.loss for record in recorder.records]

    with tempfile.TemporaryDirectory() as folder:
        engine = build_engine(case, sizes)
        take_steps(engine, 0)
        began = time.perf_counter()
        checkpoint.save_training_state(engine.gather_state(), Path(folder))
        save_s = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        expected = take_steps(engine, 2)
        began = time.perf_counter()
        resumed = build_engine(case, sizes)
        resumed.restore_state(checkpoint.load_training_state(folder))
        restore_s = time.perf_counter() - began
        losses = take_steps(resumed, 2)
    figures = {
        "save_s": save_s,
        "saved_gb": size / 1e9,
        "restore_s": restore_s,
        "losses": expected,
        "losses_after_restart": losses,
        "largest_difference": max(abs(a - b) for a, b in zip(expected, losses, strict=True)),
    }
    return Measurement(size / 1e9 / save_s, figures, None)


MEASURES = {TRAINING: measure_training, SCORING: measure_scoring, RESUME: measure_resume}


def profile_figures(
    profiler: torch.profiler.profile, passes: int, seconds: float
) -> dict[str, Any]:
    """Returns where the time of a pass goes.

    Args:
        profiler: The profile of some passes.
        passes: Their number.
        seconds: What they took without the profiler.
    """
    by_kind, launched = gpu_time.seconds_by_kind(profiler)
    busy_s = sum(s for kind, s in by_kind.items() if kind != gpu_time.LORA_PRODUCTS)
    return {
        "ms_by_kind_and_pass": {
            **{kind: 1e3 * s / passes for kind, s in by_kind.items()},
            gpu_time.IDLE: 1e3 * max(seconds - busy_s, 0.0) / passes,
        },
        "kernels_per_pass": launched / passes,
    }


def measure(case: Case, sizes: Sizes, ceilings: gpu_time.Ceilings) -> Measurement:
    """Measures a case, with the memory and the compilations that it took."""
    gc.collect()
    torch._dynamo.reset()
    counters.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    measured = MEASURES[case.kind](case, sizes, ceilings)
    measured.figures.update(
        peak_gb=device.peak_memory_bytes(device.worker_device()) / 1e9,
        graphs_compiled=counters["stats"].get("unique_graphs", 0),
        recompilations=sum(counters["recompiles"].values()),
        seconds_in_all=time.perf_counter() - began,
    )
    return measured
