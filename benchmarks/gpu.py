"""Measures training on one GPU: tokens/s, TFLOP/s, and where the time goes.

    python benchmarks/gpu.py --corpus out/corpus --tokenizer DIR
    python benchmarks/gpu.py --toy      any machine, a tiny shape: shows that it runs
    python benchmarks/gpu.py ... --ray  the same steps in a Ray worker

The first trains LLaMA-2-7B's shape with random weights, LoRA of rank 8 and bf16; --fp8,
--no-compile and others vary it. The steps are the platform's own: packing, engine (DeepSpeed) and
loop. TFLOP/s are also given as a fraction of what a matrix product reaches in the same process.
Without a corpus, the lengths of the samples are drawn like those of the Amazon prompts.
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import workload  # first: it makes the packages importable
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cprec.config.recipe import ModelSettings, TrainSettings
from cprec.encode.tokens import EncodedSample
from cprec.model import adapter, fp8
from cprec.schedule.wsa import Phase
from cprec.train import device
from cprec.train.engine import Engine
from cprec.train.loop import Observer, StepRecord, TrainingStep, train

LLAMA_7B_SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
TOY_SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
KERNEL_KINDS = {
    "attention": ("flash", "attention"),
    "matrix products": ("gemm", "mm", "cutlass", "nvjet"),
    "optimizer": ("adam",),
    "copies": ("memcpy", "copy"),
}
"""Parts of the names of kernels, by what the kernels do."""
OTHER_KERNELS = "other kernels"


def make_samples(options: argparse.Namespace, vocabulary: int) -> list[EncodedSample]:
    """Returns prompts of the corpus, or samples of random tokens.

    Random samples have 460 to 1,880 tokens, around 700, of which 26 are supervised; with --toy,
    20 to 60 tokens, of which 5 are supervised.
    """
    if options.corpus:
        return workload.Workload.from_corpus(
            options.corpus, options.samples, 32000, options.tokenizer
        ).encode_samples()
    rng = np.random.default_rng(0)
    shortest, spread, longest, answer = (20, 12, 60, 5) if options.toy else (460, 260, 1880, 26)
    lengths = shortest + rng.exponential(spread, options.samples)
    return [
        EncodedSample(rng.integers(3, vocabulary, length).astype(np.int32), length - answer, 0)
        for length in np.minimum(lengths, longest).astype(int)
    ]


def build_model(options: argparse.Namespace) -> torch.nn.Module:
    """Builds the model with random weights, directly on the device that trains it."""
    on_device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if options.toy and not options.fp8 else torch.bfloat16
    dtype_before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    with on_device:
        base = LlamaForCausalLM(
            LlamaConfig(
                **(TOY_SHAPE if options.toy else LLAMA_7B_SHAPE), max_position_embeddings=2048
            )
        )
    torch.set_default_dtype(dtype_before)
    settings = ModelSettings(lora_rank=8, lora_dropout=0.0)
    model = adapter.attach(base, settings, 0).to(on_device)
    if options.fp8:
        print(f"FP8: {fp8.quantise_frozen_layers(model)} frozen layers", flush=True)
    return model


class StepRecorder(Observer):
    """Keeps the record of every step, and profiles the last one."""

    def __init__(self, steps: int) -> None:
        self.records: list[StepRecord] = []
        self._steps = steps
        self.profiler = torch.profiler.profile()

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        self.records.append(record)
        if len(self.records) == self._steps - 1:
            self.profiler.start()
        if len(self.records) == self._steps:
            self.profiler.stop()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trains some steps and returns the figures.

    The first steps warm up and compile, and the last one is profiled; the others count.
    """
    network = build_model(options)
    settings = TrainSettings(
        zero_stage=0,
        pack_tokens=options.pack_tokens,
        compile=options.compile and torch.cuda.is_available(),
        recompute=options.recompute,
        global_batch=options.batch,
    )
    engine = Engine(network, settings, "fp32" if options.toy and not options.fp8 else "bf16")
    samples = make_samples(options, 500 if options.toy else 32000)
    batches = workload.worker_batches(samples, options.batch)[: options.steps]

    def feed() -> Iterator[TrainingStep]:
        for index in range(options.steps):
            yield TrainingStep(batches[index % len(batches)], 1e-4, Phase.STABLE, 0, 0)

    recorder = StepRecorder(options.steps)
    train(engine, feed(), recorder, engine.micro_batch_spec, 2, 0)
    counted = recorder.records[options.warmup : -1]
    seconds = sum(record.step_s for record in counted)
    tokens = sum(record.batch.token_count for record in counted)
    flops = sum(record.operations for record in counted) / seconds
    matrix_flops = device.measure_matmul_flops(
        engine.device,
        torch.float32 if options.toy else torch.bfloat16,
        256 if options.toy else device.MATRIX_SIZE,
    )
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "precision": "fp8" if options.fp8 else "fp32" if options.toy else "bf16",
        "compiled": settings.compile,
        "recomputed": engine.recomputes_activations,
        "tokens_per_s": tokens / seconds,
        "tflops": flops / 1e12,
        "matrix_tflops": matrix_flops / 1e12,
        "share_of_matrix_rate": flops / matrix_flops,
        "memory_gb": counted[-1].peak_memory_bytes / 1e9,
        "loss": counted[-1].loss,
        "seconds_by_kind": seconds_by_kind(recorder.profiler, recorder.records[-1].step_s),
    }


