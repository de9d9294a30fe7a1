"""The main job: corpus -> plan -> training -> audit -> registered version and report. Each line of `pretrain` is one station."""

import hashlib
import json
import time
from collections.abc import Collection
from dataclasses import dataclass

from cluster.console import Say
from cluster.errors import PlatformFault, RecipeError, UserError
from cluster.ray_session import ray_session
from cluster.storage import absolute_uri, exists, join, write_text
from corpus import build
from corpus.ingest import plain_text
from corpus.sampling import replay_text
from corpus.sampling.source import Source, SourceKind
from corpus.store.tables import SAMPLES, Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import to_yaml
from cprec.encode.title_tokens import build_title_encoding
from cprec.model import backbone
from cprec.model import base_uri as bases
from cprec.runs import checkpoint, run_plan
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
from cprec.runs.run_plan import RunPlan
from cprec.runs.status import claim
from cprec.schedule.plan import Plan
from cprec.tracking import report
from cprec.tracking.progress import Progress
from cprec.tracking.registry import Registry, Tracker
from cprec.train.distributed import driver

PROBED_TITLES = 2000
"""Titles with which stitching is tried before any worker starts."""

REPORT_INTERVAL_S, REPORT_INTERVAL_RATIO = 60.0, 60.0
"""Seconds to the first picture of a run under way and between two, and at least how many times as long as it takes to make one."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run left. version: the registered version of its last checkpoint; dropped: titles of histories that did not fit."""

    run_uri: str
    adapter_uri: str
    report_uri: str
    version: int
    audit: AuditReport
    dropped_titles: int

    def print_summary(self, model_name: str, say: Say) -> None:
        """Say what was trained and where it is. model: name of the registered model."""
        say(
            f"audit: {self.audit.planned:,} planned, {self.audit.missing} missing, {self.audit.repeated} repeated"
        )
        if self.dropped_titles:
            say(
                f"{self.dropped_titles:,} titles of histories, the oldest, did not fit into model.max_tokens and were dropped"
            )
        say(f"registered {model_name} version {self.version}")
        say(f"adapter: {self.adapter_uri}")
        say(f"report:  {self.report_uri}")


def open_corpus(recipe: Recipe, say: Say) -> Corpus:
    """The corpus of a recipe; one of simulated shoppers is built if it is missing. Raises CorpusError when there is none."""
    if recipe.data.format == "simulated" and not exists(join(absolute_uri(recipe.corpus), SAMPLES)):
        build.simulate_and_build(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, say)
    return Corpus.open(recipe.corpus, recipe.corpus_version)


