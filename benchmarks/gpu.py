"""Measures training and scoring on one GPU against the card's own ceilings, without Ray.

    python benchmarks/gpu.py                     all cases, in less than five minutes
    python benchmarks/gpu.py --only 7b-fp8 135m-full --profile profiles
    python benchmarks/gpu.py --toy               any machine, tiny shapes: shows that it runs
    python benchmarks/gpu.py --only 135m-full --ray   also in a Ray worker: the ratio

The models have the shapes of LLaMA-2-7B and SmolLM2-135M and random weights; samples have the
lengths of Amazon prompts and random tokens. The steps are the platform's own: packing, engine
(DeepSpeed) and loop. It needs PyTorch, transformers, PEFT, DeepSpeed and pydantic.

Each case prints useful and computed tokens/s, the share of the ceiling, milliseconds by kind of
kernel in a pass, planned and peak memory, and what was compiled. At the end stands the table of
docs/benchmarks.md.
"""

import argparse
import datetime
import gc
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import workload  # first: it makes the packages importable
from support import gpu_time
import numpy as np
import torch
import transformers
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from cprec.config.sections.model import ModelSettings
from cprec.config.sections.pretraining import TrainSettings
from cprec.encode.tokens import EncodedSample
from cprec.evaluation.candidate_rows import Query
from cprec.evaluation.candidate_scoring import score_queries
from cprec.evaluation.scoring_check import choose_scoring
from cprec.model import adapter
from cprec.model.kernels import flash_attention, fp8
from cprec.schedule.wsa import Phase
from cprec.stream.packing import divide
from cprec.stream.worker_batches import WorkerBatch
from cprec.train import device
from cprec.train.engine import Engine, compile_layers
from cprec.train.loop import Observer, StepRecord, TrainingStep, train

