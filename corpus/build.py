"""Raw behaviours of the named domains to corpus version 0.

Items are committed first, samples second and in one transaction, statistics.json last. A build that was killed anywhere is completed by
the same build.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from cluster import storage
from cluster.console import Say
from cluster.errors import CorpusError, DataError
from corpus.backend import Backend, MapFunction, UncommittedSamples
from corpus.ingest import quarantine, simulation
from corpus.ingest.sources import file_splits, layout
from corpus.local import LOCAL
from corpus.settings import DataSettings, SimulateSettings
from corpus.store import catalogue, delta, statistics, stored_interactions
from corpus.store.catalogue import count_items
from corpus.store.tables import (
    PARTITION_COLUMNS,
    SAMPLES,
    SAMPLES_TABLE_SCHEMA,
    Corpus,
    publish_statistics,
)

RULES_VERSION = 1
"""Goes up whenever the same input would make other samples."""


def simulate_and_build(
    data: DataSettings, simulate: SimulateSettings, seed: int, uri: str, say: Say
) -> Corpus:
    """Simulate the behaviours if the recipe asks for it and they are missing, then build the corpus if it is missing."""
    if data.format == "simulated":
        simulation.write_data_root(data, simulate, seed)
    return build(data, seed, uri, say)


def build(data: DataSettings, seed: int, uri: str, say: Say) -> Corpus:
    """Build corpus version 0 at a URI; a corpus of the same input, rules and seed is left as it is. `say` gets lines of progress.

    Raises DataError for behaviours that cannot be used, CorpusError for another corpus in the place.
    """
    uri = storage.absolute_uri(uri)
    if uri == storage.absolute_uri(data.root):
        raise CorpusError(
            f"{uri}: the corpus cannot lie in its own data root; change the key corpus"
        )
    with choose_backend(data, say) as way:
        identity = fingerprint(data, seed, way.map)
        existing = delta.read_commits(storage.join(uri, SAMPLES))
        if existing:
            return _open_existing(uri, existing, identity, say)
        delta.check_conditional_put(uri)
        gathered = way.prepare(data, say)
        items_version = catalogue.create_items(uri, gathered.items, identity)
        items = gathered.item_indices()
        say(
            f"making samples of {sum(rows for rows, _ in gathered.counts_by_domain.values()):,} interactions"
        )
        made = gathered.write_sample_files(data, seed, uri)
    bad = quarantine.write(uri, data.root, gathered.quarantined)
    numbers = statistics.describe_version(
        statistics.EMPTY_STATISTICS,
        gathered.counts_by_domain,
        count_items(items),
        data,
        statistics.count_samples(made.sample_files),
        made.mixed_users,
        gathered.dropped + made.dropped,
    )
    told = {
        "fingerprint": identity,
        "rules": rules(data, seed),
        "origin": origin(data, (*data.domains, *data.held_out)),
        "domains": data.domains,
        "held_out": data.held_out,
        quarantine.FOLDER: bad,
        "items_version": items_version,
        "item_runs": catalogue.encode_runs(items),
    }
    return commit_version(uri, made, numbers, told, after=None, transaction=identity, say=say)


@contextmanager
def choose_backend(
    data: DataSettings, say: Say, count_existing: Callable[[int], int] = lambda expected: 0
) -> Iterator[Backend]:
    """The way in which behaviours become samples: in this process, or on Ray if there are more than `data.distribute_above`. Reads no behaviours.

    behind: of so many that are expected, the interactions that are needed beside them; only asked for where they may decide it.
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
    from corpus import distributed  # only a large build needs Ray

    say(
        f"about {expected:,} interactions are more than data.distribute_above ({data.distribute_above:,}): building on Ray"
    )
    with distributed.session():
        yield distributed.RAY


