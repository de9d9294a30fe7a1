"""Appends interactions to a corpus as its next version: new domains, new users, or newer rows.

Earlier rows are never rewritten. A version of interactions adds (docs/decisions/004-append.md):

- the samples of the new interactions in their domain. Leave-one-out holds over a user's whole
  sequence, but what was ever held out stays held out;
- the mixed samples that became possible: those of new training interactions, and those of old ones
  whose history satisfies the rules only now.

The cost follows the new rows and their users: of the stored interactions, only those users' are
read.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

from cluster import storage
from cluster.console import Say
from cluster.errors import CorpusError, DataError
from cluster.progress import track
from corpus import build
from corpus.backend import AppendInput, Backend
from corpus.fingerprints import file_digests, root_differences, rules, with_template
from corpus.ingest import data_roots, feedback, prompt_injection, quarantine, simulation
from corpus.ingest.feedback import FeedbackCounts
from corpus.local import LOCAL
from corpus.local.append import LocalAppendInput
from corpus.settings import DataSettings, SimulateSettings, describe_repeated
from corpus.store import catalogue, conditional_puts, statistics
from corpus.store.catalogue import count_items
from corpus.store.stored_interactions import to_metadata
from corpus.store.tables import Corpus
from corpus.versions import (
    VersionMetadata,
    commit_version,
    commit_with_retries,
    find_version,
    open_if_appended,
    origin,
    platforms,
)


def simulate_and_append(
    data: DataSettings,
    simulate: SimulateSettings,
    seed: int,
    uri: str,
    say: Say,
    *,
    held_out: bool = False,
) -> Corpus:
    """Appends interactions, which are simulated first if the recipe asks for it.

    What was simulated before is used again. Arguments and errors are those of
    `append`.
    """
    if data.format == "simulated":
        simulation.write_data_root(data, simulate, seed)
    return append(data, seed, uri, say, held_out=held_out)


def append(data: DataSettings, seed: int, uri: str, say: Say, *, held_out: bool = False) -> Corpus:
    """Appends the interactions of some domains to a corpus as its next version.

    Appending the same interactions again changes nothing. Interactions that the corpus already has
    are left out. If another process commits first, the append starts again on the newer version.

    Args:
        data: Where the interactions are, and the rules of the corpus.
        seed: Seed of the corpus.
        uri: URI of the corpus.
        say: Receives progress lines.
        held_out: Append `data.held_out` instead of `data.domains`.

    Returns:
        The version that the append made, now or earlier; the newest one if nothing is new.

    Raises:
        DataError: The interactions cannot be used.
        CorpusError: There is no corpus, or it has other rules.
    """
    uri = storage.absolute_uri(uri)
    corpus = Corpus.open(uri)
    requested = with_template(_select_domains(data, held_out), corpus)
    _check_compatible(corpus, requested, seed)
    conditional_puts.require_conditional_puts(uri)
    counts = feedback.measure_feedback(requested, say)
    with (
        track("appending", say),
        _open_input(corpus, requested, seed, say) as (identity, append_input),
    ):
        return commit_with_retries(
            uri, lambda corpus: _try_append(corpus, append_input, identity, seed, counts, say), say
        )


def simulate_and_preview(
    data: DataSettings,
    simulate: SimulateSettings,
    seed: int,
    uri: str,
    say: Say,
    *,
    held_out: bool = False,
) -> None:
    """Checks the input of `simulate_and_append`; interactions are simulated for that time only.

    Arguments and errors are those of `append`.
    """
    with build.open_preview_root(data, simulate, seed) as data:
        preview(data, seed, uri, say, held_out=held_out)


def preview(data: DataSettings, seed: int, uri: str, say: Say, *, held_out: bool = False) -> None:
    """Checks the input of `append` and says what it would add; writes nothing.

    Arguments and errors are those of `append`.
    """
    corpus = Corpus.open(storage.absolute_uri(uri))
    requested = with_template(_select_domains(data, held_out), corpus)
    _check_compatible(corpus, requested, seed)
    feedback.measure_feedback(requested, say)
    with _open_input(corpus, requested, seed, say) as (identity, append_input):
        if (version := find_version(corpus, identity)) is not None:
            say(
                f"these interactions are in the corpus already, since version {version}; "
                "nothing to do"
            )
            return
        append_delta = append_input.compute_delta(
            corpus, _whole_corpus_settings(corpus, requested), say
        )
        if not append_delta.rows:
            say(_nothing_new_message(corpus, append_input))
            return
        items = catalogue.number_items(corpus, append_delta.items).items
        runs = corpus.commits[-1].metadata["item_runs"]
        append_delta.check(items, catalogue.extend_runs(runs, items))
    reasons = sorted(append_delta.dropped.items())
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in reasons if count)
    say(
        f"would make version {corpus.version + 1} of {corpus.uri}: "
        f"{append_delta.rows:,} new interactions; dropped: {dropped or 'none'}"
    )


def _select_domains(data: DataSettings, held_out: bool) -> DataSettings:
    """Returns the settings with the appended domains only.

    Raises:
        DataError: There are none, or one is named more than once.
    """
    requested = data.model_copy(update={"domains": ()} if held_out else {"held_out": ()})
    key, names = ("held_out", data.held_out) if held_out else ("domains", data.domains)
    if not names:
        raise DataError(f"data.{key} names no domain to append; name at least one")
    # The names need not come from a recipe, which refuses repeated ones itself.
    if problem := describe_repeated(key, names):
        raise DataError(problem)
    return requested


def _check_compatible(corpus: Corpus, requested: DataSettings, seed: int) -> None:
    """Checks that some domains can be appended to a corpus.

    Raises:
        CorpusError: The corpus has other rules, or does not record them.
        DataError: The corpus has one of the domains as the other kind, or of another platform.
    """
    recorded = corpus.commits[0].metadata.get("rules")
    if recorded is None:
        raise CorpusError(
            f"{corpus.uri}: does not record the rules it was built with, which an append needs; "
            "build the corpus again in another place"
        )
    asked = rules(requested, seed)
    # A key of a later release is only recorded, or asked for, where it is used.
    differing = [
        f"{key} {recorded.get(key, 'not set')} (asked for: {asked.get(key, 'not set')})"
        for key in {**recorded, **asked}
        if recorded.get(key) != asked.get(key)
    ]
    if differing:
        raise CorpusError(
            f"{corpus.uri}: a corpus has one set of rules, and this one was built with "
            f"{', '.join(differing)}; set the keys as they were"
        )
    _whole_corpus_settings(corpus, requested)
    known = platforms(corpus)
    for domain in (*requested.domains, *requested.held_out):
        platform = data_roots.at_root(requested, domain).platform
        if domain in known and platform != known[domain]:
            raise DataError(
                f"{domain}: in this corpus of {_name_platform(known[domain])}, now of "
                f"{platform or 'none'}, so that its users would be other people; set "
                f"data.platform to {known[domain] or 'null'}"
            )


def _name_platform(platform: str | None) -> str:
    return f"platform {platform}" if platform else "no platform"


def _whole_corpus_settings(corpus: Corpus, requested: DataSettings) -> DataSettings:
    """Returns settings that name all domains of the corpus after the append.

    Raises:
        DataError: The corpus has one of the appended domains as the other kind.
    """
    metadata = corpus.commits[-1].metadata
    domains, held_out = tuple(metadata["domains"]), tuple(metadata["held_out"])
    if requested.domains:
        _check_kind(requested.domains, held_out, "held-out", "append with --held-out")
        domains = _add_names(domains, requested.domains)
    else:
        _check_kind(requested.held_out, domains, "pre-training", "leave out --held-out")
        held_out = _add_names(held_out, requested.held_out)
    return requested.model_copy(update={"domains": domains, "held_out": held_out})


def _check_kind(
    names: tuple[str, ...], other_kind: tuple[str, ...], kind_name: str, advice: str
) -> None:
    """Checks that no domain to append is in the corpus as the other kind.

    The kinds are pre-training and held-out. A domain keeps its kind.

    Args:
        names: Domains to append.
        other_kind: The corpus's domains of the other kind.
        kind_name: Name of the other kind, for the message.
        advice: What to do instead, for the message.

    Raises:
        DataError: Some of the domains are; the message names them.
    """
    if conflicts := sorted(set(names) & set(other_kind)):
        raise DataError(
            f"{', '.join(conflicts)}: in this corpus as {kind_name} data, which cannot change; "
            f"{advice}"
        )


def _add_names(known: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the known names, and behind them those that are new."""
    return (*known, *(name for name in names if name not in known))


