"""Commits the versions of a corpus, and finds those that were committed before."""

import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NotRequired, TypedDict

from cluster import storage
from cluster.console import Say
from cluster.errors import CommitConflictError
from corpus.ingest import data_roots, quarantine
from corpus.ingest.feedback import FeedbackCounts
from corpus.settings import DataSettings
from corpus.store import delta
from corpus.store.delta import WrittenFile
from corpus.store.statistics import VersionStatistics
from corpus.store.stored_interactions import InteractionFile
from corpus.store.tables import (
    PARTITION_COLUMNS,
    SAMPLES,
    SAMPLES_TABLE_SCHEMA,
    Corpus,
)

STATISTICS_FILE = "statistics.json"

MAX_ATTEMPTS = 100
"""Attempts of an append that other processes keep overtaking, before it gives up."""

MAX_BACKOFF_S = 4.0
"""Longest pause before the next attempt, in seconds."""


class Origin(TypedDict):
    """Where the rows of a version came from.

    Attributes:
        root: Data root; of text, its file.
        format: `data.format`, or `text`.
        domains: Domains that were read; of text, its source.
        platform: `data.platform`; absent where none is named.
    """

    root: str
    format: str
    domains: list[str]
    platform: NotRequired[str]


class VersionMetadata(TypedDict):
    """What the commit of a version says about it.

    Attributes:
        fingerprint: Identity of what version 0 was made of.
        rules: Rules by which samples are made, the same in every version.
        appended: Identity of the append that made the version; absent in version 0.
        origin: Where the rows came from; a list where they are from several data roots.
        domains: Pre-training domains of the corpus.
        held_out: Domains held out of pre-training.
        quarantine: File of the rows that cannot be used; None if there are none.
        text: Digest of the text that was appended; absent where none was.
        feedback: What became of the served rankings of an append of feedback, by domain; absent
            where there were none.
        items_version: Version of `items/` that the samples refer to.
        item_runs: Item indices of each domain, as runs: the first, and the one past the last.
        statistics: The statistics of the version, without `version`.
        interactions: Files of the interactions that the version added.
    """

    fingerprint: str
    rules: dict[str, Any]
    appended: NotRequired[str]
    origin: Origin | list[Origin]
    domains: Sequence[str]
    held_out: Sequence[str]
    quarantine: str | None
    text: NotRequired[str]
    feedback: NotRequired[Annotated[dict[str, dict[str, int]], dict[str, FeedbackCounts]]]
    items_version: int
    item_runs: dict[str, list[list[int]]]
    statistics: VersionStatistics
    interactions: Annotated[list[dict[str, Any]], list[InteractionFile]]


def commit_version(
    uri: str,
    sample_files: Sequence[WrittenFile],
    metadata: VersionMetadata,
    *,
    parent_version: int | None,
    transaction_id: str,
    say: Say,
) -> Corpus:
    """Commits written files as the next version of a corpus, and publishes its statistics.

    Args:
        uri: URI of the corpus.
        sample_files: The files of samples.
        metadata: What the commit says about the version.
        parent_version: The version that the files were made for; None for a new corpus.
        transaction_id: Identity of the build or append, so that it is not committed twice.
        say: Receives progress lines.

    Raises:
        CommitConflictError: Another process committed first.
    """
    version = delta.commit(
        storage.join(uri, SAMPLES),
        SAMPLES_TABLE_SCHEMA,
        sample_files,
        parent_version=parent_version,
        partition_by=PARTITION_COLUMNS,
        metadata=metadata,
        transaction_id=transaction_id,
    )
    newest = Corpus.open(uri)
    publish_statistics(newest)
    num_samples = sum(file.rows for file in sample_files)
    say(f"committed corpus version {version} at {uri}: {num_samples:,} samples")
    if quarantine_file := metadata["quarantine"]:
        path = storage.join(uri, quarantine.FOLDER, quarantine_file)
        say(f"rows that cannot be used, by file and reason, with the first of each: {path}")
    if not metadata["statistics"]["mixed"]["samples"]:
        say(
            "no mixed sample: no user's history spans enough domains, so annealing has nothing "
            "to read; give users one id in all domains (see data.mixed_min_domains), or pre-train "
            "with schedule.mode domain_only"
        )
    # Another append may have landed since: return the version that was just committed.
    return Corpus(uri, version, newest.commits[: version + 1])


