"""MLflow: a tracked run for each cprec run, and registered versions with lineage and aliases.

Weights are never copied: a version's tag `checkpoint` is the checkpoint's URI, and the registry
loads no model. Registering and promoting need MLflow to be there; tracking does not
(`cprec.tracking.tracker`).
"""

import json
import logging
import os
import posixpath
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

# Set before the import of MLflow, which reads them: no telemetry, no log lines among a job's own,
# and no minutes of retries while a training waits.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cluster.errors import RecipeError, RunError
from cluster.storage import absolute_uri, is_remote, join
from cprec.config.recipe import Recipe
from cprec.evaluation.metrics import VersionMetrics

Status = Literal["FINISHED", "FAILED", "KILLED"]
Alias = Literal["champion", "previous"]
ALIASES: tuple[Alias, ...] = ("champion", "previous")
FORMER_ALIAS = "candidate"
"""Alias of earlier releases; it named the newest version of whichever run had ended last."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tags of an experiment: MLflow opens it at its training runs, not at evaluations of prompts."""
RUN_TAG = "cprec.run"
"""Tag of an MLflow run: URI of its cprec run."""
PARENT_TAG = "mlflow.parentRunId"
"""Tag of an MLflow run: id of the run above it. MLflow's own name."""
CHECKPOINT_TAG = "checkpoint"
"""Tag of a version: URI of its checkpoint."""
EVALUATION_TAG = "evaluation."
"""First part of a tag of a version: its metrics on the domain that follows."""
DECISION_TAG = "decision."
"""First part of a tag of a version: what was decided about it, at the time that follows."""
PARENT_CHECKPOINT_TAG = "parent_checkpoint"
"""Tag of a version: URI of the checkpoint that its run goes on from; empty: from the base."""
TRAINED_ON_TAG = "trained_on"
"""Tag of a version: what it was trained on, as `cprec.tracking.lineage.trained_on` writes it."""
LINEAGE_RUN_TAG = "run"
"""Tag of a version: URI of the cprec run that it is from."""
STORES = ("http", "https", "databricks", "databricks-uc", "sqlite", "postgresql", "mysql", "mssql")
"""What holds MLflow's runs and models, by the beginning of its URI. A folder of files cannot."""


@dataclass(frozen=True)
class Version:
    """A registered version.

    Attributes:
        model: Name of the registered model.
        number: Its number.
        checkpoint: URI of its checkpoint.
        run_id: MLflow run that it is from, where there is one.
        tags: Lineage, metrics and decisions.
    """

    model: str
    number: int
    checkpoint: str
    run_id: str | None
    tags: Mapping[str, str]

    @property
    def run(self) -> str:
        """URI of the cprec run that it is from: by its tag, else by its checkpoint."""
        return self.tags.get(LINEAGE_RUN_TAG) or self.checkpoint.rsplit("/", 2)[0]

    @property
    def title(self) -> str:
        """Model and number, in words."""
        return f"{self.model} version {self.number}"

    def __str__(self) -> str:
        return f"version {self.number} of {self.model}, from run {posixpath.basename(self.run)}"


