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
from cluster.errors import CorpusError, DataError, Overtaken
from cluster.say import Say
from corpus import build
from corpus.backend import HERE, Way
from corpus.ingest import quarantine, simulate
from corpus.local.append import Given, Read
from corpus.local.make_samples import Made
from corpus.local.prepare import sizes_of
from corpus.sampling import replay_text
from corpus.sampling.sequences import SPLITS
from corpus.settings import DataSettings, SimulateSettings
from corpus.store import catalogue, delta, statistics
from corpus.store.tables import Corpus, FileKey, publish_statistics, write_samples

ATTEMPTS = 100
"""Times that an append is made anew because another one landed first, before it gives up."""


LONGEST_REST_S = 4.0
"""Before an append is made anew, at most."""


def prepare(
    data: DataSettings,
    simulated: SimulateSettings,
    seed: int,
    uri: str,
    say: Say,
    *,
    held_out: bool = False,
) -> Corpus:
    """Simulate the behaviours if the recipe asks for it and they are missing, then append them."""
    if data.format == "simulated":
        simulate.write(data, simulated, seed)
    return append(data, seed, uri, say, held_out=held_out)


def append(data: DataSettings, seed: int, uri: str, say: Say, *, held_out: bool = False) -> Corpus:
    """Append the behaviours of `data.domains` (held_out: of `data.held_out`) to the corpus at a URI as its next version, and return that.

    The same append again changes nothing; interactions that the corpus has already are left out. When another process commits first, the append is
    made anew on what that one made. Raises DataError for behaviours that cannot be used, CorpusError for a corpus of other rules, or none.
    """
    uri, asked = storage.absolute(uri), _asked(data, held_out)
    corpus = Corpus.open(uri)
    _check(corpus, asked, seed)
    delta.check_conditional_put(uri)
    with _chosen(corpus, asked, seed, say) as (identity, given):
        return _landed(uri, lambda corpus: _append_to(corpus, given, identity, seed, say), say)


def preview(data: DataSettings, seed: int, uri: str, say: Say, *, held_out: bool = False) -> None:
    """Check what `append` would be given, and say what would come in; nothing is written. Raises as `append` does."""
    corpus, asked = Corpus.open(storage.absolute(uri)), _asked(data, held_out)
    _check(corpus, asked, seed)
    with _chosen(corpus, asked, seed, say) as (identity, given):
        if (since := _since(corpus, identity)) is not None:
            say(f"these behaviours are in the corpus already, since version {since}; nothing to do")
            return
        coming = given.coming(corpus, _whole(corpus, asked), say)
    if not coming.rows:
        say(_nothing_new(corpus, given))
        return
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in sorted(coming.dropped.items()) if n)
    say(
        f"would make version {corpus.version + 1} of {corpus.uri}: {coming.rows:,} new interactions; dropped: {dropped or 'none'}"
    )


def preview_text(file: str, uri: str, say: Say) -> None:
    """The same of `append_text`."""
    corpus, source = Corpus.open(storage.absolute(uri)), replay_text.source_of(file)
    content = replay_text.read(file, "--text")
    if (since := _since(corpus, _identity_of_text(source, content))) is not None:
        say(f"this text is in the corpus already, since version {since}; nothing to do")
        return
    say(
        f"would make version {corpus.version + 1} of {corpus.uri}: {len(replay_text.windows(content)):,} windows of {source}"
    )


def _identity_of_text(source: str, content: str) -> str:
    """What the append of a text is known by."""
    return storage.sha256(
        json.dumps(
            [replay_text.RULES, replay_text.WINDOW, source, replay_text.digest(content)]
        ).encode()
    )


def _asked(data: DataSettings, held_out: bool) -> DataSettings:
    """The settings with the domains that are appended, and no other. Raises DataError without any."""
    asked = data.model_copy(update={"domains": ()} if held_out else {"held_out": ()})
    if not (asked.domains or asked.held_out):
        raise DataError(
            f"data.{'held_out' if held_out else 'domains'} names no domain to append; name at least one"
        )
    return asked


@contextmanager
def _chosen(
    corpus: Corpus, asked: DataSettings, seed: int, say: Say
) -> Iterator[tuple[str, Given]]:
    """What the append is known by, and its behaviours, to be read in the way that their number, and that of their users' in the corpus, asks for."""
    here = Read(asked)
    with build.chosen(asked, say, lambda expected: here.behind(corpus, expected, say)) as way:
        if way is not HERE:
            here.behaviours.clear()
        yield _identity(asked, seed, way), here if way is HERE else way.given(asked)


def _identity(asked: DataSettings, seed: int, way: Way) -> str:
    """What an append is known by: the digest of all that it depends on."""
    input_digests = build.digests(asked, sorted((*asked.domains, *asked.held_out)), way.each)
    of_input = json.loads(
        asked.model_dump_json(
            include={"columns", "time_unit", "latest", "min_rating", "max_per_user", "format"}
        )
    )
    return storage.sha256(
        json.dumps([build.rules(asked, seed), of_input, input_digests], sort_keys=True).encode()
    )