def commit_version(
    uri: str,
    samples: UncommittedSamples,
    version_statistics: dict[str, Any],
    version_metadata: dict[str, Any],
    *,
    after: int | None,
    transaction: str,
    say: Say,
) -> Corpus:
    """Commit what was made as the next version of the corpus, and tell its statistics. Raises Overtaken if another process was faster."""
    metadata = {
        **version_metadata,
        "statistics": version_statistics,
        stored_interactions.INTERACTIONS: stored_interactions.to_metadata(
            samples.interaction_files
        ),
    }
    place = storage.join(uri, SAMPLES)
    version = delta.commit(
        place,
        SAMPLES_TABLE_SCHEMA,
        samples.sample_files,
        parent_version=after,
        partition_by=PARTITION_COLUMNS,
        metadata=metadata,
        transaction_id=transaction,
    )
    newest = Corpus.open(uri)
    publish_statistics(newest)
    say(
        f"committed corpus version {version} at {uri}: {sum(file.rows for file in samples.sample_files):,} samples"
    )
    if version_metadata[quarantine.FOLDER]:
        say(
            f"rows that cannot be used, by file and reason, with the first of each: {storage.join(uri, quarantine.FOLDER, version_metadata[quarantine.FOLDER])}"
        )
    if not version_statistics["mixed"]["samples"]:
        say(
            "no mixed sample: no user's history spans enough domains, so annealing has nothing to read; see data.mixed_min_domains"
        )
    return Corpus(uri, version, newest.commits[: version + 1])


def origin(data: DataSettings, domains: Sequence[str]) -> dict[str, Any]:
    """Where the behaviours of a version come from."""
    return {
        "root": storage.absolute_uri(data.root),
        "format": data.format,
        "domains": list(domains),
    }


def rules(data: DataSettings, seed: int) -> dict[str, Any]:
    """What every version of a corpus has in common: the keys of `data` that decide which samples are made, the version of the rules, the seed."""
    chosen: dict[str, Any] = json.loads(
        data.model_dump_json(include=set(RULE_KEYS), exclude=_omitted_keys(data))
    )
    return {
        **{f"data.{key}": value for key, value in chosen.items()},
        "seed": seed,
        "rules": RULES_VERSION,
    }


RULE_KEYS = (
    "k_core",
    "min_history",
    "max_history",
    "num_candidates",
    "mixed_min_domains",
    "mixed_min_target_domain",
    "users_together",
)


def _omitted_keys(data: DataSettings) -> set[str]:
    """Keys that corpora of earlier releases did not have, as long as they say what was always so: those corpora stay what they are."""
    return set() if data.users_together else {"users_together"}


def fingerprint(data: DataSettings, seed: int, map_files: MapFunction = map) -> str:
    """What samples are a function of: the digest of the rules, the seed and the bytes of every input file. Where files lie does not count."""
    of_data = json.loads(
        data.model_dump_json(exclude={"root", "format", "distribute_above"} | _omitted_keys(data))
    )
    of_data["layout"] = layout.effective_format(data)
    of_data["domains"], of_data["held_out"] = sorted(data.domains), sorted(data.held_out)
    found = digests(data, (*of_data["domains"], *of_data["held_out"]), map_files)
    return storage.sha256(
        json.dumps([RULES_VERSION, of_data, seed, found], sort_keys=True).encode()
    )


def digests(
    data: DataSettings, domains: Sequence[str], map_files: MapFunction = map
) -> dict[str, list[list[str]]]:
    """The digests of the files of each domain: of interactions, of items. Raises DataError for one that is not as SHA256SUMS says."""
    of_domains = {domain: layout.find_files(data, domain) for domain in domains}
    files = list(
        dict.fromkeys(file for kinds in of_domains.values() for kind in kinds for file in kind)
    )
    found = dict(
        zip(
            files,
            map_files(partial(_digest, layout.read_sha256sums(data.root)), files),
            strict=True,
        )
    )
    return {
        domain: [[found[file] for file in kind] for kind in kinds]
        for domain, kinds in of_domains.items()
    }


def _digest(expected_digests: Mapping[str, str], file: str) -> str:
    found = storage.file_sha256(file)
    if expected_digests.get(file, found) != found:
        raise DataError(
            f"{file}: its content is not what SHA256SUMS says ({found[:16]}..., told: {expected_digests[file][:16]}...); fetch or write it again"
        )
    return found


def _open_existing(uri: str, commits: tuple[delta.Commit, ...], identity: str, say: Say) -> Corpus:
    if commits[0].metadata["fingerprint"] != identity:
        raise CorpusError(
            f"{uri}: holds a corpus of other behaviours, rules or seed; choose another place with --corpus, "
            "append to this one with jobs/append_domain.py, or remove it"
        )
    corpus = Corpus.open(uri)
    publish_statistics(corpus)
    say(
        f"the corpus at {uri} exists already, made of the same behaviours, rules and seed; nothing to do"
    )
    return corpus