@contextmanager
def _open_input(
    corpus: Corpus, requested: DataSettings, seed: int, say: Say
) -> Iterator[tuple[str, AppendInput]]:
    """Yields the identity of an append and its input, on the backend that its size asks for.

    The size counts the new interactions and the stored ones of their users. To count the latter,
    this process may have to read the interactions; if Ray is chosen, it reads them again.
    """
    local_input = LocalAppendInput(requested)
    with build.choose_backend(
        requested, say, lambda expected: local_input.count_existing(corpus, expected, say)
    ) as backend:
        if backend is not LOCAL:
            local_input.raw_by_domain.clear()  # frees the memory
        identity = _input_identity(requested, seed, backend)
        yield identity, local_input if backend is LOCAL else backend.append_input(requested)


def _input_identity(requested: DataSettings, seed: int, backend: Backend) -> str:
    """Returns the identity of an append: a digest of its rules, its settings and its files."""
    digests = file_digests(
        requested, sorted((*requested.domains, *requested.held_out)), backend.map
    )
    keys = {"columns", "time_unit", "latest", "min_rating", "max_per_user", "format"}
    if requested.until_day is not None:  # an append without it keeps its identity
        keys.add("until_day")
    if requested.platform is not None:
        keys.add("platform")
    settings = json.loads(requested.model_dump_json(include=keys)) | root_differences(requested)
    return storage.sha256(
        json.dumps([rules(requested, seed), settings, digests], sort_keys=True).encode()
    )


