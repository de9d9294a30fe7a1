"""Computes a step by the workflow of its job, in this process and in one Ray session.

Everything that jobs leave is below `<storage>/reproduction/runs/`, in a run of the step's name and
digest. So a step that was killed goes on as its job would, and steps of other inputs are others.
"""

import posixpath
import time
from collections.abc import Mapping
from contextlib import ExitStack

from cluster.console import Say
from cluster.errors import PlatformFault, RunError
from cluster.ray_session import ray_session
from cluster.storage import absolute_uri, exists, join
from corpus.store.tables import SAMPLES, Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import iter_keys
from cprec.config.sections.pretraining import ScheduleSettings
from cprec.downstream.search_plan import FRESH
from cprec.downstream.trial_records import EpochResult, TrialResult, read_history
from cprec.reproduction.results import (
    RUNS_FOLDER,
    CorpusContent,
    Cost,
    DomainCounts,
    KeptResults,
    PretrainContent,
    ScoreContent,
    StepContent,
    StepResult,
    TuneContent,
    TunedSeed,
)
from cprec.reproduction.steps import Kind, Task
from cprec.runs import checkpoint
from cprec.runs.run_records import read_run_records
from cprec.schedule.wsa import Mode
from cprec.tracking.registry import Registry
from cprec.workflows.build_corpus import build_corpus, preview_statistics
from cprec.workflows.evaluate import predictions_uri, run_evaluation
from cprec.workflows.evaluation.plan import plan_evaluation
from cprec.workflows.finetune import search_and_register
from cprec.workflows.pretrain import pretrain

Parents = Mapping[str, StepResult]


