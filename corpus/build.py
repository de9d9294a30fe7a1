"""Builds version 0 of a corpus from the raw behaviours of the domains that the recipe names.

The items are committed first, then all samples in one transaction; statistics.json is written last.
A build that was killed at any point is completed by running the same build again.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from cluster import storage
from cluster.console import Say
from cluster.errors import CorpusError, DataError
from corpus.backend import Backend, MapFunction, UncommittedSamples
from corpus.ingest import quarantine, simulation, speaking_titles
from corpus.ingest.sources import file_splits, layout
from corpus.local import LOCAL
from corpus.settings import DataSettings, SimulateSettings
from corpus.store import (
    catalogue,
    conditional_puts,
    delta,
    statistics,
    stored_interactions,
)
from corpus.store.catalogue import count_items
from corpus.store.tables import (
    PARTITION_COLUMNS,
    SAMPLES,
    SAMPLES_TABLE_SCHEMA,
    Corpus,
    publish_statistics,
)

RULES_VERSION = 1
"""Version of the code that makes samples; raised whenever the same input would make others."""

RULE_KEYS = (
    "k_core",
    "min_history",
    "max_history",
    "num_candidates",
    "mixed_min_domains",
    "mixed_min_target_domain",
    "users_together",
    "speaking_titles",
)
"""Keys of `data` that all versions of a corpus share: they decide which samples exist, or what
stands in them."""


def simulate_and_build(
    data: DataSettings, simulate: SimulateSettings, seed: int, uri: str, say: Say
) -> Corpus:
    """Builds the corpus if it is missing, from simulated behaviours if the recipe asks for them.

    Behaviours that were simulated before are used again. Arguments and errors are those of `build`.
    """
    if data.format == "simulated":
        simulation.write_data_root(data, simulate, seed)
    return build(data, seed, uri, say)


def build(data: DataSettings, seed: int, uri: str, say: Say) -> Corpus:
    """Builds version 0 of a corpus, unless it already exists with the same input, rules and seed.

    Args:
        data: Where the behaviours are, and the rules that turn them into samples.
        seed: Seed for drawing candidates.
        uri: URI of the corpus.
        say: Receives progress lines.

    Returns:
        Version 0; of an existing corpus its newest version.

    Raises:
        DataError: The behaviours cannot be used.
        CorpusError: Another corpus is at the URI, or the URI is the data root.
    """
    uri = storage.absolute_uri(uri)
    _require_own_place(uri, data.root)
    with choose_backend(data, say) as backend:
        identity = fingerprint(data, seed, backend.map)
        if (existing := _find_existing(uri, identity, say)) is not None:
            publish_statistics(existing)
            return existing
        conditional_puts.require_conditional_puts(uri)
        prepared = backend.prepare(data, say)
        items_version = catalogue.create_items(uri, prepared.items, identity)
        item_indices = prepared.item_indices()
        num_interactions = sum(rows for rows, _ in prepared.counts_by_domain.values())
        say(f"making samples of {num_interactions:,} interactions")
        samples = prepared.write_sample_files(data, seed, uri)
    quarantine_file = quarantine.write(uri, data.root, prepared.quarantined)
    version_statistics = statistics.describe_version(
        statistics.EMPTY_STATISTICS,
        prepared.counts_by_domain,
        count_items(item_indices),
        data,
        statistics.count_samples(samples.sample_files),
        samples.mixed_users,
        prepared.dropped + samples.dropped,
        speaking_titles.count_by_domain(prepared.items),
    )
    version_metadata = {
        "fingerprint": identity,
        "rules": rules(data, seed),
        "origin": origin(data, (*data.domains, *data.held_out)),
        "domains": data.domains,
        "held_out": data.held_out,
        quarantine.FOLDER: quarantine_file,
        "items_version": items_version,
        "item_runs": catalogue.encode_runs(item_indices),
    }
    return commit_version(
        uri,
        samples,
        version_statistics,
        version_metadata,
        parent_version=None,
        transaction_id=identity,
        say=say,
    )


def preview(
    data: DataSettings, simulate: SimulateSettings, seed: int, uri: str, say: Say
) -> dict[str, Any]:
    """Checks the input of `simulate_and_build`, and writes nothing that stays.

    Arguments and errors are those of `simulate_and_build`.

    Returns:
        The statistics of the version that would be built, or of the one that is there. Counts of
        mixed samples are upper bounds: the rules for mixed histories are not applied.
    """
    uri = storage.absolute_uri(uri)
    _require_own_place(uri, data.root)
    with open_preview_root(data, simulate, seed) as data, choose_backend(data, say) as backend:
        identity = fingerprint(data, seed, backend.map)
        if (existing := _find_existing(uri, identity, say)) is not None:
            return existing.statistics()
        prepared = backend.prepare(data, say)
    return statistics.describe_version(
        statistics.EMPTY_STATISTICS,
        prepared.counts_by_domain,
        count_items(prepared.item_indices()),
        data,
        prepared.sample_bounds,
        0,
        prepared.dropped,
        speaking_titles.count_by_domain(prepared.items),
    )


@contextmanager
def preview_corpus(
    data: DataSettings, simulate: SimulateSettings, seed: int, uri: str
) -> Iterator[Corpus]:
    """Yields the corpus that `simulate_and_build` would build, as long as a `with` block runs.

    It is built in a temporary folder. Arguments and errors are those of `simulate_and_build`.
    """
    _require_own_place(storage.absolute_uri(uri), data.root)
    with (
        open_preview_root(data, simulate, seed) as data,
        tempfile.TemporaryDirectory() as folder,
    ):
        yield build(data, seed, storage.join(folder, "corpus"), lambda line: None)


@contextmanager
def open_preview_root(
    data: DataSettings, simulate: SimulateSettings, seed: int
) -> Iterator[DataSettings]:
    """Yields settings whose root has the behaviours; simulated ones may be there only for now."""
    if data.format != "simulated":
        yield data
        return
    with simulation.preview_data_root(data, simulate, seed) as simulated:
        yield simulated


def _require_own_place(uri: str, root: str) -> None:
    """Raises CorpusError if the place of a corpus is the data root."""
    if uri == storage.absolute_uri(root):
        raise CorpusError(
            f"{uri}: the key corpus names the data root; choose another place for the corpus"
        )


@contextmanager
def choose_backend(
    data: DataSettings, say: Say, count_existing: Callable[[int], int] = lambda expected: 0
) -> Iterator[Backend]:
    """Yields the backend for some behaviours: Ray above `data.distribute_above` interactions.

    The size is estimated from file sizes and parquet footers; no behaviours are read.

    Args:
        data: Settings that name the domains.
        say: Receives progress lines.
        count_existing: Counts the stored interactions that an append needs too, given the estimated
            number of new ones. Called only if the new ones alone do not exceed the limit.
    """
    expected = sum(
        file_splits.estimate_rows(file)
        for domain in (*data.domains, *data.held_out)
        for file in layout.find_files(data, domain)[0]
    )
    if expected <= data.distribute_above:
        expected += count_existing(expected)
    if expected <= data.distribute_above:
        yield LOCAL
        return
    from corpus import distributed  # imported lazily: only a large build or append needs Ray

    say(
        f"about {expected:,} interactions, more than data.distribute_above "
        f"({data.distribute_above:,}): building on Ray"
    )
    with distributed.session():
        yield distributed.RAY


def commit_version(
    uri: str,
    samples: UncommittedSamples,
    version_statistics: dict[str, Any],
    version_metadata: dict[str, Any],
    *,
    parent_version: int | None,
    transaction_id: str,
    say: Say,
) -> Corpus:
    """Commits written files as the next version of a corpus, and publishes its statistics.

    Args:
        uri: URI of the corpus.
        samples: The files, and what is reported about them.
        version_statistics: The version's object in statistics.json, without its version number.
        version_metadata: What else the commit records about the version.
        parent_version: The version that the files were made for; None for a new corpus.
        transaction_id: Identity of the build or append, so that it is not committed twice.
        say: Receives progress lines.

    Raises:
        CommitConflictError: Another process committed first.
    """
    metadata = {
        **version_metadata,
        "statistics": version_statistics,
        stored_interactions.INTERACTIONS: stored_interactions.to_metadata(
            samples.interaction_files
        ),
    }
    version = delta.commit(
        storage.join(uri, SAMPLES),
        SAMPLES_TABLE_SCHEMA,
        samples.sample_files,
        parent_version=parent_version,
        partition_by=PARTITION_COLUMNS,
        metadata=metadata,
        transaction_id=transaction_id,
    )
    newest = Corpus.open(uri)
    publish_statistics(newest)
    num_samples = sum(file.rows for file in samples.sample_files)
    say(f"committed corpus version {version} at {uri}: {num_samples:,} samples")
    if quarantine_file := version_metadata[quarantine.FOLDER]:
        path = storage.join(uri, quarantine.FOLDER, quarantine_file)
        say(f"rows that cannot be used, by file and reason, with the first of each: {path}")
    if not version_statistics["mixed"]["samples"]:
        say(
            "no mixed sample: no user's history spans enough domains, so annealing has nothing "
            "to read; give users one id in all domains (see data.mixed_min_domains), or pre-train "
            "with schedule.mode domain_only"
        )
    # Another append may have landed since: return the version that was just committed.
    return Corpus(uri, version, newest.commits[: version + 1])


def origin(data: DataSettings, domains: Sequence[str]) -> dict[str, Any]:
    """Returns what a commit records about where its behaviours came from."""
    return {
        "root": storage.absolute_uri(data.root),
        "format": data.format,
        "domains": list(domains),
    }


def rules(data: DataSettings, seed: int) -> dict[str, Any]:
    """Returns the rules that all versions of a corpus share: RULE_KEYS, RULES_VERSION, the seed."""
    settings: dict[str, Any] = json.loads(
        data.model_dump_json(include=set(RULE_KEYS), exclude=_omitted_keys(data))
    )
    return {
        **{f"data.{key}": value for key, value in settings.items()},
        "seed": seed,
        "rules": RULES_VERSION,
    }


def _omitted_keys(data: DataSettings) -> set[str]:
    """Returns the keys to leave out of rules and fingerprints: later additions at their default.

    So a corpus of a release that did not have these keys keeps its rules and its fingerprint.
    """
    defaults = {"users_together": False, "speaking_titles": "keep", "until_day": None}
    return {key for key, default in defaults.items() if getattr(data, key) == default}


def fingerprint(data: DataSettings, seed: int, map_files: MapFunction = map) -> str:
    """Returns the identity of a build: a digest of all that its samples depend on.

    These are the rules, the seed, and the content of every input file. Paths do not count.

    Args:
        data: Settings of the build.
        seed: Seed for drawing candidates.
        map_files: Applies a function to many files (`corpus.backend.Backend.map`).

    Raises:
        DataError: A file is missing, or its content is not what SHA256SUMS says.
    """
    settings = json.loads(
        data.model_dump_json(exclude={"root", "format", "distribute_above"} | _omitted_keys(data))
    )
    settings["layout"] = layout.effective_format(data)
    if data.speaking_titles != "keep":
        settings["speech"] = speaking_titles.PATTERNS
    settings["domains"] = sorted(data.domains)
    settings["held_out"] = sorted(data.held_out)
    digests = file_digests(data, (*settings["domains"], *settings["held_out"]), map_files)
    return storage.sha256(
        json.dumps([RULES_VERSION, settings, seed, digests], sort_keys=True).encode()
    )


def file_digests(
    data: DataSettings, domains: Sequence[str], map_files: MapFunction = map
) -> dict[str, list[list[str]]]:
    """Returns the SHA-256 of every file of each domain, as [interaction files, item files].

    Args:
        data: Settings that say where the files are.
        domains: Names of the domains.
        map_files: Applies a function to many files (`corpus.backend.Backend.map`).

    Raises:
        DataError: A file is missing, or its content is not what SHA256SUMS says.
    """
    files_by_domain = {domain: layout.find_files(data, domain) for domain in domains}
    # Domains may share a file, which is then read once.
    files = list(
        dict.fromkeys(file for kinds in files_by_domain.values() for kind in kinds for file in kind)
    )
    digests = dict(
        zip(
            files,
            map_files(partial(_verified_digest, layout.read_sha256sums(data.root)), files),
            strict=True,
        )
    )
    return {
        domain: [[digests[file] for file in kind] for kind in kinds]
        for domain, kinds in files_by_domain.items()
    }


def _verified_digest(expected_digests: Mapping[str, str], file: str) -> str:
    """Returns the SHA-256 of a file; raises DataError if SHA256SUMS has another one for it."""
    digest = storage.file_sha256(file)
    expected = expected_digests.get(file, digest)
    if expected != digest:
        raise DataError(
            f"{file}: its content is not what SHA256SUMS says (sha256 is {digest[:16]}..., "
            f"expected: {expected[:16]}...); fetch or write it again"
        )
    return digest


def _find_existing(uri: str, identity: str, say: Say) -> Corpus | None:
    """Opens a corpus that exists already, after saying so; None if there is none.

    Raises:
        CorpusError: It was built from other behaviours, rules or seed.
    """
    commits = delta.read_commits(storage.join(uri, SAMPLES))
    if not commits:
        return None
    if commits[0].metadata["fingerprint"] != identity:
        raise CorpusError(
            f"{uri}: holds a corpus of other behaviours, rules or seed; choose another place with "
            "--corpus, append to this one with jobs/append_domain.py, or remove it"
        )
    say(
        f"the corpus at {uri} exists already, made of the same behaviours, rules and seed; "
        "nothing to do"
    )
    return Corpus.open(uri)
