"""Requests that wait for a run, as files of one folder; whoever can write there may leave anything.

Whatever is not a request is moved aside: it is looked at once, and its author can find it.
"""

import json
import re
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict, get_args

from cluster.errors import AccessDeniedError, UserError
from cluster.local_files import FileEntry
from cluster.storage import (
    join,
    list_oldest_first,
    move,
    read_bytes_if_exists,
    remove_file,
)

REQUESTS_FOLDER = "requests"
REFUSED_FOLDER = "requests-refused"

Action = Literal["look", "hold", "release", "anneal", "stop"]
"""What a run can be asked to do: look at the corpus, change its stable phase, or stop."""

ACTIONS: tuple[Action, ...] = get_args(Action)

MAX_REQUESTS = 500
"""Requests that are served at a time; meanwhile, workers wait for their controller."""

MAX_REQUEST_BYTES = 1 << 16
"""Size above which a file is not a request (bytes)."""

MAX_SENDER = 80
"""Characters that are kept of the name of whoever sent a request."""

MAX_NAME = 50
"""Characters that are kept of the name of a file that is moved aside."""

GRACE_S = 4.0
"""Time for which a file that cannot be read may still be being written (seconds)."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")

_THREADS = 16


class StoredRequest(TypedDict):
    """The content of a request's file.

    Attributes:
        do: What the run is asked to do.
        by: Who asks, for people.
    """

    do: Action
    by: NotRequired[str]


@dataclass(frozen=True)
class Request:
    """A request that waits for an answer.

    Attributes:
        id: Its id, the name of its file without `.json`.
        action: What the run is asked to do.
        by: Who asks, for people; None: nobody said.
    """

    id: str
    action: Action
    by: str | None = None


@dataclass(frozen=True)
class BadRequest:
    """A file that is not a request.

    Attributes:
        name: The name of the file.
        problem: What is wrong with it, for people.
    """

    name: str
    problem: str

    @property
    def id(self) -> str:
        """The name without `.json`, as text: the bytes of a name may be none."""
        return _printable(self.name.removesuffix(".json"))


class RequestQueue:
    """The requests that wait for one run."""

    def __init__(self, run_uri: str) -> None:
        self._folder = join(run_uri, REQUESTS_FOLDER)
        self._refused_folder = join(run_uri, REFUSED_FOLDER)
        self._first_seen: dict[str, float] = {}
        self._unmovable: set[str] = set()

    def take(self, answered: Collection[str]) -> list[Request | BadRequest]:
        """Returns the next requests, in the order in which they arrived at the storage.

        Args:
            answered: Ids of requests that were answered, and whose files may still be there.
        """
        entries = [
            entry
            for entry in list_oldest_first(self._folder)
            if entry.name.endswith(".json") and not entry.name.startswith(".")
        ]
        now = time.monotonic()
        self._first_seen = {e.name: self._first_seen.get(e.name, now) for e in entries}
        waiting = [
            entry
            for entry in entries
            if _id(entry) not in answered and entry.name not in self._unmovable
        ][:MAX_REQUESTS]
        with ThreadPoolExecutor(_THREADS) as pool:
            parsed = list(pool.map(self._read, waiting))
        return [
            request
            for entry, request in zip(waiting, parsed, strict=True)
            if isinstance(request, Request) or self._has_waited(entry, now)
        ]

    def remove(self, ids: Collection[str]) -> set[str]:
        """Removes the files of requests; returns the ids of those that could not be removed."""
        ordered = sorted(ids)
        with ThreadPoolExecutor(_THREADS) as pool:
            removed = list(pool.map(self._remove, ordered))
        return {id_ for id_, is_removed in zip(ordered, removed, strict=True) if not is_removed}

    def _remove(self, request_id: str) -> bool:
        try:
            remove_file(join(self._folder, f"{request_id}.json"))
        except (OSError, AccessDeniedError):
            return False
        return True

    def move_aside(self, bad: BadRequest) -> str:
        """Moves a file that is not a request out of the way; returns where it is now."""
        source = join(self._folder, bad.name)
        safe_name = re.sub(r"[^A-Za-z0-9._-]", "_", bad.id)[:MAX_NAME]
        # Under a name of its own: there may be an earlier one, and a name has a longest length.
        target = join(self._refused_folder, f"{time.time_ns()}-{safe_name}.json")
        try:
            move(source, target)
        except (OSError, AccessDeniedError):  # then it stays, and is passed over
            self._unmovable.add(bad.name)
            return _printable(source)
        return target

    def _has_waited(self, entry: FileEntry, now: float) -> bool:
        """Returns whether a file that cannot be read has been there for a while."""
        return now - self._first_seen[entry.name] >= GRACE_S

    def _read(self, entry: FileEntry) -> Request | BadRequest:
        uri = join(self._folder, entry.name)
        problem = "it is not a file"
        if not _NAME.fullmatch(entry.name):
            problem = "its name is none that this project's jobs give"
        elif entry.is_file and entry.size > MAX_REQUEST_BYTES:
            problem = f"it has {entry.size:,} bytes"
        elif entry.is_file:
            try:
                return Request(_id(entry), *_parse(read_bytes_if_exists(uri) or b""))
            except (OSError, UserError, ValueError, RecursionError) as error:
                problem = " ".join(str(error).split())[:200]
        return BadRequest(entry.name, problem)


def _parse(content: bytes) -> tuple[Action, str | None]:
    """Reads what is asked, and who asks; raises ValueError if it is no request."""
    with suppress(UnicodeDecodeError, json.JSONDecodeError):
        values: Any = json.loads(content)
        asked = values.get("do") if isinstance(values, dict) else None
        for action in ACTIONS:
            if action == asked:
                return action, _clean_sender(values.get("by"))
    raise ValueError(f'it must be {{"do": ACTION}} with ACTION one of {", ".join(ACTIONS)}')


def _clean_sender(sender: Any) -> str | None:
    """Returns the name of a sender on one line; None if there is none."""
    return (_printable(" ".join(str(sender).split()))[:MAX_SENDER] or None) if sender else None


def _printable(text: str) -> str:
    """Returns a text with escapes for what no terminal, page or UTF-8 file can hold."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def is_request_id(text: str) -> bool:
    """Returns whether a text can be the id of a request, and so a part of a file's name."""
    return _NAME.fullmatch(f"{text}.json") is not None


def _id(entry: FileEntry) -> str:
    return entry.name.removesuffix(".json")
