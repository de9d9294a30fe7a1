"""More behaviours to the next corpus version: a new domain, new users, or newer rows of an old domain.

Plain text for replay becomes a version in the same way (`append_text`). Earlier rows are never rewritten. What a version of behaviours adds
(docs/decisions/004-append.md):
- the samples of the new interactions in their domain. Leave-one-out holds over a user's whole sequence, but what was ever held out stays held out;
- the mixed samples that became possible: of the new training interactions, and of old ones whose history fits the rules only now.
The cost follows the new rows and the users in them: of the old interactions, only those users' are read.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster import storage
from cluster.console import Say
from cluster.errors import CommitConflictError, CorpusError, DataError
from corpus import build
from corpus.backend import AppendInput, Backend, UncommittedSamples
from corpus.ingest import plain_text, quarantine, simulation
from corpus.local import LOCAL
from corpus.local.append import LocalAppendInput
from corpus.sampling import replay_text
from corpus.sampling.sequences import SPLITS
from corpus.settings import DataSettings, SimulateSettings
from corpus.store import catalogue, delta, statistics
from corpus.store.catalogue import count_items
from corpus.store.tables import Corpus, FileKey, publish_statistics, write_samples

MAX_ATTEMPTS = 100
"""Times that an append is made anew because another one landed first, before it gives up."""


MAX_BACKOFF_S = 4.0
"""Before an append is made anew, at most."""


def simulate_and_append(
    data: DataSettings,
    simulate: SimulateSettings,
    seed: int,
    uri: str,
    say: Say,
    *,
    held_out: bool = False,
) -> Corpus:
    """Simulate the behaviours if the recipe asks for it and they are missing, then append them."""
    if data.format == "simulated":
        simulation.write_data_root(data, simulate, seed)
    return append(data, seed, uri, say, held_out=held_out)


def append(data: DataSettings, seed: int, uri: str, say: Say, *, held_out: bool = False) -> Corpus:
    """Append the behaviours of `data.domains` (held_out: of `data.held_out`) to the corpus at a URI as its next version, and return that.

    The same append again changes nothing; interactions that the corpus has already are left out. When another process commits first, the append is
    made anew on what that one made. Raises DataError for behaviours that cannot be used, CorpusError for a corpus of other rules, or none.
    """
    uri, asked = storage.absolute_uri(uri), _select_domains(data, held_out)
    corpus = Corpus.open(uri)
    _check_compatible(corpus, asked, seed)
    delta.check_conditional_put(uri)
    with _choose_input(corpus, asked, seed, say) as (identity, given):
        return _commit_with_retries(
            uri, lambda corpus: _try_append(corpus, given, identity, seed, say), say
        )


def preview(data: DataSettings, seed: int, uri: str, say: Say, *, held_out: bool = False) -> None:
    """Check what `append` would be given, and say what would come in; nothing is written. Raises as `append` does."""
    corpus, asked = Corpus.open(storage.absolute_uri(uri)), _select_domains(data, held_out)
    _check_compatible(corpus, asked, seed)
    with _choose_input(corpus, asked, seed, say) as (identity, given):
        if (since := _find_version(corpus, identity)) is not None:
            say(f"these behaviours are in the corpus already, since version {since}; nothing to do")
            return
        coming = given.compute_delta(corpus, _whole_corpus_settings(corpus, asked), say)
    if not coming.rows:
        say(_nothing_new_message(corpus, given))
        return
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in sorted(coming.dropped.items()) if n)
    say(
        f"would make version {corpus.version + 1} of {corpus.uri}: {coming.rows:,} new interactions; dropped: {dropped or 'none'}"
    )


def preview_text(file: str, uri: str, say: Say) -> None:
    """The same of `append_text`."""
    corpus, source = Corpus.open(storage.absolute_uri(uri)), replay_text.text_source(file)
    content = plain_text.read_plain_text(file, "--text")
    if (since := _find_version(corpus, _text_identity(source, content))) is not None:
        say(f"this text is in the corpus already, since version {since}; nothing to do")
        return
    say(
        f"would make version {corpus.version + 1} of {corpus.uri}: {len(replay_text.split_text(content)):,} windows of {source}"
    )


def _text_identity(source: str, content: str) -> str:
    """What the append of a text is known by."""
    return storage.sha256(
        json.dumps(
            [
                replay_text.RULES_VERSION,
                replay_text.MAX_WINDOW_BYTES,
                source,
                replay_text.text_digest(content),
            ]
        ).encode()
    )


def _select_domains(data: DataSettings, held_out: bool) -> DataSettings:
    """The settings with the domains that are appended, and no other. Raises DataError without any."""
    asked = data.model_copy(update={"domains": ()} if held_out else {"held_out": ()})
    if not (asked.domains or asked.held_out):
        raise DataError(
            f"data.{'held_out' if held_out else 'domains'} names no domain to append; name at least one"
        )
    return asked


@contextmanager
def _choose_input(
    corpus: Corpus, requested: DataSettings, seed: int, say: Say
) -> Iterator[tuple[str, AppendInput]]:
    """What the append is known by, and its behaviours, to be read in the way that their number, and that of their users' in the corpus, asks for."""
    here = LocalAppendInput(requested)
    with build.choose_backend(
        requested, say, lambda expected: here.count_existing(corpus, expected, say)
    ) as way:
        if way is not LOCAL:
            here.raw_by_domain.clear()
        yield (
            _input_identity(requested, seed, way),
            here if way is LOCAL else way.append_input(requested),
        )


