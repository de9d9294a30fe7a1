"""What the console can ask a run to do: whether it may, what will happen, and the command. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from cprec.runs.control.overview import RunOverview, State
from cprec.schedule.wsa import Phase

RunAction = Literal["hold", "release", "anneal", "stop"]
"""What a run is asked through its control channel."""

RUN_ACTIONS: tuple[RunAction, ...] = get_args(RunAction)

LABELS: dict[RunAction, str] = {
    "hold": "Hold",
    "release": "Release",
    "anneal": "Anneal now",
    "stop": "Stop with a checkpoint",
}


@dataclass(frozen=True)
class Act:
    """Something that a run can be asked to do.

    Attributes:
        action: Its name.
        label: Its name on a button.
        allowed: Whether the run would do it now.
        effect: What will happen; or why it is not allowed.
        is_final: Whether nothing takes it back.
        command: The command that does the same.
    """

    action: RunAction
    label: str
    allowed: bool
    effect: str
    is_final: bool
    command: str


def list_acts(row: RunOverview, command: str) -> list[Act]:
    """Lists what a run can be asked to do.

    Args:
        row: How the run stands.
        command: The command that asks it, without the action.
    """
    return [
        Act(
            action,
            LABELS[action],
            not (refusal := _find_refusal(action, row)),
            refusal or _describe_effect(action, row),
            action == "anneal",
            f"{command} {action}",
        )
        for action in RUN_ACTIONS
    ]


def _find_refusal(action: RunAction, row: RunOverview) -> str:
    """Returns why a run would not do something now; empty if it would."""
    if row.state not in (State.TRAINING, State.WAITING):
        return f"{row.run} is not training: {row.detail}."
    if action == "stop":
        return ""
    if row.phase in (Phase.ANNEALING, Phase.DONE):
        return f"{row.run} is annealing, and finishes as planned."
    if action == "hold" and row.hold:
        return f"{row.run} is held open already."
    if action == "release" and not row.hold:
        return f"{row.run} is not held open."
    return ""


def _describe_effect(action: RunAction, row: RunOverview) -> str:
    stable_end, end = f"{row.stable_end:,}", f"{row.annealing_end:,}"
    match action:
        case "hold":
            return (
                f"{row.run} trains on to the end of its stable phase, at {stable_end} samples, and "
                "waits there for new domains until it is released. It keeps its workers meanwhile."
            )
        case "release":
            when = "now" if row.state is State.WAITING else f"at {stable_end} samples"
            return (
                f"{row.run} no longer waits: it anneals {when}, to {end} samples, and finishes. "
                "Once it anneals, no domain can join."
            )
        case "anneal":
            left = max(row.stable_end - row.issued, 0)
            dropped = (
                f"up to {left:,} domain-specific samples of the plan are not trained"
                if left
                else "its stable phase is trained already"
            )
            return (
                f"{row.run} ends its stable phase at the next segment, at about sample "
                f"{row.issued:,}: {dropped}. It anneals on mixed samples and finishes. "
                "No domain can join any more, and this cannot be taken back."
            )
        case "stop":
            return (
                f"{row.run} finishes its present step, saves a checkpoint and ends (exit code "
                "130). The same command goes on from there."
            )


def describe_joins(rows: Sequence[RunOverview], corpus: str) -> list[str]:
    """Says where an append to a corpus would join the runs that train on it, a line for each.

    Args:
        rows: How all runs stand.
        corpus: URI of the corpus.
    """
    lines = []
    for row in rows:
        if row.corpus != corpus or row.state not in (State.TRAINING, State.WAITING):
            continue
        if row.phase in (Phase.ANNEALING, Phase.DONE):
            lines.append(f"{row.run} is annealing and does not take it up: it is for the next run")
        else:
            lines.append(
                f"{row.run} takes it up at the first segment that no worker has, at sample "
                f"{row.issued:,} or a little later; S ({row.stable_end:,}) and "
                f"A ({row.annealing_end:,}) move out, as far as its train.max_samples allows"
            )
    return lines or ["no run below this storage is training on this corpus now"]