def append_text(file: str, uri: str, say: Say) -> Corpus:
    """Append a file of plain text to the corpus at a URI as its next version, and return that: windows of it, as the source text/<name of the file>.

    The same text again changes nothing; another text of the same name adds to the source. Raises RecipeError or DataError for a file that is no text
    or has an unfit name, CorpusError where there is no corpus.
    """
    uri, source = storage.absolute(uri), replay_text.source_of(file)
    content = replay_text.read(file, "--text")
    Corpus.open(uri)
    delta.check_conditional_put(uri)
    identity = _identity_of_text(source, content)
    return _landed(
        uri, lambda corpus: _append_text_to(corpus, file, source, content, identity, say), say
    )


def _landed(uri: str, attempt: Callable[[Corpus], Corpus], say: Say) -> Corpus:
    """What an append made on the newest version; made anew when another process commits first."""
    for number in range(ATTEMPTS):
        started = time.monotonic()
        try:
            return attempt(Corpus.open(uri))
        except Overtaken as error:
            say(f"{error}; the append is made anew")
            # Of many that race, those go on at different times, or all would be overtaken by one; yet none rests for long while nobody works.
            time.sleep(
                random.uniform(
                    0, min((time.monotonic() - started) * min(1 << number, 4), LONGEST_REST_S)
                )
            )
    raise Overtaken(
        f"{uri}: other processes committed {ATTEMPTS} times in the meantime; start the append again when fewer write here"
    )


def _append_text_to(
    corpus: Corpus, file: str, source: str, content: str, identity: str, say: Say
) -> Corpus:
    """One attempt, on the newest version. What a commit tells of behaviours stays as it was."""
    if (done := _done(corpus, identity, "this text is", say)) is not None:
        return done
    told = corpus.commits[-1].metadata
    written = write_samples(
        corpus.uri,
        FileKey(source, SPLITS[0], corpus.version + 1),
        [replay_text.rows(source, content)],
    )
    metadata = {
        **{
            key: told[key]
            for key in ("rules", "fingerprint", "domains", "held_out", "items_version", "item_runs")
        },
        "appended": identity,
        quarantine.PLACE: None,
        "text": replay_text.digest(content),
        "origin": {"root": storage.absolute(file), "format": "text", "domains": [source]},
    }
    numbers = {**told["statistics"], "dropped": {}}
    made = Made((written,), (), 0, Counter())
    return build.land(
        corpus.uri, made, numbers, metadata, after=corpus.version, transaction=identity, say=say
    )


def _done(corpus: Corpus, identity: str, what: str, say: Say) -> Corpus | None:
    """The version that an append made before, if it did."""
    if (done := _since(corpus, identity)) is None:
        return None
    publish_statistics(corpus)
    say(f"{what} in the corpus already, since version {done}; nothing to do")
    return Corpus.open(corpus.uri, done)


def _nothing_new(corpus: Corpus, given: Given) -> str:
    return f"the corpus has all usable interactions of {', '.join(given.domains)} already; version {corpus.version} stays the newest"


def _since(corpus: Corpus, identity: str) -> int | None:
    """The version that an append made; None if it is not there."""
    return next(
        (commit.version for commit in corpus.commits if commit.transaction == identity), None
    )


def _append_to(corpus: Corpus, given: Given, identity: str, seed: int, say: Say) -> Corpus:
    """One attempt, on the newest version."""
    if (done := _done(corpus, identity, "these behaviours are", say)) is not None:
        return done
    coming = given.coming(corpus, _whole(corpus, given.data), say)
    if not coming.rows:
        say(_nothing_new(corpus, given))
        return corpus
    data, told = coming.data, corpus.commits[-1].metadata
    items, items_version, renamed = catalogue.add(corpus.uri, coming.items, identity)
    indices = catalogue.indices_of(catalogue.joined(told["item_runs"], items))
    made, came = coming.make(items, indices, seed)
    dropped = coming.dropped + made.dropped + Counter(title_made_distinct=renamed)
    counts = statistics.count(made.files)
    numbers = statistics.describe(
        told["statistics"], came, sizes_of(indices), data, counts, made.mixed_users, dropped
    )
    metadata = {
        **{key: told[key] for key in ("rules", "fingerprint")},
        "appended": identity,
        "origin": build.origin(data, given.domains),
        "domains": data.domains,
        "held_out": data.held_out,
        quarantine.PLACE: quarantine.write(corpus.uri, data.root, coming.quarantined),
        "items_version": items_version,
        "item_runs": catalogue.runs_of(indices),
    }
    return build.land(
        corpus.uri, made, numbers, metadata, after=corpus.version, transaction=identity, say=say
    )


def _check(corpus: Corpus, data: DataSettings, seed: int) -> None:
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
    _whole(corpus, data)


def _whole(corpus: Corpus, asked: DataSettings) -> DataSettings:
    """The settings of the whole corpus, the appended domains among its own. Raises DataError for a domain that it has as the other kind."""
    told = corpus.commits[-1].metadata
    kinds = {"pre-training": tuple(told["domains"]), "held out": tuple(told["held_out"])}
    names, kind, other = (
        (asked.domains, "pre-training", "held out")
        if asked.domains
        else (asked.held_out, "held out", "pre-training")
    )
    if wrong := sorted(set(names) & set(kinds[other])):
        raise DataError(
            f"{', '.join(wrong)}: in this corpus {other}, for ever; {'append with' if asked.domains else 'leave out'} --held-out"
        )
    all_of_kind = (*kinds[kind], *(name for name in names if name not in kinds[kind]))
    domains, held_out = (
        (all_of_kind, kinds[other]) if asked.domains else (kinds[other], all_of_kind)
    )
    return asked.model_copy(update={"domains": domains, "held_out": held_out})