class Executor:
    """Computes steps; a context manager, which holds the Ray session of all of them."""

    def __init__(self, recipe: Recipe, folder: str, kept: KeptResults, say: Say) -> None:
        """Describes the steps; nothing starts yet.

        Args:
            recipe: The recipe.
            folder: The reproduction's folder.
            kept: Takes the results.
            say: Takes lines of progress of the jobs.
        """
        self._recipe = recipe
        self._runs = join(folder, RUNS_FOLDER)
        self._kept = kept
        self._say = say
        self._session = ExitStack()
        self._session_is_open = False

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()

    def compute(self, task: Task, parents: Parents) -> StepResult:
        """Computes and keeps a step, given the results of its parents by name."""
        began, started = time.time(), time.monotonic()
        if task.kind is not Kind.CORPUS:
            self._open_session()
        match task.kind:
            case Kind.CORPUS:
                content: StepContent = self._build_corpus()
            case Kind.PRETRAIN:
                content = self._pretrain(task, parents)
            case Kind.TUNE:
                content = self._tune(task, parents)
            case Kind.SCORE | Kind.GENERATE:
                content = self._score(task, parents)
        seconds = time.monotonic() - started
        return self._kept.keep(task.step, content, round(began, 3), round(seconds, 3))

    def _open_session(self) -> None:
        """Opens one Ray session for all steps: each of them would start its own otherwise."""
        if self._session_is_open:
            return
        recipe = self._recipe
        cpus = max(recipe.logical_cpus, recipe.workers * recipe.train.cpus_per_worker)
        self._session.enter_context(ray_session(recipe.cluster.address, cpus))
        self._session_is_open = True

    def _build_corpus(self) -> CorpusContent:
        """Opens the corpus of the recipe; a missing one is built first."""
        recipe = self._recipe
        if not exists(join(absolute_uri(recipe.corpus), SAMPLES)):
            build_corpus(recipe, self._say)
        corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
        statistics = corpus.statistics()
        return CorpusContent(
            uri=corpus.uri,
            fingerprint=corpus.fingerprint,
            version=corpus.version,
            domains={
                name: DomainCounts.from_json(counts)
                for name, counts in statistics["domains"].items()
            },
            mixed_samples=statistics["mixed"]["samples"],
        )

    def _pretrain(self, task: Task, parents: Parents) -> PretrainContent:
        """Pre-trains a variant."""
        if task.pretraining is None:
            raise PlatformFault(f"{task.step.name} has no variant of pre-training")
        corpus = open_kept_corpus(parents)
        recipe = self._run_recipe(task, corpus)
        domains = tuple(task.step.inputs["domains"])
        train, share = recipe.train, task.pretraining.share
        if share < 1:
            counts = corpus.statistics()["domains"]
            available = sum(counts[name]["splits"]["train"] for name in domains)
            whole = min(available, train.max_samples or available)
            train = train.model_copy(update={"max_samples": max(1, round(share * whole))})
        recipe = recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"domains": domains}),
                "schedule": schedule_of(recipe.schedule, task.pretraining.mode),
                "train": train,
            }
        )
        # The digest in the run's name stands for the keys that matter to it.
        result = pretrain(recipe, corpus, [key.name for key in iter_keys()], self._say)
        steps = read_run_records(result.run_uri).steps
        return PretrainContent(
            run=result.run_uri,
            checkpoint=checkpoint.latest_uri(result.run_uri),
            cost=Cost(
                samples=sum(step.batch_samples for step in steps),
                tokens=sum(step.tokens for step in steps),
                seconds=sum(step.step_s + step.data_wait_s for step in steps),
                epochs=1,
                memory_gb=max(step.memory_gb for step in steps),
            ),
        )

    def _tune(self, task: Task, parents: Parents) -> TuneContent:
        """Searches the learning rate of a model on a domain, and trains the best with its seeds."""
        corpus = open_kept_corpus(parents)
        recipe = self._run_recipe(task, corpus)
        start = next(
            (
                result.content.checkpoint
                for result in parents.values()
                if isinstance(result.content, PretrainContent)
            ),
            FRESH,
        )
        if task.model is None:
            raise PlatformFault(f"{task.step.name} has no model")
        # As many trials at a time as there are workers: trials need no collective then.
        recipe = recipe.model_copy(
            update={
                "workers": 1,
                "finetune": recipe.finetune.model_copy(
                    update={"domain": task.domain, "start": start, "name": task.model.name}
                ),
                "search": recipe.search.model_copy(
                    update={"concurrent": recipe.search.concurrent or self._recipe.workers}
                ),
            }
        )
        result = search_and_register(recipe, Registry.from_recipe(recipe), self._say)
        hr1s: dict[str, list[float]] = {}
        for trial in result.trials:
            hr1s.setdefault(f"{trial.lr:g}", []).append(trial.hr1)
        return TuneContent(
            search=posixpath.dirname(result.plot_uri),
            lr=result.lr,
            hr1_by_lr={lr: sum(values) / len(values) for lr, values in hr1s.items()},
            seeds=[_tuned_seed(trial) for trial in result.winner_trials],
        )

    def _score(self, task: Task, parents: Parents) -> ScoreContent:
        """Scores a model on the test split of a domain, or lets it generate answers."""
        if task.model is None:
            raise PlatformFault(f"{task.step.name} has no model")
        generated = task.kind is Kind.GENERATE
        corpus = open_kept_corpus(parents)
        recipe = self._run_recipe(task, corpus)
        users = recipe.evaluate.max_users
        if generated:
            limit = recipe.reproduce.generated_users
            users = limit if users is None else min(users, limit)
        recipe = recipe.model_copy(
            update={
                "evaluate": recipe.evaluate.model_copy(
                    update={
                        "domain": task.domain,
                        "split": "test",
                        "mode": "generate" if generated else "score",
                        "candidates": "sampled",
                        "from_day": None,
                        "to_day": None,
                        "max_users": users,
                    }
                )
            }
        )
        names = _checkpoints(parents) or [task.model.name]
        registry = Registry.from_recipe(recipe)
        plan = plan_evaluation(recipe, registry, names, self._say)
        run_evaluation(plan, registry, self._say)
        return ScoreContent(
            predictions=[predictions_uri(plan, model) for model in plan.models],
            generated=generated,
        )

    def _run_recipe(self, task: Task, corpus: Corpus) -> Recipe:
        """Returns the recipe of a step's run."""
        recipe = self._recipe
        return recipe.model_copy(
            update={
                "run": self._kept.run_name(task.step),
                "storage": self._runs,
                "corpus": corpus.uri,
                "corpus_version": corpus.version,
                "continue_from": None,
                "branch": False,
                # Tables do without the perplexity of a text.
                "evaluate": recipe.evaluate.model_copy(update={"text": None}),
                "mlflow": recipe.mlflow.model_copy(
                    update={"model": f"{recipe.mlflow.model}-reproduction"}
                ),
            }
        )


