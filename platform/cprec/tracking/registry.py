"""MLflow: one tracked run per cprec run, and the registered versions with their lineage and aliases.

Weights are never copied: a version's tag `checkpoint` is the checkpoint's URI, and the registry loads no model. MLflow may be away for a while: a
`Tracker` keeps what it could not send and sends it later; only registering and promoting need MLflow to be there.
"""

import json
import logging
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

# Before the import, which reads them: no telemetry, no log lines among a job's own, and no minutes of retries while a training waits.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cluster.errors import PlatformFault, RecipeError, RunError
from cluster.storage import absolute_uri, is_remote, join
from cprec.config.recipe import Recipe

Status = Literal["FINISHED", "FAILED", "KILLED"]
Alias = Literal["candidate", "champion", "previous"]
ALIASES: tuple[Alias, ...] = ("candidate", "champion", "previous")

RUN_TAG = "cprec.run"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own name
CHECKPOINT_TAG = "checkpoint"
RETRY_INTERVAL_S = 60.0
METRICS_PER_BATCH, PARAMS_PER_BATCH, MAX_PARAM_LENGTH = (
    1000,
    100,
    6000,
)  # what one MLflow request may hold


@dataclass(frozen=True)
class Version:
    """A registered version. checkpoint: URI of its checkpoint; tags: lineage, metrics and decisions."""

    number: int
    checkpoint: str
    run_id: str | None
    tags: Mapping[str, str]