def _input_identity(requested: DataSettings, seed: int, backend: Backend) -> str:
    """What an append is known by: the digest of all that it depends on."""
    input_digests = build.digests(
        requested, sorted((*requested.domains, *requested.held_out)), backend.map
    )
    of_input = json.loads(
        requested.model_dump_json(
            include={"columns", "time_unit", "latest", "min_rating", "max_per_user", "format"}
        )
    )
    return storage.sha256(
        json.dumps([build.rules(requested, seed), of_input, input_digests], sort_keys=True).encode()
    )


def append_text(file: str, uri: str, say: Say) -> Corpus:
    """Append a file of plain text to the corpus at a URI as its next version, and return that: windows of it, as the source text/<name of the file>.

    The same text again changes nothing; another text of the same name adds to the source. Raises RecipeError or DataError for a file that is no text
    or has an unfit name, CorpusError where there is no corpus.
    """
    uri, source = storage.absolute_uri(uri), replay_text.text_source(file)
    content = plain_text.read_plain_text(file, "--text")
    Corpus.open(uri)
    delta.check_conditional_put(uri)
    identity = _text_identity(source, content)
    return _commit_with_retries(
        uri, lambda corpus: _try_append_text(corpus, file, source, content, identity, say), say
    )


def _commit_with_retries(uri: str, attempt: Callable[[Corpus], Corpus], say: Say) -> Corpus:
    """What an append made on the newest version; made anew when another process commits first."""
    for number in range(MAX_ATTEMPTS):
        started = time.monotonic()
        try:
            return attempt(Corpus.open(uri))
        except CommitConflictError as error:
            say(f"{error}; the append is made anew")
            # Of many that race, those go on at different times, or all would be overtaken by one; yet none rests for long while nobody works.
            time.sleep(
                random.uniform(
                    0, min((time.monotonic() - started) * min(1 << number, 4), MAX_BACKOFF_S)
                )
            )
    raise CommitConflictError(
        f"{uri}: other processes committed {MAX_ATTEMPTS} times in the meantime; start the append again when fewer write here"
    )


def _try_append_text(
    corpus: Corpus, file: str, source: str, content: str, identity: str, say: Say
) -> Corpus:
    """One attempt, on the newest version. What a commit tells of behaviours stays as it was."""
    if (done := _open_if_appended(corpus, identity, "this text is", say)) is not None:
        return done
    told = corpus.commits[-1].metadata
    written = write_samples(
        corpus.uri,
        FileKey(source, SPLITS[0], corpus.version + 1),
        [replay_text.text_window_table(source, content)],
    )
    metadata = {
        **{
            key: told[key]
            for key in ("rules", "fingerprint", "domains", "held_out", "items_version", "item_runs")
        },
        "appended": identity,
        quarantine.FOLDER: None,
        "text": replay_text.text_digest(content),
        "origin": {"root": storage.absolute_uri(file), "format": "text", "domains": [source]},
    }
    numbers = {**told["statistics"], "dropped": {}}
    made = UncommittedSamples((written,), (), 0, Counter())
    return build.commit_version(
        corpus.uri, made, numbers, metadata, after=corpus.version, transaction=identity, say=say
    )


