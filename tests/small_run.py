"""A run without Ray and without a model that does every storage operation of a real one."""

import itertools
import json
import tempfile
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from cluster.storage import join
from corpus.store.tables import Corpus
from cprec.config import recipe_file
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import to_yaml
from cprec.encode.prompt import TABLE1
from cprec.model.training_state import TrainingState
from cprec.runs import checkpoint
from cprec.runs.audit import audit
from cprec.runs.checkpoint import CheckpointName
from cprec.runs.control.attempts import begin_attempt
from cprec.runs.control.lease import HeldLease, Lease, claim
from cprec.runs.json_lines import read_trace
from cprec.runs.locks.recipe import check_unchanged, write_recipe
from cprec.runs.records import AUDIT_FILE, AuditReport, TraceRow
from cprec.runs.restart import find_last_checkpoint
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_planning import create_run_plan
from cprec.runs.run_records import read_run_records
from cprec.schedule.ledger import Ledger, ids_digest
from cprec.schedule.plan import Plan, global_batches
from cprec.stream import segments
from cprec.stream.row_encoder import RowEncoder
from cprec.train.distributed import controller_actor, corpus_follower
from cprec.train.distributed.controller_actor import ControllerActor
from cprec.train.distributed.controller_state import ControllerSettings, WorkerGroup
from tests.records import trace_row

NO_TITLES = RowEncoder("base", None, 512, TABLE1, cast("Any", None))
"""A row encoder for a controller that starts no read tasks."""

STEPS = 2
"""Optimizer steps, about; each is followed by a checkpoint."""


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Leaves out of the controller what only read tasks need."""
    patch.setattr(segments, "configure_ray_data", lambda: None)
    patch.setattr(RowEncoder, "with_titles_of", lambda encoder, _: encoder)
    patch.setattr(corpus_follower, "require_streams_fit", lambda encoder, streams: None)
    patch.setattr(controller_actor, "STORAGE_RETRY_S", 0.0)
    # YAML would take half of the time.
    patch.setattr("cprec.runs.locks.recipe.to_yaml", lru_cache(to_yaml))
    parse = lru_cache(recipe_file.parse_yaml)
    patch.setattr(recipe_file, "parse_yaml", lambda text, origin: deepcopy(parse(text, "a recipe")))


def ids_at(start: int, stop: int) -> list[int]:
    """Returns made-up sample ids at some positions of a plan."""
    return [(i * 0x9E3779B97F4A7C15) % (1 << 64) for i in range(start, stop)]


def planned_rows(plan: Plan) -> list[TraceRow]:
    """Returns the trace of a run that nothing disturbs."""
    wsa = plan.wsa
    batch = max(1, -(-plan.total_samples // STEPS))
    ends = (0, wsa.stable_end, plan.total_samples)
    bounds = [b for a, z in itertools.pairwise(ends) for b in global_batches(a, z, batch)]
    return [
        trace_row(
            step=step,
            samples=start,
            batch_samples=stop - start,
            phase=str(wsa.phase(start)),
            ids_digest=f"{ids_digest(ids_at(start, stop)):016x}",
        )
        for step, (start, stop) in enumerate(bounds)
    ]


def train(run_uri: str, corpus: Corpus) -> AuditReport:
    """Starts a run, or goes on with it, to its end; returns its audit."""
    with claim(run_uri, "small", corpus.uri, lambda line: None) as held:
        recipe = Recipe()
        check_unchanged(recipe, run_uri, ())
        run_plan = RunPlan.read(run_uri) or create_run_plan(recipe, corpus)
        write_recipe(recipe, run_uri, held.lease)
        run_plan.write(run_uri, held.lease)
        run_plan.record_start(run_uri, recipe.run, held.lease)
        _train_rest(run_uri, corpus, held)
        plan = run_plan.plan
        report = audit(plan, read_run_records(run_uri).steps, ids_at)
        held.lease.replace(join(run_uri, AUDIT_FILE), json.dumps(report.to_json()).encode())
        assert len(read_trace(run_uri)) == len(planned_rows(plan))
        return report


def _train_rest(run_uri: str, corpus: Corpus, held: HeldLease) -> None:
    settings = ControllerSettings(
        "small", run_uri, corpus.uri, NO_TITLES, 32, 64, 64, None, 0.0, 0.05
    )
    actor = ControllerActor(settings, held.lease)
    name, problems = find_last_checkpoint(run_uri)
    uri = checkpoint.checkpoint_uri(run_uri, name) if name else None
    ledger = checkpoint.read_ledger(uri) if uri else Ledger(actor.plan())
    attempt = begin_attempt(held.lease, 0, ledger.samples, uri, 1).number
    actor.begin_attempt(WorkerGroup(attempt, 1, ledger.samples, uri), problems)
    for row in planned_rows(actor.plan())[ledger.steps :]:
        actor.record_step(attempt, row)
        actor.heartbeat(force=True)
        ledger = ledger.add_step(row.batch_samples, int(row.ids_digest, 16))
        _save(run_uri, actor, ledger, attempt, held.lease)
    actor.end_run()


def _save(run_uri: str, actor: ControllerActor, ledger: Ledger, attempt: int, lease: Lease) -> None:
    actor.prepare_checkpoint(attempt)
    name = CheckpointName(ledger.samples, attempt)
    uri = checkpoint.checkpoint_uri(run_uri, name)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / checkpoint.ADAPTER).mkdir()
        (directory / checkpoint.ADAPTER / "adapter_config.json").write_text("{}")
        state = TrainingState({"w": torch.tensor([float(ledger.samples)])}, {}, ledger.steps)
        checkpoint.save_training_state(state, directory)
        checkpoint.commit(directory, uri, ledger, lease)
    actor.record_checkpoint(attempt, ledger.samples, uri)
    checkpoint.prune(run_uri, 1, (), name, lease)