def schedule_of(schedule: ScheduleSettings, mode: Mode) -> ScheduleSettings:
    """Returns the schedule of a variant of pre-training."""
    # Workers refuse a share of annealing where nothing is annealed on.
    share = schedule.annealing_share if mode.anneals_on_mixed else None
    update = {"mode": mode, "hold_open": False, "annealing_share": share}
    return schedule.model_copy(update=update)


def check_corpus(recipe: Recipe, result: StepResult | None, say: Say) -> None:
    """Checks the corpus of a reproduction, or the data that it would be built from. Writes nothing.

    Args:
        recipe: The recipe.
        result: The result of the step that made it; None where it has none yet.
        say: Takes lines of progress.

    Raises:
        UserError: The corpus or the data cannot be used.
    """
    if result is not None:
        open_kept_corpus({Kind.CORPUS: result})
    elif exists(join(absolute_uri(recipe.corpus), SAMPLES)):
        Corpus.open(recipe.corpus, recipe.corpus_version)
    else:
        preview_statistics(recipe, say)


def open_kept_corpus(parents: Parents) -> Corpus:
    """Opens the corpus of a reproduction, at the version that its results are from.

    Raises:
        CorpusError: It is not there any more.
        RunError: Another corpus is there now.
    """
    content = parents[Kind.CORPUS].content
    if not isinstance(content, CorpusContent):
        raise PlatformFault(f"the result of {Kind.CORPUS} is a {content.kind}")
    corpus = Corpus.open(content.uri, content.version)
    if corpus.fingerprint != content.fingerprint:
        raise RunError(
            f"{corpus.uri}: this is corpus {corpus.fingerprint}, and the results that are kept "
            f"are from {content.fingerprint}; give another --storage, or that --corpus"
        )
    return corpus


def _checkpoints(parents: Parents) -> list[str]:
    """Returns the checkpoints that parents have trained: one per seed, or the pre-trained one."""
    found: list[str] = []
    for result in parents.values():
        if isinstance(result.content, TuneContent):
            found += [seed.checkpoint for seed in result.content.seeds]
        elif isinstance(result.content, PretrainContent):
            found.append(result.content.checkpoint)
    return found


def _tuned_seed(trial: TrialResult) -> TunedSeed:
    """Returns a trial as one seed of a fine-tuned model."""
    return TunedSeed(
        seed=trial.seed,
        checkpoint=trial.checkpoint,
        epoch=trial.epoch,
        hr1=trial.hr1,
        cost=_cost(read_history(trial.checkpoint)),
    )


def _cost(epochs: list[EpochResult]) -> Cost | None:
    """Returns what the epochs of a trial cost up to its best; None where nobody noted it."""
    if not all("seconds" in epoch for epoch in epochs):
        return None
    return Cost(
        samples=epochs[-1]["samples"],
        tokens=sum(epoch["tokens"] for epoch in epochs),
        seconds=sum(epoch["seconds"] for epoch in epochs),
        epochs=len(epochs),
        memory_gb=max(epoch["memory_gb"] for epoch in epochs),
    )
