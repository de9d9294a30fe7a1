"""Continual pre-training: corpus -> plan -> training -> audit -> registered version and report."""

from collections.abc import Collection

from cluster.console import Say
from cluster.ray_session import ray_session
from cluster.storage import absolute_uri
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.model.base_uri import locate_base
from cprec.runs.recipe_lock import check_unchanged, lock
from cprec.runs.records import PerplexityMeasured, TraceRow, run_folder
from cprec.runs.restart import find_last_checkpoint
from cprec.runs.run_plan import RunPlan, resolve_run_plan
from cprec.runs.status import claim, require_unclaimed
from cprec.tracking.live_report import LiveReport, step_metrics
from cprec.tracking.progress import Progress
from cprec.tracking.registry import Registry
from cprec.tracking.tracker import Tracker
from cprec.train.distributed import driver
from cprec.workflows.finish_run import RunResult, finish_run
from cprec.workflows.models import check_tokenizer
from cprec.workflows.prepare_run import (
    check_base,
    describe_plan,
    prepare_run,
    read_plain_text,
    require_unregistered,
)


def pretrain(recipe: Recipe, corpus: Corpus, allow: Collection[str], say: Say) -> RunResult:
    """Trains a run to the end of its plan, from its last checkpoint where it has one.

    A finished run that is started again is only reported and registered again, which changes
    nothing.

    Args:
        recipe: The recipe of the run.
        corpus: The corpus to train on.
        allow: Keys that may differ from the run's first start.
        say: Takes lines of progress.

    Raises:
        UserError: Recipe, data, corpus or run are wrong, and the user can mend it.
        PlatformFault: Anything else.
    """
    registry = Registry.from_recipe(recipe)
    run_uri = run_folder(absolute_uri(recipe.storage), recipe.run)
    with claim(run_uri, recipe.run):
        require_unregistered(registry, run_uri)
        previous_recipe = lock(recipe, run_uri, allow)
        job, run_plan = prepare_run(recipe, run_uri, corpus, previous_recipe, say)
        tracker = Tracker(registry, run_uri, recipe.run)
        tracker.log_params(recipe.flatten())
        run_training(job, run_plan, tracker, say)
    return finish_run(job, registry, tracker, say)


def preview(recipe: Recipe, corpus: Corpus, allow: Collection[str], say: Say) -> None:
    """Checks the inputs of a run and says what it would train.

    Nothing is written. The arguments are those of `pretrain`, and so is what is raised.
    """
    registry = Registry.from_recipe(recipe)
    run_uri = run_folder(absolute_uri(recipe.storage), recipe.run)
    require_unclaimed(run_uri, recipe.run)
    require_unregistered(registry, run_uri)
    previous_recipe = check_unchanged(recipe, run_uri, allow)
    run_plan, is_new = resolve_run_plan(recipe, run_uri, corpus, previous_recipe)
    plan = run_plan.plan
    read_plain_text(recipe)
    base = locate_base(recipe, corpus)
    fallback_reason = check_tokenizer(recipe, corpus, base, recipe.model.revision)
    check_base(recipe, base, is_new, fallback_reason, say)
    if not is_new and (newest := find_last_checkpoint(run_uri)[0]) is not None:
        say(f"{recipe.run} exists, trained to {newest.samples:,} samples, and would go on")
    say(describe_plan(recipe, plan))
    for (source, version), samples in sorted(plan.count_by_stream(0, plan.total_samples).items()):
        say(f"  {source} of corpus version {version}: {samples:,} samples")
    say(f"would run in {run_uri} with {recipe.workers} workers on {recipe.model.base}")


def run_training(job: driver.TrainingJob, run_plan: RunPlan, tracker: Tracker, say: Say) -> None:
    """Trains what is left of the plan, if anything is.

    A run that is held open waits for more samples even where its plan is trained.
    """
    newest, _ = find_last_checkpoint(job.run_uri)
    plan = run_plan.plan
    is_held_open = run_plan.hold and not run_plan.closed
    if newest is not None and newest.samples >= plan.total_samples and not is_held_open:
        say(f"{job.recipe.run} is trained to the end already")
        return
    if newest is not None:
        say(f"resuming {job.recipe.run} from {newest.samples:,} samples")
    progress = Progress(plan.total_samples, say)
    live_report = LiveReport(job.run_uri, tracker, say)

    def on_progress(
        rows: list[TraceRow], perplexities: list[PerplexityMeasured], waiting: bool
    ) -> None:
        progress.update(rows, perplexities, waiting)
        for row in rows:
            tracker.log_metrics(step_metrics(row), row.samples)
        for event in perplexities:
            tracker.log_metrics({"perplexity": event.perplexity}, event.samples)
        if rows:
            live_report.refresh()
        tracker.flush()

    try:
        with ray_session(job.recipe.cluster.address, job.recipe.logical_cpus):
            driver.run_training(job, on_progress, say)
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise
    except BaseException:
        # Whatever ended it: the exception goes on, and MLflow is told first.
        tracker.finish("FAILED")
        raise
    finally:
        progress.close()
