"""Trains what is left of a run, and shows on the console and in MLflow how it goes."""

from cluster.console import Say
from cluster.progress import track
from cluster.ray_session import ray_session
from cprec.runs.control.lease import HeldLease
from cprec.runs.events import PerplexityMeasured
from cprec.runs.restart import find_last_checkpoint
from cprec.runs.run_plan import RunPlan
from cprec.schedule.plan import Plan
from cprec.stream.prompt_check import require_prompts_fit
from cprec.stream.row_encoder import RowEncoder, describe_fallback
from cprec.tracking.live_report import LiveReport, step_metrics
from cprec.tracking.progress import Progress
from cprec.tracking.tracker import Tracker
from cprec.train.distributed import driver
from cprec.train.distributed.controller_state import RunNews


def train_run(
    job: driver.TrainingJob, run_plan: RunPlan, held: HeldLease, tracker: Tracker, say: Say
) -> None:
    """Trains what is left of the plan, if anything is.

    A run that is held open waits for more samples even where its plan is trained.
    """
    newest, _ = find_last_checkpoint(job.run_uri)
    plan, position = run_plan.plan, 0 if newest is None else newest.samples
    is_held_open = run_plan.hold and not run_plan.closed
    if newest is not None and newest.samples >= plan.total_samples and not is_held_open:
        say(f"{job.recipe.run} is trained to the end already")
        return
    if newest is not None:
        say(f"resuming {job.recipe.run} from {newest.samples:,} samples")
    progress = Progress(plan.total_samples, say)
    live_report = LiveReport(job.run_uri, job.recipe.cost, tracker, say)

    release = f"(jobs/control.py --run {job.recipe.run} release)"

    def on_news(news: RunNews) -> None:
        waiting = f"{news.waiting} {release}" if news.waiting else None
        progress.update(news.rows, news.events, waiting, news.planned_samples)
        # What earlier drivers recorded, they told MLflow themselves.
        own = (None, held.lease.number)
        for row in news.rows:
            if row.lease in own:
                tracker.log_metrics(step_metrics(row), row.samples)
        for event in news.events:
            if isinstance(event, PerplexityMeasured) and event.lease in own:
                tracker.log_metrics({"perplexity": event.perplexity}, event.samples)
        if news.rows:
            live_report.refresh()
        tracker.flush()

    try:
        with ray_session(job.recipe.cluster.address, job.recipe.logical_cpus):
            encoder = build_checked_encoder(job, plan, position, say)
            driver.run_training(job, encoder, held, on_news, say)
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise
    except BaseException:
        # Whatever ended it: the exception goes on, and MLflow is told first.
        tracker.finish("FAILED")
        raise
    finally:
        progress.close()


def build_checked_encoder(
    job: driver.TrainingJob, plan: Plan, position: int, say: Say
) -> RowEncoder:
    """Encodes the titles of the corpus, and checks that the prompts from a position on fit.

    Raises:
        DataError: A prompt is too long even without a history, or samples are to share tokens and
            the titles do not allow it.
    """
    encoder = driver.build_row_encoder(job)
    if encoder.fallback_reason:
        say(describe_fallback(encoder.fallback_reason))
    with track("checking that prompts fit", say):
        require_prompts_fit(encoder, plan, job.corpus.streams_by_key(), position)
    return encoder