def seconds_by_kind(profiler: torch.profiler.profile, step_s: float) -> dict[str, float]:
    """Returns the device's seconds in the profiled step by kind of kernel; on a GPU, also `idle`.

    Args:
        profiler: The profile of one step.
        step_s: Wall time of that step [seconds].
    """
    on_gpu = torch.cuda.is_available()
    seconds = dict.fromkeys([*KERNEL_KINDS, OTHER_KERNELS], 0.0)
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if on_gpu and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        kernel = event.key.lower()
        kind = next(
            (kind for kind, parts in KERNEL_KINDS.items() if any(p in kernel for p in parts)),
            OTHER_KERNELS,
        )
        seconds[kind] += microseconds / 1e6
    if on_gpu:
        seconds["idle"] = max(step_s - sum(seconds.values()), 0.0)
    return seconds


def measure_alone(options: argparse.Namespace) -> dict[str, Any]:
    """Measures in this process, as the only worker of a process group."""
    workload.init_single_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return measure(options)


def measure_on_ray(options: argparse.Namespace) -> dict[str, Any]:
    """Measures in a worker of a local Ray session."""
    import ray

    gpus = 1 if torch.cuda.is_available() else 0
    ray.init(address="local", num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    task = ray.remote(
        num_gpus=gpus, runtime_env={"env_vars": {"PYTHONPATH": workload.PYTHON_PATH}}
    )(measure_alone)
    try:
        figures: dict[str, Any] = ray.get(task.remote(options))
    finally:
        ray.shutdown()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", help="a built corpus; default: samples of random tokens")
    parser.add_argument(
        "--tokenizer",
        help="directory of a tokenizer, with --corpus; default: one trained on the titles",
    )
    parser.add_argument(
        "--toy", action="store_true", help="a tiny shape and short samples, to see it run"
    )
    parser.add_argument("--fp8", action="store_true", help="frozen base in FP8")
    parser.add_argument("--ray", action="store_true", help="measure in a Ray worker")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="torch.compile the layers, on a GPU",
    )
    parser.add_argument(
        "--recompute",
        choices=("auto", "always", "never"),
        default="auto",
        help="recompute activations in the backward pass",
    )
    for name, value in (
        ("samples", 1024),
        ("batch", 128),
        ("pack-tokens", 8192),
        ("steps", 12),
        ("warmup", 4),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    if options.steps < options.warmup + 2:
        parser.error(
            f"--steps {options.steps} must exceed --warmup {options.warmup} by at least 2:"
            " one step that counts and one that is profiled"
        )
    began = time.perf_counter()
    figures = measure_on_ray(options) if options.ray else measure_alone(options)
    rounded = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    print(json.dumps(rounded, indent=1))
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