class Registry:
    """One experiment and one registered model of an MLflow server or SQL store. Connects at the first call, not before."""

    def __init__(
        self, uri: str, experiment: str, model: str, artifact_location: str | None = None
    ) -> None:
        """uri: tracking server (http) or SQL URI; artifacts: where a new experiment keeps artifacts (None: the server's own place)."""
        self.uri = uri
        self.model = model
        self._experiment_name = experiment
        self._artifact_location = artifact_location

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> "Registry":
        """The registry of a recipe. Raises RecipeError when storage is an object store and no `mlflow.uri` is given: SQLite needs a disk."""
        uri, storage = recipe.mlflow.uri, absolute_uri(recipe.storage)
        if uri is None and is_remote(storage):
            raise RecipeError(
                f"mlflow.uri: none given, and storage ({storage}) is an object store, where SQLite cannot live; "
                "give a tracking server (http://...) or a SQL URI (postgresql://..., sqlite:////path/mlflow.db)"
            )
        own_place = uri is not None and uri.startswith("http")
        return cls(
            uri or f"sqlite:///{storage}/mlflow.db",
            recipe.mlflow.experiment,
            recipe.mlflow.model,
            artifact_location=None if own_place else join(storage, "mlflow"),
        )

    def with_model(self, model: str) -> "Registry":
        """The same experiment with another registered model."""
        return Registry(self.uri, self._experiment_name, model, self._artifact_location)

    @cached_property
    def client(self) -> MlflowClient:
        """The connected client. Raises what MLflow raises while it is away."""
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            # MLflow maps its tables with a SQLAlchemy option that SQLAlchemy deprecates; nothing that a caller could act on.
            warnings.simplefilter("ignore")
            client = MlflowClient(self.uri, registry_uri=self.uri)
            client.get_experiment_by_name(self._experiment_name)
        return client

    # -- runs

    def start_run(
        self, run_uri: str, name: str, run_id: str | None = None, parent_run_id: str | None = None
    ) -> str:
        """The MLflow run of a cprec run, created once and found again ever after. Returns its id, to be given to child processes.

        run: the run's URI, its identity; name: what MLflow shows; parent: id of the MLflow run above it. A run that had ended is set
        going again.
        """
        run_id = run_id or self._find_run(run_uri, name)
        if run_id is None:
            tags = {RUN_TAG: run_uri, **({PARENT_TAG: parent_run_id} if parent_run_id else {})}
            return str(
                self.client.create_run(
                    self._find_or_create_experiment(), run_name=name, tags=tags
                ).info.run_id
            )
        self.client.update_run(run_id, status="RUNNING")
        return run_id

    def _find_run(self, run_uri: str, name: str) -> str | None:
        found = self.client.search_runs(
            [self._find_or_create_experiment()], filter_string=f"attributes.run_name = '{name}'"
        )
        return next(
            (str(r.info.run_id) for r in found if r.data.tags.get(RUN_TAG) == run_uri), None
        )

    def _find_or_create_experiment(self) -> str:
        if (found := self.client.get_experiment_by_name(self._experiment_name)) is not None:
            return str(found.experiment_id)
        try:
            return str(
                self.client.create_experiment(
                    self._experiment_name, artifact_location=self._artifact_location
                )
            )
        except MlflowException:
            # Another process created it in between.
            if (found := self.client.get_experiment_by_name(self._experiment_name)) is not None:
                return str(found.experiment_id)
            raise

    # -- versions

    def register(
        self, checkpoint: str, lineage: Mapping[str, str], run_id: str | None = None
    ) -> int:
        """The version of a checkpoint, made once however often it is asked for, and pointed at by the alias `candidate` unless a newer one is.

        lineage: tags such as corpus_version, ledger_digest, base, base_revision, recipe_digest, parent_version. Returns the version's number.
        Raises what MLflow raises while it is away; the same call completes it later.
        """
        checkpoint = absolute_uri(checkpoint)
        number = next((v.number for v in self.versions() if v.checkpoint == checkpoint), None)
        if number is None:
            number = self._create_version(checkpoint, lineage, run_id)
        candidate = self.version_by_alias("candidate")
        if candidate is None or candidate.number < number:
            self.set_alias("candidate", number)
        return number

    def _create_version(
        self, checkpoint: str, lineage: Mapping[str, str], run_id: str | None
    ) -> int:
        if not self._model_exists():
            try:
                self.client.create_registered_model(self.model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        # A server refuses a path on a disk as a source: the version then points at its run, and the tag at the weights.
        pointed = self.uri.startswith("http") and not is_remote(checkpoint) and run_id is not None
        source = f"runs:/{run_id}/checkpoint" if pointed else checkpoint
        made = self.client.create_model_version(
            self.model, source, run_id=run_id, tags={**lineage, CHECKPOINT_TAG: checkpoint}
        )
        return int(made.version)

    def versions(self) -> list[Version]:
        """All registered versions, oldest first."""
        found = list(page := self.client.search_model_versions(f"name = '{self.model}'"))
        while page.token:
            found += (
                page := self.client.search_model_versions(
                    f"name = '{self.model}'", page_token=page.token
                )
            )
        return sorted((_to_version(v) for v in found), key=lambda v: v.number)

    def version(self, number: int) -> Version:
        """One version. Raises RunError naming those that there are."""
        versions = self.versions()
        for version in versions:
            if version.number == number:
                return version
        known = ", ".join(str(v.number) for v in versions) or "none yet"
        raise RunError(f"model {self.model} has no version {number}; versions: {known}")

    def version_by_alias(self, name: Alias) -> Version | None:
        """The version that an alias points at, or None."""
        if not self._model_exists():
            return None
        number = self.client.get_registered_model(self.model).aliases.get(name)
        return None if number is None else self.version(int(number))

    def find_version(self, name: str) -> Version | None:
        """The version that a name means: candidate, champion, previous or a version number; None for any other text.

        Raises RunError where there is no such version yet.
        """
        if name.isdecimal():
            return self.version(int(name))
        if name not in ALIASES:
            return None
        found = self.version_by_alias(name)
        if found is None:
            todo = {
                "candidate": "run jobs/cpt.py",
                "champion": "run jobs/promote.py",
                "previous": "it appears with the second promotion",
            }[name]
            raise RunError(f"model {self.model} has no {name} yet; {todo}")
        return found

    def set_alias(self, alias: Alias, number: int | None) -> None:
        """Point an alias at a version, or (None) take it away."""
        if number is None:
            self.client.delete_registered_model_alias(self.model, alias)
        else:
            self.client.set_registered_model_alias(self.model, alias, str(number))

    def set_tags(self, number: int, tags: Mapping[str, str]) -> None:
        """Write tags on a version, over those of the same names."""
        for key, value in tags.items():
            self.client.set_model_version_tag(self.model, str(number), key, value)

    def log_evaluation(self, number: int, domain: str, metrics: Mapping[str, Any]) -> None:
        """Note an evaluation (the object of metrics.json) on a version: whole as the tag `evaluation.<domain>`, and as metrics of its run."""
        self.set_tags(number, {f"evaluation.{domain}": json.dumps(metrics)})
        if (run_id := self.version(number).run_id) is None:
            return
        values = {f"{name}_{k}": metrics[name][k] for name in ("hr", "ndcg") for k in metrics[name]}
        now = int(time.time() * 1000)
        self.client.log_batch(
            run_id,
            metrics=[
                Metric(f"{domain}.{key}", value, now, 0)
                for key, value in values.items()
                if value is not None
            ],
        )

    def _model_exists(self) -> bool:
        return bool(self.client.search_registered_models(f"name = '{self.model}'"))


class Tracker:
    """What one run has to tell MLflow, kept until MLflow has taken it, so that training never depends on MLflow being there.

    `params`, `metrics` and `text` only remember; `flush` sends what is remembered and never raises for an MLflow that is away.
    """

    def __init__(
        self,
        registry: Registry,
        run_uri: str,
        name: str,
        run_id: str | None = None,
        parent_run_id: str | None = None,
    ) -> None:
        """run: the run's URI; name: what MLflow shows; run_id: the MLflow run, where it is known (a child process); parent: the one above it."""
        self.run_id = run_id
        self._parent_run_id = parent_run_id
        self.last_error: str | None = None
        self._registry, self._run_uri, self._name = registry, run_uri, name
        self._started = False
        self._retry_at = 0.0
        self._params: dict[str, str] = {}
        self._metrics: list[Metric] = []
        self._texts: dict[str, str] = {}
        self._status: Status | None = None

    def log_params(self, values: Mapping[str, object]) -> None:
        """Remember parameters. The first value of a name stays: MLflow's parameters never change."""
        self._params.update({key: str(value)[:MAX_PARAM_LENGTH] for key, value in values.items()})

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Remember metrics at a step (samples seen), stamped with the present time."""
        now = int(time.time() * 1000)
        self._metrics += [Metric(key, float(value), now, step) for key, value in values.items()]

    def log_text(self, name: str, content: str) -> None:
        """Remember a text artifact of the run, such as report.html; the newest content of a name wins."""
        self._texts[name] = content

    def flush(self) -> bool:
        """Send what is remembered. False, with `failure` saying why, when MLflow did not take all of it; the rest is sent at a later flush.

        After a failure it rests for REST_S, so that a server which only times out does not slow the caller down.
        """
        if time.monotonic() < self._retry_at:
            return False
        try:
            self._send()
        except Exception as error:  # MLflow passes on whatever its HTTP, SQL and storage clients raise, and none of it may end a training
            self.last_error = (
                f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
            )
            self._retry_at = time.monotonic() + RETRY_INTERVAL_S
            return False
        self.last_error = None
        return True

    def finish(self, status: Status) -> str | None:
        """End the run. Returns None, or one sentence that says what MLflow never took."""
        self._status, self._retry_at = status, 0.0
        if self.flush():
            return None
        pending = len(self._params) + len(self._metrics) + len(self._texts)
        return f"MLflow did not take {pending} record(s) or the run's status ({self.last_error}); they are in the run's own files"

    def _send(self) -> None:
        client = self._registry.client
        if not self._started:
            self.run_id = self._registry.start_run(
                self._run_uri, self._name, self.run_id, self._parent_run_id
            )
            self._started = True
        run_id = self.run_id
        if run_id is None:
            raise PlatformFault(f"MLflow started no run for {self._run_uri}")
        if self._params:
            known = client.get_run(run_id).data.params
            fresh = [Param(key, value) for key, value in self._params.items() if key not in known]
            for at in range(0, len(fresh), PARAMS_PER_BATCH):
                client.log_batch(run_id, params=fresh[at : at + PARAMS_PER_BATCH])
            self._params.clear()
        while self._metrics:
            client.log_batch(run_id, metrics=self._metrics[:METRICS_PER_BATCH])
            del self._metrics[:METRICS_PER_BATCH]
        if self._status is not None:
            client.set_terminated(run_id, self._status)
        # Last, because artifacts go to another store than the rest and may fail alone.
        for name in list(self._texts):
            client.log_text(run_id, self._texts[name], name)
            del self._texts[name]


def _to_version(model_version: ModelVersion) -> Version:
    tags = dict(model_version.tags)
    return Version(
        int(model_version.version),
        tags.get(CHECKPOINT_TAG, str(model_version.source)),
        model_version.run_id or None,
        tags,
    )
