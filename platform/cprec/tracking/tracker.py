"""Records of a run for MLflow, which may be away for a while without disturbing the training."""

import time
from collections.abc import Mapping
from typing import Literal

from cluster.errors import PlatformFault

# The registry goes first: it sets MLflow's environment before MLflow is imported.
from cprec.tracking.registry import Registry  # isort: skip
from mlflow.entities import Metric, Param  # isort: skip

Status = Literal["FINISHED", "FAILED", "KILLED"]

RETRY_INTERVAL_S = 60.0
"""Seconds without a new attempt after MLflow did not answer."""
# Limits of one request to MLflow.
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000


class Tracker:
    """Records of one run for MLflow, kept until MLflow has taken them.

    So training never depends on MLflow being there: `log_params`, `log_metrics` and `log_text` only
    remember, and `flush` sends what is remembered and never raises.

    Attributes:
        run_id: Id of the MLflow run, once it is known.
        last_error: Why the last `flush` failed; None if it did not.
    """

    def __init__(
        self,
        registry: Registry,
        run_uri: str,
        name: str,
        run_id: str | None = None,
        parent_run_id: str | None = None,
    ) -> None:
        """Starts without records, and without calling MLflow.

        Args:
            registry: The registry that they are sent to.
            run_uri: URI of the cprec run, which identifies it.
            name: Name that MLflow shows.
            run_id: Id of the MLflow run, where it is known, as in a child process.
            parent_run_id: Id of the MLflow run above it.
        """
        self.run_id = run_id
        self.last_error: str | None = None
        self._registry = registry
        self._run_uri = run_uri
        self._name = name
        self._parent_run_id = parent_run_id
        self._started = False
        self._retry_at = 0.0
        self._params: dict[str, str] = {}
        self._metrics: list[Metric] = []
        self._texts: dict[str, str] = {}
        self._status: Status | None = None

    def log_params(self, values: Mapping[str, object]) -> None:
        """Remembers parameters. One that MLflow already has is not sent: there it cannot change."""
        self._params.update({key: str(value)[:MAX_PARAM_LENGTH] for key, value in values.items()})

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Remembers metrics at a step (samples seen), with the present time."""
        now = int(time.time() * 1000)
        self._metrics += [Metric(key, float(value), now, step) for key, value in values.items()]

    def log_text(self, name: str, content: str) -> None:
        """Remembers a text artifact, such as report.html; the newest content of a name wins."""
        self._texts[name] = content

    def flush(self) -> bool:
        """Sends what is remembered.

        After a failure nothing is sent for RETRY_INTERVAL_S, so that a server that only times out
        does not slow the caller down.

        Returns:
            Whether MLflow took all of it. If not, `last_error` says why, and a later call sends the
            rest.
        """
        if time.monotonic() < self._retry_at:
            return False
        try:
            self._send()
        except Exception as error:
            # MLflow passes on whatever its HTTP, SQL and storage clients raise, and none of that
            # may end a training.
            message = (str(error).strip() or "no message").splitlines()[0]
            self.last_error = f"{type(error).__name__}: {message}"
            self._retry_at = time.monotonic() + RETRY_INTERVAL_S
            return False
        self.last_error = None
        return True

    def finish(self, status: Status) -> str | None:
        """Ends the run with a status.

        Returns:
            None, or one sentence that says what MLflow did not take.
        """
        self._status = status
        self._retry_at = 0.0
        if self.flush():
            return None
        pending = len(self._params) + len(self._metrics) + len(self._texts)
        return (
            f"MLflow did not take {pending} record(s) or the run's status ({self.last_error}); "
            "they are in the run's own files"
        )

    def _send(self) -> None:
        """Sends what is remembered, and forgets each part when MLflow has taken it."""
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
            new = [Param(key, value) for key, value in self._params.items() if key not in known]
            for start in range(0, len(new), PARAMS_PER_BATCH):
                client.log_batch(run_id, params=new[start : start + PARAMS_PER_BATCH])
            self._params.clear()
        while self._metrics:
            client.log_batch(run_id, metrics=self._metrics[:METRICS_PER_BATCH])
            del self._metrics[:METRICS_PER_BATCH]
        if self._status is not None:
            client.set_terminated(run_id, self._status)
        # Last: artifacts go to another store than the rest, and may fail alone.
        for name in list(self._texts):
            client.log_text(run_id, self._texts[name], name)
            del self._texts[name]