def _open_if_appended(corpus: Corpus, identity: str, subject: str, say: Say) -> Corpus | None:
    """The version that an append made before, if it did."""
    if (done := _find_version(corpus, identity)) is None:
        return None
    publish_statistics(corpus)
    say(f"{subject} in the corpus already, since version {done}; nothing to do")
    return Corpus.open(corpus.uri, done)


def _nothing_new_message(corpus: Corpus, append_input: AppendInput) -> str:
    return f"the corpus has all usable interactions of {', '.join(append_input.domains)} already; version {corpus.version} stays the newest"


def _find_version(corpus: Corpus, identity: str) -> int | None:
    """The version that an append made; None if it is not there."""
    return next(
        (commit.version for commit in corpus.commits if commit.transaction_id == identity), None
    )


def _try_append(
    corpus: Corpus, append_input: AppendInput, identity: str, seed: int, say: Say
) -> Corpus:
    """One attempt, on the newest version."""
    if (done := _open_if_appended(corpus, identity, "these behaviours are", say)) is not None:
        return done
    coming = append_input.compute_delta(
        corpus, _whole_corpus_settings(corpus, append_input.data), say
    )
    if not coming.rows:
        say(_nothing_new_message(corpus, append_input))
        return corpus
    data, told = coming.data, corpus.commits[-1].metadata
    items, items_version, renamed = catalogue.add_items(corpus.uri, coming.items, identity)
    indices = catalogue.decode_runs(catalogue.extend_runs(told["item_runs"], items))
    made, came = coming.write_sample_files(items, indices, seed)
    dropped = coming.dropped + made.dropped + Counter(title_made_distinct=renamed)
    counts = statistics.count_samples(made.sample_files)
    numbers = statistics.describe_version(
        told["statistics"], came, count_items(indices), data, counts, made.mixed_users, dropped
    )
    metadata = {
        **{key: told[key] for key in ("rules", "fingerprint")},
        "appended": identity,
        "origin": build.origin(data, append_input.domains),
        "domains": data.domains,
        "held_out": data.held_out,
        quarantine.FOLDER: quarantine.write(corpus.uri, data.root, coming.quarantined),
        "items_version": items_version,
        "item_runs": catalogue.encode_runs(indices),
    }
    return build.commit_version(
        corpus.uri, made, numbers, metadata, after=corpus.version, transaction=identity, say=say
    )


def _check_compatible(corpus: Corpus, data: DataSettings, seed: int) -> None:
    """Raises CorpusError for a corpus of other rules, DataError for a domain that it has as the other kind."""
    there, asked = corpus.commits[0].metadata.get("rules"), build.rules(data, seed)
    if there is None:
        raise CorpusError(
            f"{corpus.uri}: was built without what an append needs to know; build the corpus anew, elsewhere"
        )
    keys = {**there, **asked}  # one that came with a later release is only there where it is used
    other = [
        f"{key} {there.get(key, 'not set')} (asked for: {asked.get(key, 'not set')})"
        for key in keys
        if there.get(key) != asked.get(key)
    ]
    if other:
        raise CorpusError(
            f"{corpus.uri}: a corpus has one set of rules, and this one was built with {', '.join(other)}; set the keys as they were"
        )
    _whole_corpus_settings(corpus, data)


def _whole_corpus_settings(corpus: Corpus, requested: DataSettings) -> DataSettings:
    """The settings of the whole corpus, the appended domains among its own. Raises DataError for a domain that it has as the other kind."""
    told = corpus.commits[-1].metadata
    kinds = {"pre-training": tuple(told["domains"]), "held out": tuple(told["held_out"])}
    names, kind, other = (
        (requested.domains, "pre-training", "held out")
        if requested.domains
        else (requested.held_out, "held out", "pre-training")
    )
    if wrong := sorted(set(names) & set(kinds[other])):
        raise DataError(
            f"{', '.join(wrong)}: in this corpus {other}, for ever; {'append with' if requested.domains else 'leave out'} --held-out"
        )
    all_of_kind = (*kinds[kind], *(name for name in names if name not in kinds[kind]))
    domains, held_out = (
        (all_of_kind, kinds[other]) if requested.domains else (kinds[other], all_of_kind)
    )
    return requested.model_copy(update={"domains": domains, "held_out": held_out})
