"""Searches the learning rate of a fine-tuning with trials side by side on Ray Tune.

The recipe alone decides which trials there are, before any starts. So an interrupted search can be
resumed: trials that have ended are not trained again, and the others continue from their last
epoch.
"""

import os
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from cluster.console import Say
from cluster.errors import PlatformFault, RunError, UserError
from cluster.progress import Advance, track, without_stdout
from cluster.storage import exists, join, read_text, remove, write_text
from cprec.config.recipe import Recipe
from cprec.config.sections.finetuning import SearchSettings
from cprec.downstream.trial import Trial, conclude_trial, run_trial
from cprec.downstream.trial_records import TrialResult, find_result
from cprec.train.device import single_process_group

REFUSAL_FILE = "refused.txt"
"""File of a trial with several workers that ended with the user's error: the message."""


def trial_lrs(settings: SearchSettings, seed: int) -> tuple[float, ...]:
    """Returns the learning rates that a search tries.

    They are the grid or, with `search.draws`, random draws between its ends, uniform on a
    logarithmic scale and rounded to three digits.

    Args:
        settings: The recipe's section `search`.
        seed: Seed of the draws.
    """
    if not settings.draws:
        return tuple({f"{lr:g}": lr for lr in settings.lrs}.values())  # as trials are named
    low = np.log(min(settings.lrs))
    high = np.log(max(settings.lrs))
    lrs = np.exp(np.random.default_rng([seed, 0x5EA]).uniform(low, high, settings.draws))
    return tuple(dict.fromkeys(float(f"{lr:.3g}") for lr in lrs))


def best_lr(results: Sequence[TrialResult]) -> float:
    """Returns the learning rate with the highest HR@1 on validation, averaged over its seeds.

    Each seed counts with its best epoch. Of equal learning rates the lowest is returned.
    """
    hr1s_by_lr = {
        lr: [result.hr1 for result in results if result.lr == lr]
        for lr in sorted({result.lr for result in results})
    }
    return max(hr1s_by_lr, key=lambda lr: float(np.mean(hr1s_by_lr[lr])))


def lrs_within_noise(results: Sequence[TrialResult], samples: int) -> tuple[float, ...]:
    """Returns the other learning rates that the search cannot tell from the best one, ascending.

    Their mean HR@1 is at most 1.96 standard errors of the difference below the best mean. Each
    trial's HR@1 is taken as a fraction of the validation samples; trials that diverged are left
    out.

    Args:
        results: Trials of the search.
        samples: Validation samples that each trial was scored on.
    """
    best = best_lr(results)
    hr1s_by_lr = {
        lr: [result.hr1 for result in results if result.lr == lr and not result.diverged]
        for lr in sorted({result.lr for result in results})
    }
    means = {lr: float(np.mean(hr1s)) for lr, hr1s in hr1s_by_lr.items() if hr1s}
    if best not in means:
        return ()

    def variance(lr: float) -> float:
        return means[lr] * (1 - means[lr]) / (samples * len(hr1s_by_lr[lr]))

    return tuple(
        lr
        for lr in means
        if lr != best
        and means[best] - means[lr] <= 1.96 * float(np.sqrt(variance(best) + variance(lr)))
    )


def run_trials(
    trials: Sequence[Trial], settings: SearchSettings, stopper: str, say: Say
) -> list[TrialResult]:
    """Trains the trials that have not ended, inside a Ray session.

    After Ctrl-C, which is raised as KeyboardInterrupt, the next call continues every trial that has
    not ended.

    Args:
        trials: The trials.
        settings: The recipe's section `search`.
        stopper: Early stopping of bad trials: `none`, `asha` or `median`.
        say: Prints progress.

    Returns:
        The result of each trial, in the order of the trials.

    Raises:
        UserError: A trial failed with this error.
        PlatformFault: A trial failed with another error. Results of the other trials are kept.
    """
    unfinished = [trial for trial in trials if find_result(trial.uri) is None]
    if unfinished:
        recipe = unfinished[0].recipe  # the same for all trials
        max_concurrent = _max_concurrent(recipe)
        say(f"{len(unfinished)} of {len(trials)} trials to train, {max_concurrent} at a time")
        total = recipe.finetune.epochs * len(unfinished)
        with track("learning-rate search", say, total, "epochs") as advance:
            tuner = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(_run_in_tune, trials=unfinished), _trial_resources(recipe)
                ),
                param_space={"index": tune.grid_search(list(range(len(unfinished))))},
                tune_config=tune.TuneConfig(
                    metric="hr1",
                    mode="max",
                    scheduler=_build_scheduler(stopper, recipe.finetune.epochs),
                    max_concurrent_trials=max_concurrent,
                ),
                # A new name each time: which trials have ended is known from their own files.
                run_config=tune.RunConfig(
                    name=uuid.uuid4().hex[:12],
                    storage_path=join(os.path.dirname(unfinished[0].uri), "ray"),
                    verbose=0,
                    callbacks=[_EpochCounter(advance, recipe.finetune.epochs)],
                ),
            )
            # By default Tune catches the first Ctrl-C and returns as if the search were over.
            os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
            # Trials keep results of their own. Tune's log for TensorBoard, which nobody reads,
            # fails with a traceback where Python 3.12 ends after Ctrl-C.
            os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
            with without_stdout():
                results = tuner.fit()
        _raise_first_error(results)
    return [find_result(trial.uri) or conclude_stopped_trial(trial, stopper) for trial in trials]


