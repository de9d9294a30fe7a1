"""Which version serves: the champion, the one before it, and who decided so.

Aliases say which version serves. Each decision is a tag on the version that it is about. A promoted
version remembers the champion before it, so that repeated rollbacks walk back through all of them.

It imports no network: a rollback is in a hurry.
"""

import json
import posixpath
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime

from cluster.errors import GateRefusedError, RunError
from cprec.evaluation.gate import Decision
from cprec.runs.control.lease import Lease, claim
from cprec.runs.control.liveness import read_lease
from cprec.runs.events import PromotionDecided
from cprec.runs.json_lines import open_events, read_events
from cprec.tracking.registry import DECISION_TAG, Registry, Version

PREVIOUS_CHAMPION_TAG = "champion_before"
"""Tag of a promoted version: number of the champion before it."""
ENDING_EVENTS = ("run_finished", "promotion_decided")
"""Events after which a run writes no more."""


def set_champion(registry: Registry, number: int) -> None:
    """Makes a version the champion, and the champion so far the previous one.

    What serves changes last, so an interrupted call may be repeated.
    """
    champion = registry.version_by_alias("champion")
    if champion is not None and champion.number != number:
        registry.set_tags(number, {PREVIOUS_CHAMPION_TAG: str(champion.number)})
        registry.set_alias("previous", champion.number)
    registry.set_alias("champion", number)


def plan_rollback(registry: Registry) -> tuple[Version, Version]:
    """Returns the champion, and the previous one that is to take its place.

    Raises:
        RunError: There is no previous champion.
    """
    champion = registry.version_by_alias("champion")
    previous = registry.version_by_alias("previous")
    if champion is None or previous is None:
        raise RunError(
            f"model {registry.model} has no champion before the present one; "
            f"versions: {[version.number for version in registry.versions()]}"
        )
    return champion, previous


def preview_rollback(registry: Registry) -> str:
    """Says what a rollback would do. Errors are those of `plan_rollback`."""
    champion, previous = plan_rollback(registry)
    return f"would make {previous} the champion again, in place of {champion}"


def roll_back(registry: Registry, by: str | None = None) -> tuple[int, Decision]:
    """Makes the previous champion the champion again.

    Args:
        registry: The registry of the model.
        by: Who asked.

    Returns:
        Its version, and the decision.

    Raises:
        RunError: There is no previous champion.
    """
    champion, previous = plan_rollback(registry)
    next_previous = previous.tags.get(PREVIOUS_CHAMPION_TAG)
    registry.set_alias("champion", previous.number)
    registry.set_alias("previous", int(next_previous) if next_previous else None)
    decision = Decision(True, f"rolled back from version {champion.number}")
    record_decision(registry, previous.number, decision, by)
    record_decision(
        registry, champion.number, Decision(False, f"rolled back to version {previous.number}"), by
    )
    return previous.number, decision


def describe_champion(number: int, decision: Decision) -> str:
    """Returns that a version is the champion, and why.

    Raises:
        GateRefusedError: It is not.
    """
    if not decision.promote:
        raise GateRefusedError(f"version {number} was not promoted: {decision.reason}")
    return f"version {number} is the champion: {decision.reason}"


def record_decision(
    registry: Registry, number: int, decision: Decision, by: str | None = None
) -> None:
    """Records a decision as one more tag of the version, and among the events of its run."""
    tag = f"{DECISION_TAG}{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    asked = {"by": by} if by else {}
    registry.set_tags(number, {tag: json.dumps(asdict(decision) | asked)})
    run_uri = posixpath.dirname(posixpath.dirname(registry.version(number).checkpoint))
    # The file has one writer. While a run goes on, that is its driver, and the tag has to suffice.
    if _has_ended(run_uri):
        lease = read_lease(run_uri)
        run, corpus = (lease.run, lease.corpus) if lease else (posixpath.basename(run_uri), "")
        with suppress(RunError), claim(run_uri, run, corpus, lambda line: None) as held:
            _record_event(run_uri, number, decision, held.lease, by)


def _has_ended(run_uri: str) -> bool:
    """Returns whether a run writes no more, as its last event tells."""
    past = read_events(run_uri)
    # By name: an event that another release wrote with other fields has no class here.
    return bool(past) and past[-1].event in ENDING_EVENTS


def _record_event(
    run_uri: str, number: int, decision: Decision, lease: Lease, by: str | None
) -> None:
    """Adds a decision to the events of a run, unless it goes on since it was looked at."""
    if _has_ended(run_uri):
        events = open_events(run_uri, lease)
        events.append(
            PromotionDecided(
                samples=events.read()[-1].samples,
                version=number,
                promoted=decision.promote,
                because=decision.reason,
                by=by,
            )
        )
        events.flush()
