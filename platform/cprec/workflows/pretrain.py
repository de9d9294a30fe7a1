"""Continual pre-training: corpus -> plan -> training -> audit -> registered version and report."""

from collections.abc import Collection

from cluster.console import Say
from cluster.progress import track
from corpus.ingest.plain_text import read_plain_text
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.model.adapter_config import require_matching_adapter
from cprec.model.base_uri import locate_base
from cprec.runs.control.lease import claim, require_unclaimed
from cprec.runs.locks.recipe import check_unchanged
from cprec.runs.restart import find_last_checkpoint
from cprec.runs.run_planning import describe_run, resolve_run_plan
from cprec.runs.run_records import recipe_run_uri
from cprec.stream.row_encoder import describe_fallback, require_tokens_can_be_shared
from cprec.tracking.registry import Registry
from cprec.tracking.tracker import Tracker
from cprec.workflows.evaluation.models import check_tokenizer, describe_other_template
from cprec.workflows.pretraining.finish import RunResult, finish_run
from cprec.workflows.pretraining.prepare import prepare_run, require_unregistered
from cprec.workflows.pretraining.train import train_run


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
    run_uri = recipe_run_uri(recipe)
    with claim(run_uri, recipe.run, corpus.uri, say) as held:
        require_unregistered(registry, run_uri)
        job, run_plan = prepare_run(recipe, run_uri, corpus, allow, say, held.lease)
        tracker = Tracker(registry, run_uri, recipe.run)
        tracker.log_params(recipe.flatten())
        train_run(job, run_plan, held, tracker, say)
        with track("audit, report and registration", say):
            return finish_run(job, held.lease, registry, tracker, say)


def preview(recipe: Recipe, corpus: Corpus, allow: Collection[str], say: Say) -> None:
    """Checks the inputs of a run and says what it would train.

    Nothing is written. The arguments are those of `pretrain`, and so is what is raised.
    """
    registry = Registry.from_recipe(recipe)
    run_uri = recipe_run_uri(recipe)
    require_unclaimed(run_uri, recipe.run)
    require_unregistered(registry, run_uri)
    recipe.model.require_stage(recipe.train.zero_stage)
    previous_recipe = check_unchanged(recipe, run_uri, allow)
    run_plan, is_new = resolve_run_plan(recipe, run_uri, corpus, previous_recipe)
    plan = run_plan.plan
    if recipe.evaluate.text is not None:
        read_plain_text(recipe.evaluate.text, "evaluate.text")
    base = locate_base(recipe, corpus)
    planned = Corpus.open(corpus.uri, run_plan.newest_planned)
    fallback_reason = check_tokenizer(
        recipe, planned, base, recipe.model.revision, run_plan.template
    )
    if note := describe_other_template(run_plan.template, corpus, run_plan.parent or base):
        say(note)
    require_tokens_can_be_shared(recipe.train.inexact_keys, fallback_reason)
    if fallback_reason:
        say(describe_fallback(fallback_reason))
    if is_new and recipe.continue_from is not None:
        require_matching_adapter(recipe.model, base, recipe.continue_from)
    if not is_new and (newest := find_last_checkpoint(run_uri)[0]) is not None:
        say(f"{recipe.run} exists, trained to {newest.samples:,} samples, and would go on")
    say(describe_run(recipe, corpus, plan))
    streams = corpus.streams_by_key()
    for stream, samples in sorted(plan.count_by_stream(0, plan.total_samples).items()):
        passes = samples / streams[stream].rows
        source, version = stream
        say(
            f"  {source} of corpus version {version}: {samples:,} samples"
            + f", {passes:.2g} passes over them" * (passes > 1)
        )
    workers = f"{recipe.workers} worker{'s' * (recipe.workers > 1)}"
    say(f"would run in {run_uri} with {workers} on {recipe.model.base}")