class _EpochCounter(tune.Callback):
    """Advances by the epochs of all trials; one that ends earlier has left out its other epochs."""

    def __init__(self, advance: Advance, epochs: int) -> None:
        """Begins with no epoch.

        Args:
            advance: Takes how many more epochs are trained or left out.
            epochs: Epochs of a trial, at most.
        """
        self._advance, self._epochs = advance, epochs
        self._trained: dict[str, int] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Tune stores its callbacks. Who watches this process is not stored.
        return tune.Callback, ()

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
    ) -> None:
        """Takes the epoch that a trial has reached."""
        self._reach(trial.trial_id, int(result["epoch"]))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Takes the end of a trial."""
        self._reach(trial.trial_id, self._epochs)

    def _reach(self, trial: str, epoch: int) -> None:
        before = self._trained.get(trial, 0)
        if epoch > before:
            self._trained[trial] = epoch
            self._advance(epoch - before)


def conclude_stopped_trial(trial: Trial, stopper: str) -> TrialResult:
    """Writes and returns the result of a trial that Tune stopped early.

    Args:
        trial: The trial.
        stopper: Early stopping of the search, `search.stopper`.

    Raises:
        PlatformFault: The search has no stopper, so the trial ended without a reason.
    """
    if stopper == "none":
        raise PlatformFault(
            f"{trial.uri}: the trial was ended without an error and without a result, "
            "and search.stopper is none"
        )
    return conclude_trial(trial, stopped=True)


def _build_scheduler(stopper: str, epochs: int) -> TrialScheduler:
    """Builds Tune's scheduler for a value of `search.stopper`."""
    if stopper == "asha":
        return ASHAScheduler(
            time_attr="epoch", max_t=epochs + 1, grace_period=1, reduction_factor=2
        )
    if stopper == "median":
        return MedianStoppingRule(time_attr="epoch", grace_period=1, min_samples_required=2)
    return FIFOScheduler()


def _gpus_per_trial(recipe: Recipe) -> float:
    """Returns the GPUs of a trial with one worker."""
    return recipe.search.gpus_per_trial or float(recipe.train.gpus_per_worker)


def _trial_resources(recipe: Recipe) -> dict[str, float]:
    """Returns the resources of a trial's own process.

    With several workers this process only waits for them. Tune refuses an empty request, so it asks
    for a little memory.
    """
    return (
        {"cpu": recipe.train.cpus_per_worker, "gpu": _gpus_per_trial(recipe)}
        if recipe.workers == 1
        else {"memory": 2**20}
    )


def _max_concurrent(recipe: Recipe) -> int:
    """Returns how many trials fit into the cluster at a time.

    With more, worker groups that each got half of their workers would wait forever.
    """
    resources = ray.cluster_resources()
    room = resources.get("CPU", 1) // (recipe.workers * recipe.train.cpus_per_worker)
    if gpus := (
        _gpus_per_trial(recipe)
        if recipe.workers == 1
        else recipe.workers * recipe.train.gpus_per_worker
    ):
        room = min(room, resources.get("GPU", 0) // gpus)
    return max(1, int(min(room, recipe.search.concurrent or room)))


def _run_in_tune(config: dict[str, Any], trials: Sequence[Trial]) -> None:
    """Trains a trial inside Tune: in this process, or by a worker group of Ray Train."""
    trial: Trial = trials[config["index"]]
    recipe = trial.recipe
    if recipe.workers == 1:
        train_in_process(trial, tune.report)
        return
    gpus = recipe.train.gpus_per_worker
    refusal = join(trial.uri, REFUSAL_FILE)
    remove(refusal)  # of an earlier start
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
            storage_path=join(trial.uri, "ray"),
            failure_config=FailureConfig(max_failures=recipe.train.max_failures),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
    ).fit()
    if exists(refusal):
        raise RunError(read_text(refusal))


def _train_worker(config: dict[str, Any]) -> None:
    """Trains a trial as one worker of Ray Train.

    Ray starts the group again after whatever is raised here. After the user's error the next group
    ends at once.
    """
    trial: Trial = config["trial"]
    refusal = join(trial.uri, REFUSAL_FILE)
    if exists(refusal):
        return
    _prefer_cpu(trial.recipe)
    try:
        run_trial(trial, ray.train.report)
    except UserError as error:
        write_text(refusal, str(error))
        raise


def train_in_process(trial: Trial, report: Callable[[dict[str, Any]], None]) -> None:
    """Trains a trial in this process alone.

    Args:
        trial: The trial.
        report: Receives `hr1` and `epoch` after each epoch.
    """
    _prefer_cpu(trial.recipe)
    with single_process_group(
        "nccl" if _gpus_per_trial(trial.recipe) and torch.cuda.is_available() else "gloo"
    ):
        run_trial(trial, report)


def _prefer_cpu(recipe: Recipe) -> None:
    """Tells DeepSpeed to use the CPU if trials have no GPU."""
    if not _gpus_per_trial(recipe):
        os.environ["DS_ACCELERATOR"] = "cpu"


def _raise_first_error(results: "tune.ResultGrid") -> None:
    """Raises the first UserError of any trial as it is, else a PlatformFault for other errors."""
    errors = [error for error in results.errors if error is not None]
    for error in errors:
        # The innermost one: around it stands Ray's, of the same class, with the worker's traceback.
        for cause in reversed(_error_chain(error)):
            if isinstance(cause, UserError):
                raise cause
    if errors:
        root_cause = _error_chain(errors[0])[-1]
        raise PlatformFault(
            f"{len(errors)} trial(s) failed, the first with "
            f"{type(root_cause).__name__}: {root_cause}"
        )


def _error_chain(error: BaseException | None) -> list[BaseException]:
    """Returns an error and its causes, outermost first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = getattr(error, "cause", None) or error.__cause__
    return chain