def describe_plan(recipe: Recipe, plan: Plan) -> str:
    """The plan in one line for people; a second one where text is replayed."""
    wsa, batch, share = plan.wsa, recipe.train.global_batch, recipe.schedule.replay_share
    steps = sum(-(-(era.stop - era.start) // batch) for era in plan.eras)
    said = (
        f"plan: W = {wsa.warmup_end:,}, S = {wsa.stable_end:,}, A = {wsa.annealing_end:,} samples; {steps:,} steps of {batch}; "
        f"{wsa.mode}, rates {wsa.lr_min:g} to {wsa.lr_max:g}"
    )
    if not (share and wsa.stable_end):
        return said
    replayed = sum(
        n
        for (source, _), n in plan.count_by_stream(0, wsa.stable_end).items()
        if Source.parse(source).kind is SourceKind.TEXT
    )
    short = (
        ""
        if replayed >= int(share * wsa.stable_end)
        else f"; all that the corpus's texts have left, less than the {share:.1%} asked for"
    )
    return f"{said}\nreplay: {replayed:,} windows of text, {replayed / wsa.stable_end:.1%} of the samples up to S{short}"


def preview(recipe: Recipe, allow: Collection[str], say: Say) -> None:
    """Check the inputs of a run and say what it would train, or how it would go on, without writing anything but a missing corpus of simulated
    shoppers. Raises as `pretrain` does before it begins."""
    recipe = resolve_parent_uri(recipe)
    run_uri = run_folder(absolute_uri(recipe.storage), recipe.run)
    corpus = open_corpus(recipe, say)
    course, new = run_plan.resolve_run_plan(
        recipe, run_uri, corpus, check_unchanged(recipe, run_uri, allow)
    )
    plan = course.plan
    read_plain_text(recipe)
    if not new and (newest := checkpoint.find_latest(run_uri)[0]) is not None:
        say(f"{recipe.run} is there, trained to {newest.samples:,} samples, and would go on")
    say(describe_plan(recipe, plan))
    for (source, version), samples in sorted(plan.count_by_stream(0, plan.total_samples).items()):
        say(f"  {source} of corpus version {version}: {samples:,} samples")
    say(f"would run in {run_uri} with {recipe.workers} workers on {recipe.model.base}")


def pretrain(recipe: Recipe, allow: Collection[str], say: Say) -> RunResult:
    """Train a run to the end of its plan, or go on with it. Starting a finished run again registers and reports it again, without harm.

    allow: keys of the recipe that may differ from the run's first start. Raises UserError for what the user can mend, PlatformFault else.
    """
    registry = Registry.from_recipe(recipe)
    recipe = resolve_parent_uri(recipe)
    run_uri = run_folder(absolute_uri(recipe.storage), recipe.run)
    corpus = open_corpus(recipe, say)
    with claim(run_uri, recipe.run):
        before = lock(recipe, run_uri, allow)
        job, course, new = prepare_job(recipe, run_uri, corpus, before, say)
        say(describe_plan(recipe, course.plan))
        if new:
            _record_start(job, course)
        tracker = Tracker(registry, run_uri, recipe.run)
        tracker.log_params(flatten_recipe(recipe))
        run_training(job, course, tracker, say)
    return finish_run(job, registry, tracker, say)


def resolve_parent_uri(recipe: Recipe) -> Recipe:
    """The recipe with its parent checkpoint at an absolute place, which workers on other nodes and the lineage need."""
    parent = recipe.continue_from
    return (
        recipe
        if parent is None
        else recipe.model_copy(update={"continue_from": absolute_uri(parent)})
    )


def prepare_job(
    recipe: Recipe, run_uri: str, corpus: Corpus, previous_recipe: Recipe | None, say: Say
) -> tuple[driver.TrainingJob, RunPlan, bool]:
    """The checked inputs of a run, its course, and whether that is new. before: the recipe of the run's last start."""
    plain = read_plain_text(recipe)
    if (
        plain
        and recipe.schedule.replay_share
        and replay_text.text_digest(plain)
        in {commit.metadata.get("text") for commit in corpus.commits}
    ):
        say(
            f"{recipe.evaluate.text} is also replayed: its perplexity tells what is learned of it, not what is forgotten"
        )
    course, new = run_plan.open_run_plan(recipe, run_uri, corpus, previous_recipe)
    base = bases.resolve_base(recipe, corpus, say)
    if new and recipe.continue_from is not None:
        run_plan.require_matching_adapter(recipe, base, recipe.continue_from)
    # Refuses a base without a usable tokenizer before any worker starts.
    titles = corpus.read_titles()
    if because := build_title_encoding(
        titles[:: max(len(titles) // PROBED_TITLES, 1)],
        backbone.load_tokenizer(base, recipe.model.revision),
    ).fallback_reason:
        if recipe.train.inexact_keys:
            raise RecipeError(
                f"{recipe.train.inexact_keys}: samples share tokens only where prompts can be cut at titles, but {because}"
            )
        say(f"prompts are tokenised one by one, which is slower: {because}")
    return driver.TrainingJob(recipe, run_uri, base, corpus, plain), course, new


def read_plain_text(recipe: Recipe) -> str | None:
    """The text whose perplexity is measured; None where the recipe names none. Raises RecipeError for one that is not there."""
    return (
        None
        if recipe.evaluate.text is None
        else plain_text.read_plain_text(recipe.evaluate.text, "evaluate.text")
    )


def run_training(job: driver.TrainingJob, planned_run: RunPlan, tracker: Tracker, say: Say) -> None:
    """Run the training session unless the plan is trained already; one that is held open waits for more."""
    newest, _ = checkpoint.find_latest(job.run_uri)
    plan, held = planned_run.plan, planned_run.hold and not planned_run.closed
    if newest is not None and newest.samples >= plan.total_samples and not held:
        say(f"{job.recipe.run} is trained to the end already")
        return
    if newest is not None:
        say(f"resuming {job.recipe.run} from {newest.samples:,} samples")
    progress, pictures = Progress(plan.total_samples, say), LiveReport(job.run_uri, tracker, say)

    def watch(rows: list[TraceRow], measured: list[PerplexityMeasured], waiting: bool) -> None:
        progress.update(rows, measured, waiting)
        for row in rows:
            tracker.log_metrics(step_metrics(row), row.samples)
        for event in measured:
            tracker.log_metrics({"perplexity": event.perplexity}, event.samples)
        if rows:
            pictures.refresh()
        tracker.flush()

    try:
        with ray_session(job.recipe.cluster.address, logical_cpus(job.recipe)):
            driver.run_training(job, watch, say)
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise
    except BaseException:  # however it ended, it goes on from here; MLflow is told first
        tracker.finish("FAILED")
        raise
    finally:
        progress.close()


class LiveReport:
    """Report and schedule picture of a run under way, made anew now and then, for MLflow to show."""

    def __init__(self, run_uri: str, tracker: Tracker, say: Say) -> None:
        self._run_uri, self._tracker, self._say = run_uri, tracker, say
        self._next_refresh = (
            time.monotonic() + REPORT_INTERVAL_S
        )  # the first steps have enough to start as it is

    def refresh(self) -> None:
        """Make them if it is time: every PICTURE_S, or more rarely where a long run's records take long to draw.

        Storage that fails for a moment costs a picture, not the training.
        """
        began = time.monotonic()
        if began < self._next_refresh:
            return
        try:
            _publish_report(self._run_uri, self._tracker)
        except (OSError, UserError) as error:
            self._say(f"the report was not renewed: {error}")
        self._next_refresh = began + max(
            REPORT_INTERVAL_S, REPORT_INTERVAL_RATIO * (time.monotonic() - began)
        )


def _publish_report(run_uri: str, tracker: Tracker) -> None:
    for name, content in report.write(run_uri).items():
        tracker.log_text(name, content)


def step_metrics(row: TraceRow) -> dict[str, float]:
    """Returns what MLflow records of a step; padding and filling are not counted as tokens."""
    seconds = max(row.step_s + row.data_wait_s, 1e-9)
    return {
        "loss": row.loss,
        "lr": row.lr,
        "tflops": row.tflops,
        "memory_gb": row.memory_gb,
        "imbalance": row.imbalance,
        "tokens_per_s": row.tokens / seconds,
        "data_wait_share": row.data_wait_s / seconds,
    }


def finish_run(
    job: driver.TrainingJob, registry: Registry, tracker: Tracker, say: Say
) -> RunResult:
    """Audit, report and register a trained run.

    Raises PlatformFault when the audit finds a sample missing or repeated; nothing is registered then.
    """
    course = RunPlan.read(job.run_uri)
    if course is None:
        raise PlatformFault(f"{job.run_uri}: plan.json is gone")
    audit = driver.audit_run(job, course.plan)
    audit_json = json.dumps(audit.to_json(), indent=1)
    write_text(join(job.run_uri, AUDIT_FILE), audit_json)
    if audit.missing or audit.repeated:
        tracker.finish("FAILED")
        raise PlatformFault(
            f"audit: {audit.missing} samples missing, {audit.repeated} repeated; "
            f"see {join(job.run_uri, AUDIT_FILE)}"
        )
    uri = driver.latest_checkpoint_uri(job.run_uri)
    dropped = report.count_dropped_titles(read_trace(job.run_uri))
    _record_end(job, course, uri)
    _publish_report(job.run_uri, tracker)
    tracker.log_text(AUDIT_FILE, audit_json)
    tracker.flush()
    version = registry.register(uri, lineage(job, course, uri, registry), tracker.run_id)
    if (unsent := tracker.finish("FINISHED")) is not None:
        say(unsent)
    return RunResult(
        job.run_uri,
        join(uri, checkpoint.ADAPTER),
        join(job.run_uri, report.PAGE),
        version,
        audit,
        dropped,
    )


def lineage(
    job: driver.TrainingJob, planned_run: RunPlan, checkpoint_uri: str, registry: Registry
) -> dict[str, str]:
    """Where a registered version comes from, as tags."""
    parent = planned_run.parent or ""
    versions = {v.checkpoint: str(v.number) for v in registry.versions()} if parent else {}
    return {
        "run": job.run_uri,
        "corpus": job.corpus.uri,
        "corpus_version": str(planned_run.version),
        "corpus_fingerprint": planned_run.corpus,
        "ledger_digest": checkpoint.read_ledger(checkpoint_uri).fingerprint(),
        "base": job.base,
        "base_revision": job.recipe.model.revision or "",
        "recipe_digest": hashlib.sha256(to_yaml(job.recipe).encode()).hexdigest()[:16],
        "inexact": job.recipe.train.inexact_keys,
        "parent_checkpoint": parent,
        "parent_version": versions.get(parent, ""),
    }


def logical_cpus(recipe: Recipe) -> int:
    """CPUs of a local session: the workers', and those kept for Ray Data. They are promises, so they may exceed the cores."""
    return (
        recipe.cluster.num_cpus
        or recipe.workers * recipe.train.cpus_per_worker + recipe.train.stream_cpus
    )


def flatten_recipe(recipe: Recipe) -> dict[str, object]:
    """The recipe as dotted keys, for MLflow's parameters."""
    out: dict[str, object] = {}
    for name, value in recipe.model_dump().items():
        out.update(
            {f"{name}.{k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return out


def _record_start(job: driver.TrainingJob, planned_run: RunPlan) -> None:
    """Writes the first events of a run."""
    plan = planned_run.plan
    sources: dict[str, int] = {}
    for (source, _), count in plan.count_by_stream(0, plan.total_samples).items():
        sources[source] = sources.get(source, 0) + count
    events = open_events(job.run_uri)
    events.append(
        RunStarted(
            samples=0,
            run=job.recipe.run,
            parent=planned_run.parent,
            warmup_end=plan.wsa.warmup_end,
            stable_end=plan.wsa.stable_end,
            annealing_end=plan.wsa.annealing_end,
        )
    )
    events.append(
        CorpusVersionAdopted(
            samples=0,
            version=planned_run.version,
            sources=sources,
            stable_end=plan.wsa.stable_end,
            annealing_end=plan.wsa.annealing_end,
        )
    )
    events.flush()


def _record_end(job: driver.TrainingJob, planned_run: RunPlan, checkpoint_uri: str) -> None:
    """Writes the last event of a run, once."""
    events = open_events(job.run_uri)
    if not any(isinstance(event, RunFinished) for event in events.read()):
        samples = planned_run.plan.total_samples
        events.append(RunFinished(samples=samples, checkpoint=checkpoint_uri))
        events.flush()
