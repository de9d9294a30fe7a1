"""Trials side by side on Ray Tune. Which trials there are is decided before any starts, from the recipe alone, so that an interrupted search goes on:
what ended is not trained again, and what did not goes on from its last epoch."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from torch._C._distributed_c10d import HashStore

from cluster.console import Say
from cluster.errors import PlatformFault, UserError
from cluster.storage import join
from cprec.config.recipe import Recipe, SearchSettings
from cprec.downstream import trial as trials_of
from cprec.downstream.trial import Trial, TrialResult


def trial_lrs(settings: SearchSettings, seed: int) -> tuple[float, ...]:
    """The learning rates of a search: the grid, or draws that are even on a logarithmic scale between its ends, to three digits."""
    if not settings.draws:
        return tuple(dict.fromkeys(settings.lrs))
    low, high = np.log(min(settings.lrs)), np.log(max(settings.lrs))
    drawn = np.exp(np.random.default_rng([seed, 0x5EA]).uniform(low, high, settings.draws))
    return tuple(dict.fromkeys(float(f"{rate:.3g}") for rate in drawn))


def best_lr(results: Sequence[TrialResult]) -> float:
    """The rate with the highest mean of the best HR@1 on validation over its seeds; of equal ones the lowest."""
    by_rate = {
        rate: [t.hr1 for t in results if t.rate == rate]
        for rate in sorted({t.rate for t in results})
    }
    return max(by_rate, key=lambda rate: float(np.mean(by_rate[rate])))


def run_trials(
    trials: Sequence[Trial], settings: SearchSettings, stopper: str, say: Say
) -> list[TrialResult]:
    """How the trials ended, in their order; those that have not ended are trained, inside a Ray session.

    Raises a trial's UserError as it was raised, PlatformFault for anything else; trials that ended are kept. Ctrl-C is KeyboardInterrupt, and every
    trial that has not ended goes on at the next start.
    """
    waiting = [t for t in trials if trials_of.find_result(t.uri) is None]
    if waiting:
        say(
            f"{len(waiting)} of {len(trials)} trials to train, {_max_concurrent(waiting[0].recipe)} at a time"
        )
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_run_in_tune, trials=waiting),
                _trial_resources(waiting[0].recipe),
            ),
            param_space={"index": tune.grid_search(list(range(len(waiting))))},
            tune_config=tune.TuneConfig(
                metric="hr1",
                mode="max",
                scheduler=_build_scheduler(stopper, waiting[0].recipe.finetune.epochs),
                max_concurrent_trials=_max_concurrent(waiting[0].recipe),
            ),
            # A name of its own: what ended is known from the trials' own files, never from Tune's.
            run_config=tune.RunConfig(
                name=uuid.uuid4().hex[:12],
                storage_path=join(os.path.dirname(waiting[0].uri), "ray"),
                verbose=0,
            ),
        )
        # Otherwise Tune takes the first Ctrl-C for itself, and returns as if the search were over.
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        with contextlib.redirect_stdout(None):
            results = tuner.fit()
        _raise_first_error(results)
    return [trials_of.find_result(t.uri) or conclude_stopped_trial(t, stopper) for t in trials]


def conclude_stopped_trial(trial: Trial, stopper: str) -> TrialResult:
    """The end of a trial that Tune ended before it did so itself. Raises PlatformFault where there is no stopper that may do that."""
    if stopper == "none":
        raise PlatformFault(
            f"{trial.uri}: the trial was ended without an error and without a result, and search.stopper is none"
        )
    return trials_of.conclude_trial(trial, stopped=True)


def _build_scheduler(stopper: str, epochs: int) -> TrialScheduler:
    if stopper == "asha":
        return ASHAScheduler(
            time_attr="epoch", max_t=epochs + 1, grace_period=1, reduction_factor=2
        )
    if stopper == "median":
        return MedianStoppingRule(time_attr="epoch", grace_period=1, min_samples_required=2)
    return FIFOScheduler()


def _gpus_per_trial(recipe: Recipe) -> float:
    """GPUs of a trial with one worker."""
    return recipe.search.gpus_per_trial or float(recipe.train.gpus_per_worker)


def _trial_resources(recipe: Recipe) -> dict[str, float]:
    """Of a trial's own process: with several workers it only waits for them. Tune refuses to ask for nothing, hence a little memory."""
    return (
        {"cpu": recipe.train.cpus_per_worker, "gpu": _gpus_per_trial(recipe)}
        if recipe.workers == 1
        else {"memory": 2**20}
    )


def _max_concurrent(recipe: Recipe) -> int:
    """Trials that fit at a time. Worker groups that each got half of what they need would wait for ever."""
    have = ray.cluster_resources()
    room = have.get("CPU", 1) // (recipe.workers * recipe.train.cpus_per_worker)
    if gpus := (
        _gpus_per_trial(recipe)
        if recipe.workers == 1
        else recipe.workers * recipe.train.gpus_per_worker
    ):
        room = min(room, have.get("GPU", 0) // gpus)
    return max(1, int(min(room, recipe.search.concurrent or room)))


def _run_in_tune(config: dict[str, Any], trials: Sequence[Trial]) -> None:
    """A trial in Tune: alone in this process, or a worker group of Ray Train."""
    trial = trials[config["index"]]
    recipe = trial.recipe
    if recipe.workers == 1:
        train_in_process(trial, tune.report)
        return
    gpus = recipe.train.gpus_per_worker
    TorchTrainer(
        _train_worker,
        train_loop_config={"trial": trial},
        scaling_config=ScalingConfig(
            num_workers=recipe.workers,
            use_gpu=gpus > 0,
            resources_per_worker={
                "CPU": recipe.train.cpus_per_worker,
                **({"GPU": gpus} if gpus else {}),
            },
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=join(trial.place, "ray"),
            failure_config=FailureConfig(max_failures=recipe.train.max_failures),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
    ).fit()


def _train_worker(config: dict[str, Any]) -> None:
    trial: Trial = config["trial"]
    _prefer_cpu(trial.recipe)
    trials_of.run_trial(trial, ray.train.report)


def train_in_process(trial: Trial, report: Callable[[dict[str, Any]], None]) -> None:
    """Train a trial in this process, in a process group of one."""
    _prefer_cpu(trial.recipe)
    with single_process_group(
        "nccl" if _gpus_per_trial(trial.recipe) and torch.cuda.is_available() else "gloo"
    ):
        trials_of.run_trial(trial, report)


@contextlib.contextmanager
def single_process_group(backend: str) -> Iterator[None]:
    """A process group of this process alone. An engine that is closed takes it along."""
    # DeepSpeed reads them even where the group is there already.
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0"
    )
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _prefer_cpu(recipe: Recipe) -> None:
    if not _gpus_per_trial(recipe):
        os.environ["DS_ACCELERATOR"] = "cpu"


def _raise_first_error(results: "tune.ResultGrid") -> None:
    errors = [error for error in results.errors if error is not None]
    for error in errors:
        for cause in _error_chain(error):
            if isinstance(cause, UserError):
                raise cause
    if errors:
        last = _error_chain(errors[0])[-1]
        raise PlatformFault(
            f"{len(errors)} trial(s) failed, the first with {type(last).__name__}: {last}"
        )


def _error_chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = getattr(error, "cause", None) or error.__cause__
    return found
