"""Starts of a run's worker group: attempts/<number>.json below <storage>/<run>/.

The file of an attempt says where it began. What an earlier attempt saves beyond that does not
count, whenever it does so: a worker that was paused may complete a checkpoint after its run has
gone on from an older one. No two attempts have one number, so none writes into another's folder.
"""

import json
import re

from cluster.storage import create_text, join, list_names, read_many
from cprec.runs.control.lease import Lease
from cprec.runs.record_files import parse_record, read_record
from cprec.runs.records import Attempt

ATTEMPTS_FOLDER = "attempts"

_ATTEMPT_FILE = re.compile(r"[0-9]{6,18}\.json")


def begin_attempt(
    lease: Lease, number: int, samples: int, checkpoint: str | None, workers: int
) -> Attempt:
    """Begins an attempt under the lowest number that is free.

    Args:
        lease: The lease of the run.
        number: The lowest number that may be free: no attempt without a file has it.
        samples: Samples that are trained already.
        checkpoint: URI of the checkpoint that the attempt goes on from; None: it begins at 0.
        workers: Number of workers.

    Raises:
        LeaseLostError: Another driver has taken over the run.
    """
    begun = list_attempts(lease.run_uri)
    number = max(number, *(attempt.number + 1 for attempt in begun), 0)
    while True:
        attempt = Attempt(
            number=number,
            lease=lease.number,
            owner=lease.owner,
            samples=samples,
            checkpoint=checkpoint,
            workers=workers,
        )
        lease.require()
        uri = join(lease.run_uri, ATTEMPTS_FOLDER, f"{number:06d}.json")
        if create_text(uri, json.dumps(attempt.to_json())) or read_record(uri, Attempt) == attempt:
            return attempt
        number += 1


def list_attempts(run_uri: str) -> list[Attempt]:
    """Lists the attempts of a run, in order; earlier releases left no file of them.

    Raises:
        RunError: The file of one is damaged.
    """
    folder = join(run_uri, ATTEMPTS_FOLDER)
    names = [name for name in list_names(folder) if _ATTEMPT_FILE.fullmatch(name)]
    contents = read_many([join(folder, name) for name in names])
    attempts = [
        parse_record(join(folder, name), content, Attempt)
        for name, content in zip(names, contents, strict=True)
    ]
    return sorted(attempts, key=_order)


def find_successor(attempts: list[Attempt], number: int, samples: int) -> Attempt | None:
    """Returns an attempt that makes a checkpoint void; None if the checkpoint counts.

    Args:
        attempts: All attempts of the run.
        number: The attempt that saved the checkpoint.
        samples: Samples seen when it was saved.
    """
    own = next((_order(attempt) for attempt in attempts if attempt.number == number), (0, number))
    later = (attempt for attempt in attempts if _order(attempt) > own)
    return next((attempt for attempt in later if attempt.samples < samples), None)


def _order(attempt: Attempt) -> tuple[int, int]:
    """Orders attempts. One that began under an older lease is older, whatever its number."""
    return attempt.lease, attempt.number