def publish_statistics(corpus: Corpus) -> None:
    """Writes statistics.json: a list of one object per version, the oldest first.

    It only repeats what the commits to `samples` hold, so it may be written again at any time.

    Args:
        corpus: The newest version; versions that are committed meanwhile are written too.
    """
    uri = storage.join(corpus.uri, STATISTICS_FILE)
    while True:
        versions = [
            Corpus(corpus.uri, commit.version, corpus.commits[: commit.version + 1]).statistics()
            for commit in corpus.commits
        ]
        storage.write_text(uri, json.dumps(versions, indent=2) + "\n")
        # This may have replaced what another process wrote of a version that it committed.
        newest = Corpus.open(corpus.uri)
        if newest.version == corpus.version:
            return
        corpus = newest


def origin(data: DataSettings, domains: Sequence[str]) -> Origin | list[Origin]:
    """Returns where the interactions of some domains come from."""
    origins = [
        _origin_in(single, names) for single, names in data_roots.split_by_root(data, domains)
    ]
    return origins if len(origins) > 1 else origins[0]


def _origin_in(data: DataSettings, domains: Sequence[str]) -> Origin:
    found: Origin = {
        "root": storage.absolute_uri(data.only_root),
        "format": data.format,
        "domains": list(domains),
    }
    if data.platform is not None:
        found["platform"] = data.platform
    return found


def platforms(corpus: Corpus) -> dict[str, str | None]:
    """Returns the platform of each domain of a corpus: whose customers its users are."""
    found: dict[str, str | None] = {}
    for commit in corpus.commits:
        origins = commit.metadata.get("origin", [])
        for one in origins if isinstance(origins, list) else [origins]:
            found |= dict.fromkeys(one["domains"], one.get("platform"))
    return found


def commit_with_retries(uri: str, attempt: Callable[[Corpus], Corpus], say: Say) -> Corpus:
    """Runs an attempt on the newest version until no other process commits in the meantime.

    Args:
        uri: URI of the corpus.
        attempt: Makes and commits the version that follows the given one.
        say: Receives progress lines.

    Raises:
        CommitConflictError: Other processes committed first MAX_ATTEMPTS times.
    """
    for number in range(MAX_ATTEMPTS):
        started = time.monotonic()
        try:
            return attempt(Corpus.open(uri))
        except CommitConflictError as error:
            say(f"{error}; the append starts again")
            # Appends that race go on at different times, or one would overtake all others again.
            # The pause is bounded, so that none sleeps for long while nobody else works.
            elapsed = time.monotonic() - started
            longest = min(elapsed * min(1 << number, 4), MAX_BACKOFF_S)
            time.sleep(random.uniform(0, longest))
    raise CommitConflictError(
        f"{uri}: other processes committed {MAX_ATTEMPTS} times in the meantime; start the append "
        "again when fewer processes write to this corpus"
    )


def open_if_appended(corpus: Corpus, identity: str, subject: str, say: Say) -> Corpus | None:
    """Returns the version that an append made earlier, after saying so; None if there is none.

    Args:
        corpus: The newest version.
        identity: Identity of the append.
        subject: Start of the progress line, such as "this text is".
        say: Receives progress lines.
    """
    if (version := find_version(corpus, identity)) is None:
        return None
    publish_statistics(corpus)
    say(f"{subject} in the corpus already, since version {version}; nothing to do")
    return Corpus.open(corpus.uri, version)


def find_version(corpus: Corpus, identity: str) -> int | None:
    """Returns the version that an append made earlier; None if there is none."""
    return next(
        (commit.version for commit in corpus.commits if commit.transaction_id == identity), None
    )