def _try_append(
    corpus: Corpus,
    append_input: AppendInput,
    identity: str,
    seed: int,
    feedback_counts: Mapping[str, FeedbackCounts],
    say: Say,
) -> Corpus:
    """Makes one attempt to append interactions, as the version that follows the newest one.

    Args:
        corpus: The newest version.
        append_input: The interactions.
        identity: Identity of the append, by which one that was committed before is recognised.
        seed: Seed for drawing candidates.
        feedback_counts: What became of served rankings, by domain.
        say: Receives progress lines.

    Returns:
        The new version. If this append was committed before, the version that it made; if nothing
        is new, `corpus`.

    Raises:
        CommitConflictError: Another process committed in the meantime.
    """
    if (done := open_if_appended(corpus, identity, "these interactions are", say)) is not None:
        return done
    append_delta = append_input.compute_delta(
        corpus, _whole_corpus_settings(corpus, append_input.data), say
    )
    if not append_delta.rows:
        say(_nothing_new_message(corpus, append_input))
        return corpus
    data = append_delta.data
    previous = corpus.commits[-1].metadata
    numbered = catalogue.number_items(corpus, append_delta.items)
    items = numbered.items
    item_indices = catalogue.extend_runs(previous["item_runs"], items)
    write_samples = append_delta.check(items, item_indices)
    # Items are committed before the samples that refer to them.
    items_version = catalogue.add_items(corpus.uri, numbered, identity)
    samples, new_counts = write_samples(seed)
    version_statistics = statistics.describe_version(
        previous["statistics"],
        new_counts,
        count_items(item_indices),
        data,
        statistics.count_samples(samples.sample_files),
        samples.mixed_users,
        append_delta.dropped + samples.dropped + Counter(title_made_distinct=numbered.num_renamed),
        prompt_injection.count_by_domain(
            items.filter(~catalogue.items_in_runs(items, previous["item_runs"]))
        ),
    )
    metadata: VersionMetadata = {
        "rules": previous["rules"],
        "fingerprint": previous["fingerprint"],
        "appended": identity,
        "origin": origin(data, append_input.domains),
        "domains": data.domains,
        "held_out": data.held_out,
        "quarantine": quarantine.write(corpus.uri, data, append_delta.quarantined),
        "items_version": items_version,
        "item_runs": catalogue.encode_runs(item_indices),
        "statistics": version_statistics,
        "interactions": to_metadata(samples.interaction_files),
    }
    if feedback_counts:
        metadata["feedback"] = {
            domain: asdict(counts) for domain, counts in feedback_counts.items()
        }
    return commit_version(
        corpus.uri,
        samples.sample_files,
        metadata,
        parent_version=corpus.version,
        transaction_id=identity,
        say=say,
    )


def _nothing_new_message(corpus: Corpus, append_input: AppendInput) -> str:
    """Returns the progress line of an append that adds nothing."""
    return (
        f"the corpus has all usable interactions of {', '.join(append_input.domains)} already; "
        f"version {corpus.version} stays the newest"
    )