class Registry:
    """One experiment and one registered model of an MLflow server or SQL store.

    It connects at the first call, not before, and reading creates nothing: a SQLite file that is
    not there yet holds no versions.
    """

    def __init__(
        self, uri: str, experiment: str, model: str, artifact_location: str | None = None
    ) -> None:
        """Describes the registry.

        Args:
            uri: Tracking server (http) or SQL URI.
            experiment: Name of the experiment.
            model: Name of the registered model.
            artifact_location: Where a new experiment stores artifacts; None: the server decides.
        """
        self.uri = uri
        self.model = model
        self._experiment_name = experiment
        self._artifact_location = artifact_location

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> "Registry":
        """Returns the registry of a recipe.

        Raises:
            RecipeError: `mlflow.uri` is a folder or of an unknown kind; or there is none, and
                storage is an object store, while SQLite needs a disk.
        """
        uri = recipe.mlflow.uri
        if uri is not None and uri.partition("://")[0].partition("+")[0].lower() not in STORES:
            raise RecipeError(
                f"mlflow.uri: {uri} is neither a tracking server (http://host:port) nor a SQL URI "
                "(postgresql://..., sqlite:////path/mlflow.db)"
            )
        storage = absolute_uri(recipe.storage)
        if uri is None and is_remote(storage):
            raise RecipeError(
                f"mlflow.uri: none given, and storage ({storage}) is an object store, which cannot "
                "hold SQLite; give a tracking server (http://...) or a SQL URI "
                "(postgresql://..., sqlite:////path/mlflow.db)"
            )
        is_server = uri is not None and uri.startswith("http")
        return cls(
            uri or f"sqlite:///{storage}/mlflow.db",
            recipe.mlflow.experiment,
            recipe.mlflow.model,
            artifact_location=None if is_server else join(storage, "mlflow"),
        )

    def with_model(self, model: str) -> "Registry":
        """Returns the registry of another registered model in the same experiment."""
        return Registry(self.uri, self._experiment_name, model, self._artifact_location)

    def exists(self) -> bool:
        """Returns whether there is anything to read: connecting would create a SQLite file."""
        path = self.uri.removeprefix("sqlite:///")
        return path == self.uri or Path(path).exists()

    @cached_property
    def client(self) -> MlflowClient:
        """The connected client. Connecting raises what MLflow raises while it is away."""
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            # MLflow uses an option that SQLAlchemy deprecates, about which a caller can do nothing.
            warnings.simplefilter("ignore")
            client = MlflowClient(self.uri, registry_uri=self.uri)
            client.get_experiment_by_name(self._experiment_name)
        return client

    # -- runs

    def start_run(
        self, run_uri: str, name: str, run_id: str | None = None, parent_run_id: str | None = None
    ) -> str:
        """Starts the MLflow run of a cprec run; one that exists is set running again.

        Args:
            run_uri: URI of the cprec run, which identifies it.
            name: Name that MLflow shows.
            run_id: Id of the MLflow run, where it is known.
            parent_run_id: Id of the MLflow run above a new one.

        Returns:
            The id of the MLflow run.
        """
        run_id = run_id or self._find_run(run_uri, name)
        if run_id is not None:
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {RUN_TAG: run_uri}
        if parent_run_id:
            tags[PARENT_TAG] = parent_run_id
        experiment_id = self._find_or_create_experiment()
        run = self.client.create_run(experiment_id, run_name=name, tags=tags)
        return str(run.info.run_id)

    def _find_run(self, run_uri: str, name: str) -> str | None:
        """Returns the id of the MLflow run of a cprec run; names alone are not unique."""
        runs = self.client.search_runs(
            [self._find_or_create_experiment()], filter_string=f"attributes.run_name = '{name}'"
        )
        return next(
            (str(run.info.run_id) for run in runs if run.data.tags.get(RUN_TAG) == run_uri), None
        )

    def _find_or_create_experiment(self) -> str:
        """Returns the id of the experiment."""
        if (experiment := self.client.get_experiment_by_name(self._experiment_name)) is not None:
            return str(experiment.experiment_id)
        try:
            return str(
                self.client.create_experiment(
                    self._experiment_name, self._artifact_location, EXPERIMENT_TAGS
                )
            )
        except MlflowException:
            # Another process may have created it in between.
            experiment = self.client.get_experiment_by_name(self._experiment_name)
            if experiment is not None:
                return str(experiment.experiment_id)
            raise

    # -- versions

    def register(
        self, checkpoint: str, lineage: Mapping[str, str], run_id: str | None = None
    ) -> int:
        """Registers a checkpoint as a version, once however often and by whomever it is called.

        MLflow has no key that could be unique. It counts versions, so of several processes that
        create one, all but the first find a lower number afterwards, and take theirs back. Nobody
        waits for another one, and what a process that died has left is removed by the next call.

        While MLflow is away this raises what MLflow raises, and the same call completes it later.

        Args:
            checkpoint: URI of the checkpoint.
            lineage: Tags that say where it comes from, such as base, corpus_version and
                ledger_digest.
            run_id: MLflow run that it is from.

        Returns:
            The number of the version.
        """
        checkpoint = absolute_uri(checkpoint)
        if not self._numbers(checkpoint):
            self._create_version(checkpoint, lineage, run_id)
        first, *repeated = self._numbers(checkpoint)
        aliases = self.aliases()
        if FORMER_ALIAS in aliases:
            self.client.delete_registered_model_alias(self.model, FORMER_ALIAS)
        in_use = {number for alias, number in aliases.items() if alias != FORMER_ALIAS}
        for number in repeated:
            if number not in in_use:
                self._delete_version(number)
        return first

    def _numbers(self, checkpoint: str) -> list[int]:
        """Returns the numbers of the versions of a checkpoint, ascending."""
        return [v.number for v in self.versions() if v.checkpoint == checkpoint]

    def _delete_version(self, number: int) -> None:
        """Deletes a version, unless another process did so before."""
        try:
            self.client.delete_model_version(self.model, str(number))
        except MlflowException:
            if any(version.number == number for version in self.versions()):
                raise

    def _create_version(
        self, checkpoint: str, lineage: Mapping[str, str], run_id: str | None
    ) -> None:
        """Creates a version and, for the first one, the registered model."""
        if not self._model_exists():
            try:
                self.client.create_registered_model(self.model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        source = checkpoint
        if self.uri.startswith("http") and not is_remote(checkpoint) and run_id is not None:
            # A server refuses a local path as a source. The tag still points at the weights.
            source = f"runs:/{run_id}/checkpoint"
        self.client.create_model_version(
            self.model, source, run_id=run_id, tags={**lineage, CHECKPOINT_TAG: checkpoint}
        )

    def versions(self) -> list[Version]:
        """Returns all registered versions, the oldest first."""
        if not self.exists():
            return []
        query = f"name = '{self.model}'"
        page = self.client.search_model_versions(query)
        model_versions = list(page)
        while page.token:
            page = self.client.search_model_versions(query, page_token=page.token)
            model_versions += page
        return sorted(map(_to_version, model_versions), key=lambda version: version.number)

    def version(self, number: int) -> Version:
        """Returns one version.

        Raises:
            RunError: There is no such version; the message lists those that exist.
        """
        versions = self.versions()
        for version in versions:
            if version.number == number:
                return version
        known = ", ".join(str(version.number) for version in versions) or "none yet"
        raise RunError(f"model {self.model} has no version {number}; versions: {known}")

    def version_by_alias(self, name: Alias) -> Version | None:
        """Returns the version that an alias points at, or None."""
        number = self.aliases().get(name)
        return None if number is None else self.version(number)

    def set_alias(self, alias: Alias, number: int | None) -> None:
        """Points an alias at a version; None removes the alias."""
        if number is None:
            self.client.delete_registered_model_alias(self.model, alias)
        else:
            self.client.set_registered_model_alias(self.model, alias, str(number))

    def set_tags(self, number: int, tags: Mapping[str, str]) -> None:
        """Sets tags of a version, replacing those of the same names."""
        for key, value in tags.items():
            self.client.set_model_version_tag(self.model, str(number), key, value)

    def delete_model(self) -> None:
        """Deletes the registered model with its versions and aliases, if there is one."""
        if self._model_exists():
            self.client.delete_registered_model(self.model)

    def set_description(self, number: int, text: str) -> None:
        """Sets the description of a version, which MLflow shows as Markdown."""
        self.client.update_model_version(self.model, str(number), description=text)

    def log_evaluation(self, number: int, domain: str, metrics: VersionMetrics) -> None:
        """Records an evaluation of a version: as one tag, and as metrics of its MLflow run.

        Args:
            number: Number of the version.
            domain: Domain that was evaluated; the tag is `evaluation.<domain>`.
            metrics: What was measured, and on which samples.
        """
        self.set_tags(number, {f"{EVALUATION_TAG}{domain}": json.dumps(metrics)})
        if (run_id := self.version(number).run_id) is None:
            return
        kinds = {"hr": metrics["hr"], "ndcg": metrics["ndcg"]}
        values = {f"{kind}_{k}": value for kind in kinds for k, value in kinds[kind].items()}
        now = int(time.time() * 1000)
        self.client.log_batch(
            run_id,
            metrics=[
                Metric(f"{domain}.{key}", value, now, 0)
                for key, value in values.items()
                if value is not None
            ],
        )

    def own_and_fine_tuned(self) -> list["Registry"]:
        """Returns the registry of this model, and of each fine-tuned from it: `<this>-<domain>`.

        Only those that exist; at most a thousand.
        """
        if not self.exists():
            return []
        query = f"name LIKE '{self.model}-%'"
        found = self.client.search_registered_models(query, max_results=1000)
        names = sorted(str(model.name) for model in found)
        return [self.with_model(name) for name in ([self.model] * self._model_exists()) + names]

    def aliases(self) -> Mapping[str, int]:
        """Returns the aliases of the model: name to number of the version."""
        if not (self.exists() and self._model_exists()):
            return {}
        aliases = self.client.get_registered_model(self.model).aliases
        return {name: int(number) for name, number in aliases.items()}

    def _model_exists(self) -> bool:
        return bool(self.client.search_registered_models(f"name = '{self.model}'"))


def _to_version(model_version: ModelVersion) -> Version:
    """Converts MLflow's version; one without the tag `checkpoint` has it as its source."""
    tags = dict(model_version.tags)
    return Version(
        str(model_version.name),
        int(model_version.version),
        tags.get(CHECKPOINT_TAG, str(model_version.source)),
        model_version.run_id or None,
        tags,
    )
