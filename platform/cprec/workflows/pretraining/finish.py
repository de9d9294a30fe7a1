"""Finishes a pre-training run: audit, last event, report, and a registered version."""

import json
from dataclasses import dataclass, replace

from cluster.console import Say
from cluster.errors import PlatformFault, UserError
from cluster.storage import join
from cluster.storage_errors import is_storage_error
from corpus.store.tables import Corpus
from cprec.runs import checkpoint
from cprec.runs.audit import audit
from cprec.runs.control.lease import Lease
from cprec.runs.events import RunFinished
from cprec.runs.json_lines import open_events
from cprec.runs.records import AUDIT_FILE, REPORT_FILE, AuditReport
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_records import read_run_records
from cprec.schedule.objectives import Objectives, describe_fractions
from cprec.stream.segments import objective_counter, sample_id_reader
from cprec.tracking.lineage import CARD_FILE, lineage
from cprec.tracking.live_report import publish_report
from cprec.tracking.model_card import publish_card
from cprec.tracking.registry import Registry
from cprec.tracking.tracker import Tracker
from cprec.train.distributed import driver


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
        stable_checkpoint: Last checkpoint (URI) before annealing, from which another run can go on;
            None where there is none.
    """

    run_uri: str
    adapter_uri: str
    report_uri: str
    version: int
    audit: AuditReport
    dropped_titles: int
    stable_checkpoint: str | None

    def print_summary(self, model_name: str, say: Say) -> None:
        """Says what was trained and where it is; `model_name` is the registered model."""
        say(
            f"audit: {self.audit.planned:,} planned, {self.audit.missing} missing, "
            f"{self.audit.repeated} repeated"
        )
        if self.audit.objectives:
            trained = {name: counts.trained for name, counts in self.audit.objectives.items()}
            say(f"objectives: {describe_fractions(trained)} of the samples with a history")
        if self.dropped_titles:
            say(
                f"{self.dropped_titles:,} titles of histories, the oldest, did not fit into "
                "model.max_tokens and were dropped"
            )
        say(f"registered {model_name} version {self.version}")
        say(f"adapter: {self.adapter_uri}")
        say(f"report:  {self.report_uri}")


def finish_run(
    job: driver.TrainingJob, lease: Lease, registry: Registry, tracker: Tracker, say: Say
) -> RunResult:
    """Audits, reports and registers a trained run.

    Raises:
        PlatformFault: The audit found a sample missing or repeated. Nothing is registered then.
    """
    records = read_run_records(job.run_uri)
    run_plan = records.run_plan
    if run_plan is None:
        raise PlatformFault(f"{job.run_uri}: plan.json is gone")
    # The run may have adopted newer versions than the one it started at.
    streams = Corpus.open(job.corpus.uri).streams_by_key()
    plan, objectives = run_plan.plan, Objectives(job.recipe.seed, job.recipe.schedule.objectives)
    audit_report = audit(
        plan,
        records.trace,
        sample_id_reader(streams, plan),
        objective_counter(streams, plan, objectives) if objectives else None,
    )
    audit_json = json.dumps(audit_report.to_json(), indent=1)
    lease.replace(join(job.run_uri, AUDIT_FILE), audit_json.encode())
    if audit_report.missing or audit_report.repeated:
        tracker.finish("FAILED")
        raise PlatformFault(
            f"audit: {audit_report.missing} samples missing, {audit_report.repeated} repeated; "
            f"see {join(job.run_uri, AUDIT_FILE)}"
        )
    checkpoint_uri = checkpoint.latest_uri(job.run_uri)
    events = open_events(job.run_uri, lease)
    if not any(isinstance(event, RunFinished) for event in events.read()):
        samples = run_plan.plan.total_samples
        events.append(RunFinished(samples=samples, checkpoint=checkpoint_uri))
        events.flush()
    records = replace(records, audit=audit_report, events=events.read())
    try:
        publish_report(records, job.recipe.cost, tracker)
    except Exception as error:
        if isinstance(error, UserError) or is_storage_error(error):
            raise
        # What cannot be drawn must not keep a trained model from being registered.
        say(f"the report was not written: {type(error).__name__}: {error}")
    tracker.log_text(AUDIT_FILE, audit_json)
    tracker.flush()
    lease.require()
    tags = lineage(job, run_plan, records.recipe, checkpoint_uri, registry)
    version = registry.register(checkpoint_uri, tags, tracker.run_id)
    card = publish_card(registry, version)
    adapter_uri = join(checkpoint_uri, checkpoint.ADAPTER)
    # Beside the checkpoint, whose manifest does not list it: the card says what came after.
    lease.replace(join(adapter_uri, CARD_FILE), card.content.encode())
    if (unsent := tracker.finish("FINISHED")) is not None:
        say(unsent)
    return RunResult(
        job.run_uri,
        adapter_uri,
        join(job.run_uri, REPORT_FILE),
        version,
        audit_report,
        sum(step.dropped_titles for step in records.trace),
        _find_stable_checkpoint(job.run_uri, run_plan),
    )


def _find_stable_checkpoint(run_uri: str, run_plan: RunPlan) -> str | None:
    """Returns the last complete checkpoint of the stable phase; None if there is none."""
    stable_end = run_plan.plan.wsa.stable_end
    for name in checkpoint.list_checkpoints(run_uri):
        if 0 < name.samples <= stable_end and checkpoint.is_complete(run_uri, name):
            return checkpoint.checkpoint_uri(run_uri, name)
    return None