SHAPES = {
    "7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "135m": {**workload.SMOLLM2_SHAPE, "tie_word_embeddings": True},
    "toy": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
BATCHES = 3
"""Global batches that are trained in turn."""
WARMUP_STEPS = 2 * BATCHES
"""Steps that do not count: layers are compiled when a length of rows is new, and a pass of that
length is captured when it comes again."""
LR = 1e-4
PAD_TOKEN = 2


TRAINING, SCORING, RESUME = "training", "scoring", "resume"


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        shape: Name of the model's shape in `SHAPES`.
        kind: TRAINING, SCORING of candidates, or a save and a RESUME.
        rank: Rank of LoRA; 0 for full training.
        fp8: Whether the frozen base is in FP8.
        unit: Unit of the rate.
        target: The rate that one H200 is to reach; 0 for none.
    """

    shape: str
    kind: str = TRAINING
    rank: int = 0
    fp8: bool = False
    unit: str = "useful tokens/s"
    target: int = 0


CASES = {
    "7b-bf16": Case("7b", rank=8, target=20_000),
    "7b-fp8": Case("7b", rank=8, fp8=True, target=28_000),
    "135m-lora": Case("135m", rank=16, target=300_000),
    "135m-full": Case("135m", target=350_000),
    "135m-scoring": Case("135m", SCORING, unit="users/s", target=2_500),
    "135m-resume": Case("135m", RESUME, unit="GB/s saved"),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and with which settings.

    Attributes:
        batch: Samples of a global batch.
        steps: Steps that count.
        pack_tokens: Tokens of a packed row; None for the platform's choice.
        shortest: Tokens of the shortest sample.
        spread: Mean of the tokens beyond that, which are exponential.
        longest: Tokens of the longest sample.
        answer: Tokens of an answer.
        users: Users that are scored.
        queries_per_pass: Users of a pass, at most.
        compile: Whether layers are compiled.
        recompute: Whether activations are recomputed: auto, always or never.
    """

    batch: int = 128
    steps: int = 4
    pack_tokens: int | None = None
    shortest: int = 460
    spread: int = 240
    longest: int = 1880
    answer: int = 26
    users: int = 4000
    queries_per_pass: int = 48
    compile: bool = True
    recompute: str = "auto"


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


CANDIDATES = 20
TOY = {
    "batch": 8,
    "steps": 2,
    "pack_tokens": 256,
    "shortest": 20,
    "spread": 12,
    "longest": 60,
    "answer": 5,
    "users": 12,
    "queries_per_pass": 4,
}
"""Sizes for a CPU."""


def make_samples(sizes: Sizes, count: int, vocabulary: int) -> list[EncodedSample]:
    """Returns samples of random tokens with the lengths of Amazon prompts."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(sizes.shortest + rng.exponential(sizes.spread, count), sizes.longest)
    return [
        EncodedSample(rng.integers(3, vocabulary, n).astype(np.int32), n - sizes.answer, 0)
        for n in lengths.astype(int).tolist()
    ]


def make_queries(sizes: Sizes, vocabulary: int) -> list[Query]:
    """Returns prompts and candidates of random tokens; answers have 0.3 to 1.7 of `answer`."""
    rng = np.random.default_rng(1)
    spread = (max(1, round(0.3 * sizes.answer)), round(1.7 * sizes.answer))
    return [
        Query(
            sample.ids[: sample.answer_start].tolist(),
            [
                rng.integers(3, vocabulary, length).tolist()
                for length in rng.integers(*spread, CANDIDATES)
            ],
        )
        for sample in make_samples(sizes, sizes.users, vocabulary)
    ]


def build_model(case: Case) -> torch.nn.Module:
    """Builds the model with random weights, directly on the device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if computes_in_bf16(case) else torch.float32)
    torch.manual_seed(0)
    with device.worker_device():
        base = LlamaForCausalLM(LlamaConfig(**SHAPES[case.shape], max_position_embeddings=8192))
    torch.set_default_dtype(before)
    if case.kind == SCORING:
        return base.eval()
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
    useful = sum(record.batch.token_count for record in counted)
    computed = sum(record.computed_tokens + record.filled_tokens for record in counted)
    operations = sum(record.operations for record in counted) / seconds
    passes = len(passes_of_batches[(steps - 1) % len(batches)])
    figures = {
        "useful_tokens_per_s": useful / seconds,
        "computed_tokens_per_s": computed / seconds,
        "filled_percent": 100 * (1 - useful / computed),
        "tflops": operations / 1e12,
        "share_of_ceiling": operations / ((case.fp8 and ceilings.fp8) or ceilings.bf16),
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
    tokens = sum(query.token_count for query in queries)
    operations = tokens * device.OperationCount.from_model(model, 0).per_token / 2
    figures = {
        "users_per_s": len(queries) / seconds,
        "tokens_per_s": tokens / seconds,
        "tflops": operations / seconds / 1e12,
        "share_of_ceiling": operations / seconds / ceilings.bf16,
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


def measure_on_ray(case: Case, sizes: Sizes, ceilings: gpu_time.Ceilings) -> float:
    """Measures a case in a worker of a local Ray session; returns its rate."""
    import ray

    gpus = 1 if torch.cuda.is_available() else 0
    ray.init(address="local", num_gpus=gpus, include_dashboard=False, log_to_driver=False)

    @ray.remote(num_gpus=gpus, runtime_env={"env_vars": {"PYTHONPATH": workload.PYTHON_PATH}})
    def rate() -> float:
        workload.init_single_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return measure(case, sizes, ceilings).rate

    try:
        return float(ray.get(rate.remote()))
    finally:
        ray.shutdown()


def rounded(value: Any) -> Any:
    """Returns figures with four significant digits."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def print_table(measured: dict[str, Measurement]) -> None:
    """Prints the table of docs/benchmarks.md."""
    print("\n| case | rate | target | share of the ceiling | filled | peak memory |")
    print("|---|---|---|---|---|---|")
    for name, measurement in measured.items():
        case, figures = CASES[name], measurement.figures
        share, filled = (figures.get(key) for key in ("share_of_ceiling", "filled_percent"))
        print(
            f"| {name} | {measurement.rate:,.4g} {case.unit} "
            f"| {f'{case.target:,}' if case.target else ''} "
            f"| {'' if share is None else f'{share:.0%}'} "
            f"| {'' if filled is None else f'{filled:.1f} %'} | {figures['peak_gb']:.1f} GB |"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", default=list(CASES))
    parser.add_argument("--toy", action="store_true", help="tiny shapes, to see it run on a CPU")
    parser.add_argument("--profile", type=Path, help="folder that takes a table of kernels a case")
    parser.add_argument("--ray", action="store_true", help="measure each case in a Ray worker too")
    parser.add_argument("--out", type=Path, help="file that takes the figures as JSON")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="compile the layers (default: on a GPU)",
    )
    parser.add_argument("--recompute", choices=("auto", "always", "never"), default="auto")
    for name in ("batch", "steps", "pack-tokens", "users", "queries-per-pass"):
        parser.add_argument(f"--{name}", type=int)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    began = time.perf_counter()
    given = {
        name: value
        for name in Sizes.__dataclass_fields__
        if (value := getattr(options, name, None)) is not None
    }
    sizes = Sizes(**{**(TOY if options.toy else {}), **given})
    workload.init_single_process_group("nccl" if torch.cuda.is_available() else "gloo")
    on_gpu = torch.cuda.is_available()
    about = {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "attention": flash_attention.kernel_name() if on_gpu else "sdpa",
    }
    ceilings = gpu_time.measure_ceilings(device.worker_device(), options.toy)
    print(json.dumps(rounded({**about, **vars(ceilings)}), indent=1), flush=True)
    measured: dict[str, Measurement] = {}
    for name in options.only:
        case = CASES[name]
        if options.toy:
            case = replace(case, shape="toy")
        try:
            measured[name] = measure(case, sizes, ceilings)
        except ModuleNotFoundError as error:
            print(f"{name}: left out, {error}", flush=True)
            continue
        if options.ray:
            ray_rate = measure_on_ray(case, sizes, ceilings)
            measured[name].figures["ray_against_bare"] = ray_rate / measured[name].rate
        print(f"{name}: {json.dumps(rounded(measured[name].figures), indent=1)}", flush=True)
        if options.profile and (profiler := measured[name].profiler):
            options.profile.mkdir(parents=True, exist_ok=True)
            table = profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=60)
            (options.profile / f"{name}.txt").write_text(table)
    if options.out:
        figures = {
            name: {"rate": measurement.rate, **measurement.figures}
            for name, measurement in measured.items()
        }
        report = {"about": about, "ceilings": vars(ceilings), "cases": figures}
        options.out.write_text(json.dumps(rounded(report), indent=1))
    print_table(measured)
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
