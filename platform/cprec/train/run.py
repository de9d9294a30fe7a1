"""The training run on Ray: the controller's actor, the group of workers, and what the driver sees of them.

Only this file, `actor.py` and `worker.py` know Ray; what they drive (plan, controller, shares, loop, engine, checkpoints) does not.
"""

import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.errors import CorpusError, PlatformFault, UserError
from cluster.storage import exists, join, read_text, write_text
from corpus.table import Corpus, Stream
from cprec.recipe import Recipe
from cprec.schedule.plan import Plan, Portion, make
from cprec.stream.segments import Streams, Text, read_positions
from cprec.train import actor, checkpoint, worker
from cprec.train.audit import audit
from cprec.train.record import PLAN, TRACE, read_lines

Watch = Callable[[list[dict[str, Any]]], None]
"""Told of new trace rows now and then, on the driver."""

POLL_S = 1.0


@dataclass(frozen=True)
class Job:
    """Everything that a training run needs, checked. base: what workers load; streams: training rows by (source, corpus version)."""

    recipe: Recipe
    run_uri: str
    base: str
    corpus: Corpus
    streams: Streams
    plan: Plan


def make_plan(recipe: Recipe, corpus: Corpus) -> Plan:
    """The plan of a run that starts now on a corpus. Raises CorpusError when a named domain has no training samples."""
    by_source: dict[str, list[Stream]] = {}
    for stream in corpus.streams():
        by_source.setdefault(stream.source, []).append(stream)
    there = sorted(s.removeprefix("domain/") for s in by_source if s.startswith("domain/"))
    wanted = recipe.data.domains or tuple(there)
    if absent := [d for d in wanted if d not in there]:
        raise CorpusError(
            f"{corpus.uri}: no training samples of domain {', '.join(absent)}; this corpus pre-trains on {', '.join(there) or 'nothing'}"
        )

    def portions(sources: list[str]) -> list[Portion]:
        return [Portion(s.source, s.version, 0, s.rows) for name in sources for s in by_source.get(name, [])]

    rates = (recipe.schedule.lr_min, recipe.schedule.lr_max)
    domain = portions([f"domain/{d}" for d in wanted])
    return make(domain, portions(["mixed"]), recipe.seed, rates, recipe.schedule.warmup_fraction, recipe.train.max_samples)


def open_plan(recipe: Recipe, run_uri: str, corpus: Corpus) -> tuple[Plan, bool]:
    """The plan of a run: the one that it started with, or a new one. Returns whether it is new.

    Raises CorpusError when the corpus is not the one that the run started on.
    """
    where, identity = join(run_uri, PLAN), corpus.commits[0].metadata["fingerprint"]
    if not exists(where):
        plan = make_plan(recipe, corpus)
        write_text(where, json.dumps({"corpus": identity, "version": corpus.version, "plan": plan.to_json()}, indent=1))
        return plan, True
    found = json.loads(read_text(where))
    if found["corpus"] != identity or found["version"] > corpus.version:
        raise CorpusError(
            f"{corpus.uri}: this is corpus {identity}, version {corpus.version}; the run {recipe.run} started on {found['corpus']}, version "
            f"{found['version']}: point --corpus at that one, or start another --run"
        )
    return Plan.from_json(found["plan"]), False


def streams_of(corpus: Corpus) -> Streams:
    """The training streams of a corpus by (source, version)."""
    return {(s.source, s.version): s for s in corpus.streams()}


def fit(job: Job, watch: Watch) -> None:
    """Train what is left of the plan, inside a Ray session. Returns when the last checkpoint is complete.

    Raises the workers' UserError as it was raised, PlatformFault for anything else once train.max_failures restarts are used up.
    """
    recipe = job.recipe
    text = Text(job.base, recipe.model.revision, recipe.model.max_tokens, ray.put(job.corpus.titles()))
    controller = actor.start(job.run_uri, job.plan, recipe.train.global_batch, recipe.schedule.segment_samples, job.streams, text)
    trainer = TorchTrainer(
        worker.run,
        train_loop_config={"recipe": json.loads(recipe.model_dump_json()), "run_uri": job.run_uri, "base": job.base, "controller": controller},
        scaling_config=ScalingConfig(
            num_workers=recipe.workers,
            use_gpu=recipe.train.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": recipe.train.cpus_per_worker,
                **({"GPU": recipe.train.gpus_per_worker} if recipe.train.gpus_per_worker else {}),
            },
        ),
        # A name of its own: Ray would otherwise restore its state of an earlier start, and checkpoints are ours alone.
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12], storage_path=join(job.run_uri, "ray"), failure_config=FailureConfig(max_failures=recipe.train.max_failures)
        ),
        torch_config=TorchConfig(backend="nccl" if recipe.train.gpus_per_worker else "gloo"),
    )
    with _Watcher(controller, watch):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from error


class _Watcher:
    """Polls the controller for new trace rows while a `with` block runs, and once more at its end."""

    def __init__(self, controller: Any, watch: Watch) -> None:
        self._controller, self._watch = controller, watch
        self._seen = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _poll(self) -> None:
        over = False
        while not over:
            over = self._over.wait(POLL_S)
            try:
                rows = ray.get(self._controller.progress.remote(self._seen), timeout=30)
            except ray.exceptions.RayError:
                continue
            self._seen += len(rows)
            self._watch(rows)


def _cause(error: BaseException) -> Exception:
    """The error of the user in a failed training if there is one, else a fault that names the root."""
    failures = list(getattr(error, "worker_failures", {}).values())
    roots = [_root(failure) for failure in failures] or [_root(error)]
    for root in roots:
        if isinstance(root, UserError):
            return root
    # When one worker dies the others fail in their collectives: the first error that is not of that kind is the cause.
    telling = next((r for r in roots if isinstance(r, PlatformFault)), roots[0])
    return PlatformFault(f"training failed: {type(telling).__name__}: {telling}")


def _root(error: BaseException) -> BaseException:
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None and cause is not error:
        error = cause
    return error


def audit_run(job: Job) -> dict[str, Any]:
    """The audit of a run, from its trace and the corpus."""

    def ids_at(start: int, stop: int) -> list[int]:
        rows = read_positions(job.plan.era(start), job.streams, start, stop)
        return [int(i) for i in rows["sample_id"].to_numpy().view("uint64")]

    return audit(job.plan, read_lines(join(job.run_uri, TRACE)), ids_at)


def last_checkpoint(run_uri: str) -> str:
    """The newest valid checkpoint of a run. Raises PlatformFault when there is none."""
    name, ignored = checkpoint.latest(run_uri)
    if name is None:
        raise PlatformFault(f"{run_uri}: no checkpoint was completed; {'; '.join(ignored)}")
    return checkpoint.uri_of(run_uri, name)
