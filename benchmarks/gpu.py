"""Measures training and scoring on one GPU against the card's own ceilings, without Ray.

    python benchmarks/gpu.py                     all cases, in less than five minutes
    python benchmarks/gpu.py --only 7b-fp8 135m-full --profile profiles
    python benchmarks/gpu.py --toy               any machine, tiny shapes: shows that it runs
    python benchmarks/gpu.py --only 135m-full --ray   also in a Ray worker: the ratio

The models have the shapes of LLaMA-2-7B and SmolLM2-135M and random weights; samples have the
lengths of Amazon prompts and random tokens. The steps are the platform's own: packing, engine
(DeepSpeed) and loop. It needs PyTorch, transformers, PEFT, DeepSpeed and pydantic.

Each case prints useful and computed tokens/s, the fraction of the ceiling, milliseconds by kind of
kernel in a pass, planned and peak memory, and what was compiled. At the end stands the table of
docs/benchmarks.md.
"""

import argparse
import datetime
import gc
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from support import workload  # first: it makes the packages importable
from support import gpu_time
from support.gpu_cases import CASES, TOY, Case, Sizes
from support.gpu_measures import Measurement, measure
import torch
import transformers

from cprec.model.kernels import flash_attention
from cprec.train import device


def measure_on_ray(case: Case, sizes: Sizes, ceilings: gpu_time.Ceilings) -> float:
    """Measures a case in a worker of a local Ray session; returns its rate."""
    import ray

    gpus = 1 if torch.cuda.is_available() else 0
    if gpus:  # the worker builds the same model on the same GPU
        gc.collect()
        torch.cuda.empty_cache()
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
    print("\n| case | rate | target | fraction of the ceiling | filled | peak memory |")
    print("|---|---|---|---|---|---|")
    for name, measurement in measured.items():
        case, figures = CASES[name], measurement.figures
        fraction, filled = (figures.get(key) for key in ("fraction_of_ceiling", "filled_percent"))
        print(
            f"| {name} | {measurement.rate:,.4g} {case.unit} "
            f"| {f'{case.target:,}' if case.target else ''} "
            f"| {'' if fraction is None else f'{fraction:.0%}'} "
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
