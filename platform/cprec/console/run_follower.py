"""Follows one run: its files as they grow, and the parts of its page that change with them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from cluster.errors import RunError
from cluster.storage import join, list_etags, list_names
from cprec.console.growing_file import GrowingFile
from cprec.console.views.acts import Act, list_acts
from cprec.console.views.commands import Commands
from cprec.console.views.encoding import encode
from cprec.console.views.schedule import build_schedule
from cprec.console.views.series import Steps, final_audit, thin
from cprec.console.views.timeline import (
    CheckpointView,
    build_timeline,
    list_checkpoint_views,
    list_perplexities,
)
from cprec.runs.control.listing import RunReader
from cprec.runs.control.overview import RunOverview
from cprec.runs.events import Event, parse_event
from cprec.runs.records import (
    AUDIT_FILE,
    EVENTS_FILE,
    PLAN_FILE,
    TRACE_FILE,
    run_folder,
)
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_records import read_audit

CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class RunHead:
    """The head of a run's page.

    Attributes:
        row: How the run stands.
        acts: What it can be asked to do.
    """

    row: RunOverview
    acts: list[Act]


@dataclass(frozen=True)
class CheckpointEntry:
    """A checkpoint, with the commands that start from it; None where none can."""

    checkpoint: CheckpointView
    anneal: str | None
    resume: str | None


class RunFollower:
    """Follows the files of one run."""

    def __init__(self, storage: str, run: str, commands: Commands) -> None:
        self._run, self._commands = run, commands
        self._uri = run_folder(storage, run)
        self._reader = RunReader(storage, run)
        self._trace = GrowingFile(join(self._uri, TRACE_FILE))
        self._event_file = GrowingFile(join(self._uri, EVENTS_FILE))
        self._steps = Steps()
        self._events: list[Event] = []
        self._has_new_events = False
        self._run_plan: RunPlan | None = None
        self._tags: dict[str, str] = {}
        self._parts: dict[str, bytes] = {}

    def look(self) -> Mapping[str, bytes]:
        """Returns the parts of the page as JSON, by name.

        Raises:
            RunError: There is no such run, or a file of it is damaged.
        """
        row = self._reader.look()
        if row is None:
            raise RunError(f"no run {self._run} below this storage")
        tags = list_etags(self._uri)
        changed = {name for name, tag in tags.items() if self._tags.get(name) != tag}
        self._parts["head"] = encode(RunHead(row, list_acts(row, self._commands.control(row.run))))
        if PLAN_FILE in changed:
            self._run_plan = RunPlan.read(self._uri)
        if EVENTS_FILE in changed:
            self._read_events()
        if self._run_plan and (self._has_new_events or PLAN_FILE in changed):
            self._parts["schedule"] = encode(build_schedule(self._run_plan.plan, self._events))
        if self._has_new_events or changed & {PLAN_FILE, CHECKPOINTS_FOLDER}:
            self._update_events()
        if TRACE_FILE in changed:
            self._read_steps()
            self._parts["series"] = encode(self._steps.view())
        if changed & {TRACE_FILE, PLAN_FILE, AUDIT_FILE}:
            self._update_audit()
        self._tags, self._has_new_events = tags, False  # only now: what failed is done again
        return dict(self._parts)

    def _read_events(self) -> None:
        lines, was_replaced = self._event_file.read_new()
        if was_replaced:
            self._events = []
        for values in lines:
            with suppress(ValueError, KeyError):
                self._events.append(parse_event(values))
        self._has_new_events |= bool(lines) or was_replaced

    def _read_steps(self) -> None:
        rows, was_replaced = self._trace.read_new()
        if was_replaced:
            self._steps.clear()
        self._steps.add(rows)

    def _update_events(self) -> None:
        wsa = self._run_plan.plan.wsa if self._run_plan else None
        names = list_names(join(self._uri, CHECKPOINTS_FOLDER))
        checkpoints = list_checkpoint_views(self._events, names, wsa)
        self._parts["timeline"] = encode(build_timeline(self._events))
        self._parts["checkpoints"] = encode([self._entry(c) for c in checkpoints])
        self._parts["perplexity"] = encode(thin(list_perplexities(self._events)))

    def _entry(self, checkpoint: CheckpointView) -> CheckpointEntry:
        if not checkpoint.is_stable:
            return CheckpointEntry(checkpoint, None, None)
        return CheckpointEntry(
            checkpoint,
            self._commands.anneal_from(checkpoint.uri),
            self._commands.continue_from(self._run, checkpoint.uri),
        )

    def _update_audit(self) -> None:
        if (audit := read_audit(self._uri)) is not None:
            self._parts["audit"] = encode(final_audit(audit))
        elif self._run_plan:
            self._parts["audit"] = encode(self._steps.audit(self._run_plan.plan.total_samples))
