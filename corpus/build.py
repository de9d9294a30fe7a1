"""Builds version 0 of a corpus from the raw interactions of the domains that the recipe names.

The items are committed first, then all samples in one transaction; statistics.json is written last.
A build that was killed at any point is completed by running the same build again.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster import storage
from cluster.console import Say
from cluster.errors import CorpusError
from cluster.progress import track
from corpus.backend import Backend
from corpus.fingerprints import fingerprint, rules, with_template
from corpus.ingest import data_roots, prompt_injection, quarantine, simulation
from corpus.ingest.sources import file_splits, layout
from corpus.local import LOCAL
from corpus.settings import DataSettings, SimulateSettings
from corpus.store import catalogue, conditional_puts, delta, statistics
from corpus.store.catalogue import count_items
from corpus.store.statistics import VersionStatistics
from corpus.store.stored_interactions import to_metadata
from corpus.store.tables import SAMPLES, Corpus
from corpus.versions import VersionMetadata, commit_version, origin, publish_statistics


def simulate_and_build(
    data: DataSettings, simulate: SimulateSettings, seed: int, uri: str, say: Say
) -> Corpus:
    """Builds the corpus if it is missing, from simulated interactions if the recipe asks for them.

    What was simulated before is used again. Arguments and errors are those of `build`.
    """
    if data.format == "simulated":
        simulation.write_data_root(data, simulate, seed)
    return build(data, seed, uri, say)


def build(data: DataSettings, seed: int, uri: str, say: Say) -> Corpus:
    """Builds version 0 of a corpus, unless it already exists with the same input, rules and seed.

    Args:
        data: Where the interactions are, and the rules that turn them into samples.
        seed: Seed for drawing candidates.
        uri: URI of the corpus.
        say: Receives progress lines.

    Returns:
        Version 0; of an existing corpus its newest version.

    Raises:
        DataError: The interactions cannot be used.
        CorpusError: Another corpus is at the URI, or the URI is the data root.
    """
    uri = storage.absolute_uri(uri)
    _require_own_place(uri, data)
    data = _with_own_template(data, uri)
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
        with track("making samples", say):
            samples = prepared.write_sample_files(data, seed, uri)
    quarantine_file = quarantine.write(uri, data, prepared.quarantined)
    version_statistics = statistics.describe_version(
        statistics.EMPTY_STATISTICS,
        prepared.counts_by_domain,
        count_items(item_indices),
        data,
        statistics.count_samples(samples.sample_files),
        samples.mixed_users,
        prepared.dropped + samples.dropped,
        prompt_injection.count_by_domain(prepared.items),
    )
    metadata: VersionMetadata = {
        "fingerprint": identity,
        "rules": rules(data, seed),
        "origin": origin(data, (*data.domains, *data.held_out)),
        "domains": data.domains,
        "held_out": data.held_out,
        "quarantine": quarantine_file,
        "items_version": items_version,
        "item_runs": catalogue.encode_runs(item_indices),
        "statistics": version_statistics,
        "interactions": to_metadata(samples.interaction_files),
    }
    catalogue.require_own_items(uri, items_version)
    return commit_version(
        uri,
        samples.sample_files,
        metadata,
        parent_version=None,
        transaction_id=identity,
        say=say,
    )


def preview(
    data: DataSettings, simulate: SimulateSettings, seed: int, uri: str, say: Say
) -> VersionStatistics:
    """Checks the input of `simulate_and_build`, and writes nothing that stays.

    Arguments and errors are those of `simulate_and_build`.

    Returns:
        The statistics of the version that would be built, or of the one that is there. Counts of
        mixed samples are upper bounds: the rules for mixed histories are not applied.
    """
    uri = storage.absolute_uri(uri)
    _require_own_place(uri, data)
    data = _with_own_template(data, uri)
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
        prompt_injection.count_by_domain(prepared.items),
    )


@contextmanager
def preview_corpus(
    data: DataSettings, simulate: SimulateSettings, seed: int, uri: str
) -> Iterator[Corpus]:
    """Yields the corpus that `simulate_and_build` would build, as long as a `with` block runs.

    It is built in a temporary folder. Arguments and errors are those of `simulate_and_build`.
    """
    _require_own_place(storage.absolute_uri(uri), data)
    with (
        open_preview_root(data, simulate, seed) as data,
        tempfile.TemporaryDirectory() as folder,
    ):
        yield build(data, seed, storage.join(folder, "corpus"), lambda line: None)


@contextmanager
def open_preview_root(
    data: DataSettings, simulate: SimulateSettings, seed: int
) -> Iterator[DataSettings]:
    """Yields settings whose root has the interactions; simulated ones may be there only for now."""
    if data.format != "simulated":
        yield data
        return
    with simulation.preview_data_root(data, simulate, seed) as simulated:
        yield simulated


def _with_own_template(data: DataSettings, uri: str) -> DataSettings:
    """Returns settings with the template of the corpus at a URI, or of a new one."""
    is_there = bool(delta.read_commits(storage.join(uri, SAMPLES)))
    return with_template(data, Corpus.open(uri) if is_there else None)


def _require_own_place(uri: str, data: DataSettings) -> None:
    """Raises CorpusError if the place of a corpus is a data root."""
    if uri in (storage.absolute_uri(root.path) for root in data.roots):
        raise CorpusError(
            f"{uri}: the key corpus names the data root; choose another place for the corpus"
        )


@contextmanager
def choose_backend(
    data: DataSettings, say: Say, count_existing: Callable[[int], int] = lambda expected: 0
) -> Iterator[Backend]:
    """Yields the backend: Ray for more than `data.distribute_above` interactions.

    The size is estimated from file sizes and parquet footers; no interactions are read.

    Args:
        data: Settings that name the domains.
        say: Receives progress lines.
        count_existing: Counts the stored interactions that an append needs too, given the estimated
            number of new ones. Called only if the new ones alone do not exceed the limit.
    """
    expected = sum(
        file_splits.estimate_rows(file)
        for domain in (*data.domains, *data.held_out)
        for file in layout.find_files(data_roots.at_root(data, domain), domain)[0]
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


def _find_existing(uri: str, identity: str, say: Say) -> Corpus | None:
    """Opens a corpus that exists already, after saying so; None if there is none.

    Raises:
        CorpusError: It was built from other interactions, rules or seed.
    """
    commits = delta.read_commits(storage.join(uri, SAMPLES))
    if not commits:
        return None
    if commits[0].metadata["fingerprint"] != identity:
        raise CorpusError(
            f"{uri}: holds a corpus of other interactions, rules or seed; choose another place "
            "with --corpus, append to this one with jobs/append_domain.py, or remove it"
        )
    say(
        f"the corpus at {uri} exists already, made of the same interactions, rules and seed; "
        "nothing to do"
    )
    return Corpus.open(uri)
