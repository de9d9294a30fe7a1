"""Continual pre-training: corpus -> plan -> training -> audit -> registered version and report."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass

from cluster.console import Say
from cluster.errors import PlatformFault, RecipeError, RunError
from cluster.ray_session import ray_session
from cluster.storage import absolute_uri, exists, join, write_text
from corpus.ingest import plain_text
from corpus.sampling.replay_text import text_digest
from corpus.sampling.source import Source, SourceKind
from corpus.store.tables import SAMPLES, Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import to_yaml
from cprec.model.base_uri import resolve_base
from cprec.model.context_length import require_context
from cprec.runs import checkpoint
from cprec.runs.audit import audit
from cprec.runs.checkpoint import CheckpointName
from cprec.runs.json_lines import open_events, read_trace
from cprec.runs.recipe_lock import check_unchanged, lock
from cprec.runs.records import (
    AUDIT_FILE,
    AuditReport,
    CorpusVersionAdopted,
    PerplexityMeasured,
    RunFinished,
    RunStarted,
    TraceRow,
    run_folder,
)
from cprec.runs.run_plan import (
    RunPlan,
    open_run_plan,
    require_matching_adapter,
    resolve_run_plan,
)
from cprec.runs.status import claim
from cprec.schedule.plan import Plan
from cprec.stream.row_encoder import find_fallback_reason
from cprec.stream.segments import sample_id_reader
from cprec.tracking import report
from cprec.tracking.live_report import LiveReport, publish_report, step_metrics
from cprec.tracking.progress import Progress
from cprec.tracking.registry import Registry
from cprec.tracking.tracker import Tracker
from cprec.train.distributed import driver
from cprec.workflows.build_corpus import build_corpus


@dataclass(frozen=True)
class RunResult:
    """What a finished run left.

    Attributes:
        run_uri: Folder of the run.
        adapter_uri: Adapter of its last checkpoint.
        report_uri: Its report page.
        version: Registered version of its last checkpoint.
        audit: Planned against trained samples.
        dropped_titles: Titles of histories that did not fit into model.max_tokens.
    """

    run_uri: str
    adapter_uri: str
    report_uri: str
    version: int
    audit: AuditReport
    dropped_titles: int

    def print_summary(self, model_name: str, say: Say) -> None:
        """Says what was trained and where it is; `model_name` is the registered model."""
        say(
            f"audit: {self.audit.planned:,} planned, {self.audit.missing} missing, "
            f"{self.audit.repeated} repeated"
        )
        if self.dropped_titles:
            say(
                f"{self.dropped_titles:,} titles of histories, the oldest, did not fit into "
                "model.max_tokens and were dropped"
            )
        say(f"registered {model_name} version {self.version}")
        say(f"adapter: {self.adapter_uri}")
        say(f"report:  {self.report_uri}")


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
        previous_recipe = lock(recipe, run_uri, allow)
        job, run_plan, is_new = prepare_job(recipe, run_uri, corpus, previous_recipe, say)
        say(describe_plan(recipe, run_plan.plan))
        if is_new:
            _record_start(job, run_plan)
        tracker = Tracker(registry, run_uri, recipe.run)
        tracker.log_params(recipe.flatten())
        run_training(job, run_plan, tracker, say)
    return finish_run(job, registry, tracker, say)


def preview(recipe: Recipe, corpus: Corpus, allow: Collection[str], say: Say) -> None:
    """Checks the inputs of a run and says what it would train.

    Nothing is written. The arguments are those of `pretrain`, and so is what is raised.
    """
    run_uri = run_folder(absolute_uri(recipe.storage), recipe.run)
    previous_recipe = check_unchanged(recipe, run_uri, allow)
    run_plan, is_new = resolve_run_plan(recipe, run_uri, corpus, previous_recipe)
    plan = run_plan.plan
    read_plain_text(recipe)
    if not is_new and (newest := checkpoint.find_latest(run_uri)[0]) is not None:
        say(f"{recipe.run} exists, trained to {newest.samples:,} samples, and would go on")
    say(describe_plan(recipe, plan))
    for (source, version), samples in sorted(plan.count_by_stream(0, plan.total_samples).items()):
        say(f"  {source} of corpus version {version}: {samples:,} samples")
    say(f"would run in {run_uri} with {recipe.workers} workers on {recipe.model.base}")


def branch_recipe(recipe: Recipe, checkpoint_uri: str, run: str | None) -> Recipe:
    """Returns the recipe of a branch, which anneals a stable checkpoint of its trunk.

    Args:
        recipe: The recipe of the trunk.
        checkpoint_uri: The checkpoint, as `<storage>/<run>/checkpoints/<samples>-<attempt>`.
        run: Name of the branch; by default `<trunk>-anneal-<samples>`.

    Raises:
        RunError: The URI is not a checkpoint's, or the branch has the name of its trunk.
    """
    source = absolute_uri(checkpoint_uri)
    trunk = source.split("/")[-3]
    name = CheckpointName.parse(source.split("/")[-1])
    if name is None:
        raise RunError(
            f"--from {checkpoint_uri}: not a checkpoint; "
            "give <storage>/<run>/checkpoints/<samples>-<attempt>"
        )
    branch = run or f"{trunk}-anneal-{name.samples}"
    if branch == trunk:
        raise RunError(f"--run {branch}: that is the trunk; give the branch another name, or none")
    return recipe.model_copy(update={"run": branch, "continue_from": source, "branch": True})


def resolve_parent_uri(recipe: Recipe) -> Recipe:
    """Returns the recipe with an absolute `continue_from`.

    Workers on other nodes and the lineage need the absolute one.
    """
    parent = recipe.continue_from
    if parent is None:
        return recipe
    return recipe.model_copy(update={"continue_from": absolute_uri(parent)})


def open_corpus(recipe: Recipe, say: Say) -> Corpus:
    """Opens the corpus of a recipe; a missing one of simulated shoppers is built first.

    Raises:
        CorpusError: There is no corpus.
    """
    if recipe.data.format == "simulated" and not exists(join(absolute_uri(recipe.corpus), SAMPLES)):
        build_corpus(recipe, say)
    return Corpus.open(recipe.corpus, recipe.corpus_version)


def prepare_job(
    recipe: Recipe, run_uri: str, corpus: Corpus, previous_recipe: Recipe | None, say: Say
) -> tuple[driver.TrainingJob, RunPlan, bool]:
    """Checks the inputs of a run and opens its plan.

    Args:
        recipe: The recipe of the run.
        run_uri: Folder of the run.
        corpus: The corpus that it trains on.
        previous_recipe: The recipe of its last start; None at the first.
        say: Takes lines of progress.

    Returns:
        What to train, the plan of the run, and whether that is new.
    """
    text = read_plain_text(recipe)
    appended_texts = {commit.metadata.get("text") for commit in corpus.commits}
    if text and recipe.schedule.replay_share and text_digest(text) in appended_texts:
        say(
            f"{recipe.evaluate.text} is also replayed: its perplexity shows what is learned of it, "
            "not what is forgotten"
        )
    run_plan, is_new = open_run_plan(recipe, run_uri, corpus, previous_recipe)
    base = resolve_base(recipe, corpus, say)
    if is_new and recipe.continue_from is not None:
        require_matching_adapter(recipe, base, recipe.continue_from)
    require_context(base, recipe.model.revision, recipe.model.max_tokens)
    # Refuses a base without a usable tokenizer before any worker starts.
    fallback_reason = find_fallback_reason(corpus, base, recipe.model.revision)
    if fallback_reason and recipe.train.inexact_keys:
        raise RecipeError(
            f"{recipe.train.inexact_keys}: samples share tokens only where prompts can be cut at "
            f"titles, but {fallback_reason}"
        )
    if fallback_reason:
        say(f"prompts are tokenised one by one, which is slower: {fallback_reason}")
    return driver.TrainingJob(recipe, run_uri, base, corpus, text), run_plan, is_new


def read_plain_text(recipe: Recipe) -> str | None:
    """Reads the text whose perplexity is measured; None where the recipe names none.

    Raises:
        RecipeError: There is no such file, or it is not text.
    """
    if recipe.evaluate.text is None:
        return None
    return plain_text.read_plain_text(recipe.evaluate.text, "evaluate.text")


def describe_plan(recipe: Recipe, plan: Plan) -> str:
    """Describes a plan in one line: the ends of its phases, its steps and its learning rates.

    A second line counts the windows of replayed text, if schedule.replay_share asks for any.
    """
    wsa = plan.wsa
    batch = recipe.train.global_batch
    # Batches do not cross the boundary of two eras.
    steps = sum(-(-(era.stop - era.start) // batch) for era in plan.eras)
    summary = (
        f"plan: W = {wsa.warmup_end:,}, S = {wsa.stable_end:,}, A = {wsa.annealing_end:,} samples; "
        f"{steps:,} steps of {batch}; {wsa.mode}, learning rates {wsa.lr_min:g} to {wsa.lr_max:g}"
    )
    fraction = recipe.schedule.replay_share
    if not (fraction and wsa.stable_end):
        return summary
    replayed = sum(
        samples
        for (source, _), samples in plan.count_by_stream(0, wsa.stable_end).items()
        if Source.parse(source).kind is SourceKind.TEXT
    )
    shortfall = ""
    if replayed < int(fraction * wsa.stable_end):
        shortfall = f"; the corpus has no more text for the {fraction:.1%} asked for"
    return (
        f"{summary}\nreplay: {replayed:,} windows of text, {replayed / wsa.stable_end:.1%} of the "
        f"samples up to S{shortfall}"
    )


def run_training(job: driver.TrainingJob, run_plan: RunPlan, tracker: Tracker, say: Say) -> None:
    """Trains what is left of the plan, if anything is.

    A run that is held open waits for more samples even where its plan is trained.
    """
    newest, _ = checkpoint.find_latest(job.run_uri)
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


def finish_run(
    job: driver.TrainingJob, registry: Registry, tracker: Tracker, say: Say
) -> RunResult:
    """Audits, reports and registers a trained run.

    Raises:
        PlatformFault: The audit found a sample missing or repeated. Nothing is registered then.
    """
    run_plan = RunPlan.read(job.run_uri)
    if run_plan is None:
        raise PlatformFault(f"{job.run_uri}: plan.json is gone")
    trace = read_trace(job.run_uri)
    # The run may have adopted newer versions than the one it started at.
    corpus = Corpus.open(job.corpus.uri)
    audit_report = audit(run_plan.plan, trace, sample_id_reader(corpus, run_plan.plan))
    audit_json = json.dumps(audit_report.to_json(), indent=1)
    write_text(join(job.run_uri, AUDIT_FILE), audit_json)
    if audit_report.missing or audit_report.repeated:
        tracker.finish("FAILED")
        raise PlatformFault(
            f"audit: {audit_report.missing} samples missing, {audit_report.repeated} repeated; "
            f"see {join(job.run_uri, AUDIT_FILE)}"
        )
    checkpoint_uri = checkpoint.latest_uri(job.run_uri)
    _record_end(job, run_plan, checkpoint_uri)
    publish_report(job.run_uri, tracker)
    tracker.log_text(AUDIT_FILE, audit_json)
    tracker.flush()
    version = registry.register(
        checkpoint_uri, lineage(job, run_plan, checkpoint_uri, registry), tracker.run_id
    )
    if (unsent := tracker.finish("FINISHED")) is not None:
        say(unsent)
    return RunResult(
        job.run_uri,
        join(checkpoint_uri, checkpoint.ADAPTER),
        join(job.run_uri, report.PAGE),
        version,
        audit_report,
        sum(step.dropped_titles for step in trace),
    )


def lineage(
    job: driver.TrainingJob, run_plan: RunPlan, checkpoint_uri: str, registry: Registry
) -> dict[str, str]:
    """Returns where a registered version comes from, as tags."""
    parent = run_plan.parent or ""
    versions = {v.checkpoint: str(v.number) for v in registry.versions()} if parent else {}
    return {
        "run": job.run_uri,
        "corpus": job.corpus.uri,
        "corpus_version": str(run_plan.version),
        "corpus_fingerprint": run_plan.corpus,
        "ledger_digest": checkpoint.read_ledger(checkpoint_uri).fingerprint(),
        "base": job.base,
        "base_revision": job.recipe.model.revision or "",
        "recipe_digest": hashlib.sha256(to_yaml(job.recipe).encode()).hexdigest()[:16],
        "inexact": job.recipe.train.inexact_keys,
        "parent_checkpoint": parent,
        "parent_version": versions.get(parent, ""),
    }


def _record_start(job: driver.TrainingJob, run_plan: RunPlan) -> None:
    """Writes the first events of a run."""
    plan = run_plan.plan
    samples_by_source: dict[str, int] = {}
    for (source, _), samples in plan.count_by_stream(0, plan.total_samples).items():
        samples_by_source[source] = samples_by_source.get(source, 0) + samples
    events = open_events(job.run_uri)
    events.append(
        RunStarted(
            samples=0,
            run=job.recipe.run,
            parent=run_plan.parent,
            warmup_end=plan.wsa.warmup_end,
            stable_end=plan.wsa.stable_end,
            annealing_end=plan.wsa.annealing_end,
        )
    )
    events.append(
        CorpusVersionAdopted(
            samples=0,
            version=run_plan.version,
            sources=samples_by_source,
            stable_end=plan.wsa.stable_end,
            annealing_end=plan.wsa.annealing_end,
        )
    )
    events.flush()


def _record_end(job: driver.TrainingJob, run_plan: RunPlan, checkpoint_uri: str) -> None:
    """Writes the last event of a run, once."""
    events = open_events(job.run_uri)
    if not any(isinstance(event, RunFinished) for event in events.read()):
        samples = run_plan.plan.total_samples
        events.append(RunFinished(samples=samples, checkpoint=checkpoint_uri))
        events.flush()
