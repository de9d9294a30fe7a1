"""Runs of a program or a notebook: what one has left so far, and what it can be asked to do."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from cluster.errors import RunError
from cluster.storage import absolute_uri, exists, join
from cprec.api.background import BackgroundProcess
from cprec.api.frames import events_frame, trace_frame
from cprec.api.recipe import Recipe
from cprec.config import recipe as checked
from cprec.config.recipe_file import load_recipe
from cprec.runs import checkpoint
from cprec.runs.control import control_channel
from cprec.runs.control.listing import RunReader, list_runs
from cprec.runs.control.overview import RunOverview, State
from cprec.runs.control.request_queue import Action
from cprec.runs.control.status import describe_run
from cprec.runs.json_lines import read_events, read_trace
from cprec.runs.records import RECIPE_FILE, REPORT_FILE, run_folder
from cprec.runs.run_records import drop_repeated_steps, read_audit

if TYPE_CHECKING:
    from cprec.api.model import Model

ANSWER_S = 60.0
"""Seconds that a run has to answer a request."""

POLL_S = 1.0
"""Seconds between two looks at a run that is waited for."""

OVER = (State.DONE, State.STOPPED, State.FAILED, State.LOST)
"""States of a run that nobody trains."""


class Run:
    """A run: what it has left on its storage so far, whether or not it is under way.

    Nothing is cached, so every call tells how the run stands now.
    """

    def __init__(self, run: str | checked.Recipe) -> None:
        """Finds a run.

        Args:
            run: Its folder (path or URI), `<storage>/<run>`; or its recipe.

        Raises:
            UserError: There is no such run.
        """
        folder = run_folder(run.storage, run.run) if isinstance(run, checked.Recipe) else run
        self._storage, _, self._name = absolute_uri(folder).rstrip("/").rpartition("/")
        self._process: BackgroundProcess | None = None
        self._look()

    @classmethod
    def list(cls, storage: str = "out/runs") -> Sequence["Run"]:
        """Lists the runs below a storage (path or URI), by name."""
        uri = absolute_uri(storage)
        return [cls(run_folder(uri, found.run)) for found in list_runs(uri)]

    @classmethod
    def _of_process(cls, uri: str, process: BackgroundProcess) -> "Run":
        """Returns a run that a process of this program trains."""
        run = cls(uri)
        run._process = process
        return run

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._name

    @property
    def uri(self) -> str:
        """Folder of the run: an absolute path, or a URI."""
        return run_folder(self._storage, self._name)

    @property
    def recipe(self) -> Recipe:
        """The recipe of its last start, with every key."""
        return Recipe.model_construct(**dict(load_recipe(join(self.uri, RECIPE_FILE))))

    @property
    def state(self) -> str:
        """What it does: `starting`, `training`, `waiting`, `finishing`, `done`, `stopped`, ...

        The others are `failed`; `lost`, where its driver ended without a word; and `unknown`.
        """
        state = self._look().state
        if self._process is not None and state in OVER:
            self._process.wait()
        return state.value

    @property
    def report(self) -> str | None:
        """Its report page (path or URI); None before the first."""
        uri = join(self.uri, REPORT_FILE)
        return uri if exists(uri) else None

    @property
    def audit(self) -> dict[str, Any] | None:
        """Planned against trained samples (audit.json); None until it is trained."""
        audit = read_audit(self.uri)
        return None if audit is None else audit.to_json()

    def describe(self) -> str:
        """Returns how it stands, in words: phase, samples by source, learning rate."""
        return describe_run(self.uri, self.name) or f"{self.name}: nothing is known of it"

    def trace(self) -> pl.DataFrame:
        """Reads its optimizer steps, one a row; of a step that was repeated, the last.

        Returns:
            The fields of trace.jsonl (docs/reference/file-formats.md), such as step, samples,
            phase, lr, loss, tokens and step_s. `sources` is a list of (source, count), and
            `objectives` one of (objective, count) where there are several.
        """
        return trace_frame(drop_repeated_steps(read_trace(self.uri)))

    def events(self) -> pl.DataFrame:
        """Reads what happened to it, oldest first.

        Returns:
            Columns time (UTC), event, samples and details, which is JSON of the fields that only
            this kind of event has (docs/reference/file-formats.md).
        """
        return events_frame(read_events(self.uri))

    def checkpoints(self) -> pl.DataFrame:
        """Lists its complete checkpoints, oldest first.

        Returns:
            Columns samples (seen when it was saved), attempt (start of the workers that saved it)
            and uri, which `Model.load` and the key `continue_from` take.
        """
        rows = [
            (name.samples, name.attempt, checkpoint.checkpoint_uri(self.uri, name))
            for name in reversed(checkpoint.list_checkpoints(self.uri))
            if checkpoint.is_complete(self.uri, name)
        ]
        schema = {"samples": pl.Int64, "attempt": pl.Int64, "uri": pl.String}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def model(self, domain: str | None = None) -> "Model":
        """Loads the model of its last checkpoint; arguments are those of `Model.load`.

        Raises:
            UserError: It has no checkpoint yet.
        """
        from cprec.api.model import Model

        checkpoints = self.checkpoints()
        if checkpoints.is_empty():
            raise RunError(f"{self.uri}: no complete checkpoint yet")
        return Model.load(checkpoints["uri"][-1], self.recipe, domain=domain)

    def hold(self) -> str:
        """Asks it to stay in its stable phase when that runs dry; returns its answer."""
        return self._ask("hold")

    def release(self) -> str:
        """Asks it to anneal once its stable phase runs dry; returns its answer."""
        return self._ask("release")

    def anneal(self) -> str:
        """Asks it to end its stable phase at the next segment; returns its answer."""
        return self._ask("anneal")

    def stop(self) -> str:
        """Asks it to save a checkpoint and end; the same call to train goes on from there."""
        return self._ask("stop")

    def _ask(self, action: Action) -> str:
        """Sends a request, and returns the answer. Raises RunError if nobody can give one."""
        return control_channel.send_request(self.uri, self.name, action, ANSWER_S)

    def wait(self, state: str = "done", timeout_s: float | None = None) -> "Run":
        """Waits until it is in a state, and returns it.

        Args:
            state: `training`, `waiting` (the stable phase ran dry and is held open) or `done`.
            timeout_s: Seconds to wait at most; None: as long as somebody trains it.

        Raises:
            UserError: It ended otherwise, so that it will not get there, or the time is over.
            PlatformFault: `start` began it, and it has failed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (seen := self.state) != state:
            if seen in OVER:
                why = ": ".join(filter(None, [seen, self._look().waits_for]))
                raise RunError(f"{self.name} is not {state}, and will not be: {why}")
            if deadline is not None and time.monotonic() > deadline:
                raise RunError(f"{self.name} is not {state} after {timeout_s:g} s: {seen}")
            time.sleep(POLL_S)
        return self

    def log(self) -> str:
        """Returns what a run that `start` began has printed so far; else nothing."""
        return "" if self._process is None else self._process.output()

    def _look(self) -> RunOverview:
        if self._process is not None:
            self._process.has_ended()  # else its process would seem to live when it is dead
        found = RunReader(self._storage, self._name).look()
        if found is None:
            names = ", ".join(run.run for run in list_runs(self._storage)) or "none"
            raise RunError(f"no run {self._name} below {self._storage}; runs there: {names}")
        return found

    def __repr__(self) -> str:
        """Shows how it stands."""
        found = self._look()
        parts = [found.state.value]
        if found.phase is not None:
            parts += [found.phase.value] * (found.state is not State.DONE)
            parts.append(f"{found.samples:,} of {found.annealing_end:,} samples")
        if found.loss is not None:
            parts.append(f"loss {found.loss:.4f}")
        return f"<Run {self.uri}: {', '.join(parts)}>"
