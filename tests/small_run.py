"""A run without Ray and without a model, which does to its storage what a real one does.

Driver, controller and worker are played in one thread, by the project's own classes; only the
streams of samples and the computation are left out. Storage may fail, and processes may die.
"""

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from cluster.errors import UserError
from cluster.storage import join
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.model.training_state import TrainingState
from cprec.runs import checkpoint
from cprec.runs.audit import audit
from cprec.runs.control.attempts import begin_attempt
from cprec.runs.control.lease import HeldLease, Lease, claim
from cprec.runs.json_lines import open_events
from cprec.runs.recipe_lock import check_unchanged, write_recipe
from cprec.runs.records import AUDIT_FILE, AuditReport, RunFinished
from cprec.runs.restart import find_last_checkpoint
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_planning import resolve_run_plan
from cprec.runs.run_records import read_run_records
from cprec.schedule.controller import Segment
from cprec.schedule.ledger import Ledger, ids_digest
from cprec.stream import segments
from cprec.stream.row_encoder import RowEncoder
from cprec.stream.segments import sample_id_reader
from cprec.stream.token_sharing import NO_SHARING
from cprec.train.distributed.controller_actor import ControllerActor
from cprec.train.distributed.controller_state import ControllerSettings, WorkerGroup
from cprec.train.distributed.segment_issuer import AssignedSegment, SegmentIssuer
from cprec.workflows.prepare_run import _record_start
from tests.records import trace_row

T = TypeVar("T")

BATCH = 32
MAX_GROUPS = 4
"""Times that the workers of one driver are started, at most."""


def without_streams(patch: pytest.MonkeyPatch) -> None:
    """Leaves out what needs Ray: titles in its object store, and the streams of samples."""

    def start(issuer: SegmentIssuer, segment: Segment, world_size: int) -> None:
        issuer._started[segment.start] = (segment, [None])  # type: ignore[list-item]

    patch.setattr(segments, "configure_ray_data", lambda: None)
    patch.setattr(RowEncoder, "from_corpus", lambda *_: None)
    patch.setattr(SegmentIssuer, "_start", start)


def drive(recipe: Recipe, corpus: Corpus) -> AuditReport:
    """Trains a run to its end, from its last checkpoint where it has one; returns its audit."""
    run_uri = join(recipe.storage, recipe.run)
    with claim(run_uri, recipe.run, corpus.uri, print) as held:
        run_plan, is_new = resolve_run_plan(
            recipe, run_uri, corpus, check_unchanged(recipe, run_uri, ())
        )
        write_recipe(recipe, run_uri, held.lease)
        run_plan.write(run_uri, held.lease)
        if is_new:
            _record_start(recipe, run_uri, run_plan, held.lease)
        newest, _ = find_last_checkpoint(run_uri)
        if newest is None or newest.samples < run_plan.plan.total_samples:
            _train(recipe, run_uri, corpus, held)
        return _finish(run_uri, corpus, held.lease)


def _train(recipe: Recipe, run_uri: str, corpus: Corpus, held: HeldLease) -> None:
    """Plays the controller, and starts the workers again where they fail."""
    settings = ControllerSettings(
        *(recipe.run, run_uri, corpus.uri, "base", None, 512, NO_SHARING),
        *(BATCH, 2 * BATCH, BATCH, None, 0.0, 0.05),
    )
    actor = _retry(lambda: ControllerActor(settings, held.lease))
    _retry(lambda: _train_group(run_uri, corpus, actor))
    with suppress(OSError):  # as the driver does: the status is late then
        actor.end_run()


def _retry(call: Callable[[], T]) -> T:
    """Calls until nothing is raised that a restart may mend, as Ray and Ray Train do."""
    for _ in range(MAX_GROUPS):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            last = error
    raise last


def _train_group(run_uri: str, corpus: Corpus, actor: ControllerActor) -> None:
    """Plays a worker: finds the checkpoint, trains to the end of the plan, and saves."""
    name, problems = find_last_checkpoint(run_uri)
    lease = actor._state.lease
    uri = checkpoint.checkpoint_uri(run_uri, name) if name else None
    ledger = checkpoint.read_ledger(uri) if uri else Ledger(actor.plan())
    attempt = begin_attempt(lease, 0, ledger.samples, uri, 1).number
    actor.begin_attempt(WorkerGroup(attempt, 1, ledger.samples, uri), problems)
    while (issued := actor.issue_segment(attempt, ledger.samples, 0)) is not None:
        assert isinstance(issued, AssignedSegment), "held open, and nobody releases it"
        segment = issued.segment
        read_ids = sample_id_reader(corpus.streams_by_key(), actor.plan())
        while ledger.samples < segment.stop:
            before = ledger.samples
            count = min(BATCH, segment.stop - before)
            digest = ids_digest(read_ids(before, before + count))
            row = trace_row(
                step=ledger.steps, samples=before, batch_samples=count, ids_digest=f"{digest:016x}"
            )
            actor.record_step(row)
            ledger = ledger.add_step(count, digest)
            ends = (segment.wsa.stable_end, segment.wsa.annealing_end)
            if checkpoint.is_due(before, ledger.samples, 2 * BATCH, ends):
                _save(run_uri, actor, ledger, attempt, ends)
            actor.heartbeat(force=True)


def _save(
    run_uri: str, actor: ControllerActor, ledger: Ledger, attempt: int, ends: tuple[int, int]
) -> None:
    """Saves a checkpoint whose weights are the number of samples."""
    name = checkpoint.CheckpointName(ledger.samples, attempt)
    uri = checkpoint.checkpoint_uri(run_uri, name)
    plan = actor.prepare_checkpoint()
    with tempfile.TemporaryDirectory() as folder:
        weights = {"w": torch.tensor([float(ledger.samples)])}
        checkpoint.save_training_state(TrainingState(weights, {}, ledger.steps), Path(folder))
        (Path(folder) / checkpoint.ADAPTER).mkdir()
        (Path(folder) / checkpoint.ADAPTER / "adapter_config.json").write_text("{}")
        checkpoint.commit(Path(folder), uri, replace(ledger, plan=plan), actor._state.lease)
    actor.record_checkpoint(ledger.samples, uri)
    checkpoint.prune(run_uri, 2, ends, name, actor._state.lease)


def _finish(run_uri: str, corpus: Corpus, lease: Lease) -> AuditReport:
    """Plays the end of a driver: audit and last event."""
    records = read_run_records(run_uri)
    assert records.run_plan is not None
    plan = records.run_plan.plan
    report = audit(plan, records.trace, sample_id_reader(corpus.streams_by_key(), plan))
    lease.replace(join(run_uri, AUDIT_FILE), json.dumps(report.to_json()).encode())
    events = open_events(run_uri, lease)
    if not any(isinstance(event, RunFinished) for event in events.read()):
        last = checkpoint.latest_uri(run_uri)
        events.append(RunFinished(samples=plan.total_samples, checkpoint=last))
        events.flush()
    return report


def outcome(recipe: Recipe) -> tuple[object, ...]:
    """Returns what must be equal in two runs of the same plan, whatever happened to them."""
    run_uri = join(recipe.storage, recipe.run)
    records = read_run_records(run_uri)
    run_plan = RunPlan.read(run_uri)
    weights = checkpoint.load_training_state(checkpoint.latest_uri(run_uri)).weights
    assert run_plan is not None
    return (
        run_plan.plan,
        run_plan.hold,
        [row.model_copy(update={"lease": None}) for row in records.trace],
        weights["w"].tolist(),
        sum(isinstance(event, RunFinished) for event in records.events),
    )
