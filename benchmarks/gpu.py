"""One GPU, without Ray: useful tokens/s, TFLOP/s, the share of a matrix product's rate in the same run, and where the rest goes.

    python benchmarks/gpu.py --corpus out/corpus --tokenizer DIR       LLaMA-2-7B's shape, random weights, LoRA r = 8, bf16; --fp8, --no-compile, ...
    python benchmarks/gpu.py --toy                                     any machine: drawn samples, a tiny shape; it runs, but measures nothing
    python benchmarks/gpu.py ... --ray                                 and the same steps in a Ray actor

The steps are the platform's: its packing, engine (DeepSpeed) and loop. Without a corpus, lengths are drawn like those of the Amazon prompts.
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

from cprec.model import adapter, fp8
from cprec.config.recipe import ModelSettings, TrainSettings
from cprec.schedule.wsa import Phase
from cprec.encode.tokens import EncodedSample
from cprec.train import device
from cprec.train.engine import Engine, micro_batch_spec
from cprec.train.loop import Observer, StepRecord, TrainingStep, train

SEVEN_B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
TOY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
KINDS = {
    "attention": ("flash", "attention"),
    "matrix products": ("gemm", "mm", "cutlass", "nvjet"),
    "optimizer": ("adam",),
    "copies": ("memcpy", "copy"),
}


def samples(options: argparse.Namespace, vocabulary: int) -> list[EncodedSample]:
    """Prompts of the corpus, or ones of drawn tokens: lengths between 460 and 1,880 around 700 (toy: 20 to 60), 26 of them supervised (toy: 5)."""
    if options.corpus:
        return workload.Workload.of(
            options.corpus, options.samples, 32000, options.tokenizer
        ).samples()
    rng = np.random.default_rng(0)
    least, spread, most, answer = (20, 12, 60, 5) if options.toy else (460, 260, 1880, 26)
    lengths = np.minimum(least + rng.exponential(spread, options.samples), most).astype(int)
    return [
        EncodedSample(rng.integers(3, vocabulary, n).astype(np.int32), n - answer, 0)
        for n in lengths
    ]


def model(options: argparse.Namespace) -> torch.nn.Module:
    """Random weights, made where they are used."""
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if options.toy and not options.fp8 else torch.bfloat16
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    with place:
        base = LlamaForCausalLM(
            LlamaConfig(**(TOY if options.toy else SEVEN_B), max_position_embeddings=2048)
        )
    torch.set_default_dtype(before)
    trained = adapter.attach(base, ModelSettings(lora_rank=8, lora_dropout=0.0), 0).to(place)
    if options.fp8:
        print(f"FP8: {fp8.quantise_frozen_layers(trained)} frozen layers", flush=True)
    return trained


class Watch(Observer):
    """Keeps what the loop says of each step; profiles the last one."""

    def __init__(self, steps: int) -> None:
        self.records: list[StepRecord] = []
        self._last = steps - 1
        self.profiler = torch.profiler.profile()

    def on_step_end(self, record: StepRecord, step: TrainingStep, engine: Engine) -> None:
        self.records.append(record)
        if len(self.records) == self._last:
            self.profiler.start()
        if len(self.records) == self._last + 1:
            self.profiler.stop()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train some steps; the first ones warm up and compile, the last one is profiled; the others count."""
    network = model(options)
    settings = TrainSettings(
        zero_stage=0,
        pack_tokens=options.pack_tokens,
        compile=options.compile and torch.cuda.is_available(),
        recompute=options.recompute,
        global_batch=options.batch,
    )
    engine = Engine(network, settings, "fp32" if options.toy and not options.fp8 else "bf16")
    found = samples(options, 500 if options.toy else 32000)
    shares = workload.shares(found, options.batch)[: options.steps]

    def feed() -> Iterator[TrainingStep]:
        for index in range(options.steps):
            yield TrainingStep(shares[index % len(shares)], 1e-4, Phase.STABLE, 0, 0)

    watch = Watch(options.steps)
    train(engine, feed(), watch, micro_batch_spec(settings), 2, 0)
    counted = watch.records[options.warmup : -1]
    seconds, tokens = sum(r.step_s for r in counted), sum(r.batch.token_count for r in counted)
    rate = sum(r.operations for r in counted) / seconds
    size = 256 if options.toy else device.MATRIX_SIZE
    possible = device.measure_matmul_flops(
        engine.device, torch.float32 if options.toy else torch.bfloat16, size
    )
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "precision": "fp8" if options.fp8 else "fp32" if options.toy else "bf16",
        "compiled": settings.compile,
        "recomputed": engine.recomputes_activations,
        "tokens_per_s": tokens / seconds,
        "tflops": rate / 1e12,
        "matrix_tflops": possible / 1e12,
        "share_of_matrix_rate": rate / possible,
        "memory_gb": counted[-1].peak_memory_bytes / 1e9,
        "loss": counted[-1].loss,
        "seconds_by_kind": breakdown(watch.profiler, watch.records[-1].step_s),
    }


def breakdown(profiler: torch.profiler.profile, step_s: float) -> dict[str, float]:
    """Seconds of the device in the profiled step by kind of kernel; on a GPU what is left of the step is idle."""
    on_gpu = torch.cuda.is_available()
    found = dict.fromkeys([*KINDS, "other kernels"], 0.0)
    for event in profiler.key_averages():
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if on_gpu and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        name = event.key.lower()
        kind = next(
            (k for k, words in KINDS.items() if any(w in name for w in words)), "other kernels"
        )
        found[kind] += micros / 1e6
    return {**found, "idle": max(step_s - sum(found.values()), 0.0)} if on_gpu else found


def alone(options: argparse.Namespace) -> dict[str, Any]:
    """As the only worker of a process group."""
    workload.alone("nccl" if torch.cuda.is_available() else "gloo")
    return measure(options)


def in_ray(options: argparse.Namespace) -> dict[str, Any]:
    """The same in a Ray actor of a local session."""
    import ray

    ray.init(
        address="local",
        num_gpus=1 if torch.cuda.is_available() else 0,
        include_dashboard=False,
        log_to_driver=False,
    )
    task = ray.remote(
        num_gpus=1 if torch.cuda.is_available() else 0,
        runtime_env={"env_vars": {"PYTHONPATH": workload.PATH}},
    )(alone)
    try:
        found: dict[str, Any] = ray.get(task.remote(options))
    finally:
        ray.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", help="a built corpus; default: drawn samples")
    parser.add_argument(
        "--tokenizer",
        help="directory of a tokenizer, with --corpus; default: one trained on the titles",
    )
    parser.add_argument(
        "--toy", action="store_true", help="a tiny shape and short samples, to see it run"
    )
    parser.add_argument("--fp8", action="store_true", help="frozen base in FP8")
    parser.add_argument("--ray", action="store_true", help="in a Ray actor")
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
        help="activations in the backward pass",
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
            "--steps must exceed --warmup by 2: one step that counts, one that is profiled"
        )
    began = time.perf_counter()
    found = in_ray(options) if options.ray else alone(options)
    print(
        json.dumps(
            {name: round(v, 4) if isinstance(v, float) else v for name, v in found.items()},
            indent=1,
        )
    )
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
