"""Finishes a pre-training run: audit, last event, report, and a registered version."""

import hashlib
import json
from dataclasses import dataclass

from cluster.console import Say
from cluster.errors import PlatformFault
from cluster.storage import join, write_text
from corpus.store.tables import Corpus
from cprec.config.recipe_file import to_yaml
from cprec.runs import checkpoint
from cprec.runs.audit import audit
from cprec.runs.json_lines import open_events, read_trace
from cprec.runs.records import AUDIT_FILE, AuditReport, RunFinished
from cprec.runs.run_plan import RunPlan
from cprec.stream.segments import sample_id_reader
from cprec.tracking import report
from cprec.tracking.live_report import publish_report
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
        "base_revision": job.revision or "",
        "recipe_digest": hashlib.sha256(to_yaml(job.recipe).encode()).hexdigest()[:16],
        "inexact": job.recipe.train.inexact_keys,
        "parent_checkpoint": parent,
        "parent_version": versions.get(parent, ""),
    }


def _record_end(job: driver.TrainingJob, run_plan: RunPlan, checkpoint_uri: str) -> None:
    """Writes the last event of a run, once."""
    events = open_events(job.run_uri)
    if not any(isinstance(event, RunFinished) for event in events.read()):
        samples = run_plan.plan.total_samples
        events.append(RunFinished(samples=samples, checkpoint=checkpoint_uri))
        events.flush()
