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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from cluster import storage
from cluster.errors import CorpusError, DataError, Overtaken
from cluster.say import Say
from corpus import build, catalogue, delta, interactions, kept, quarantine, raw, simulate, statistics, text
from corpus.coded import Coded
from corpus.gather import sizes_of
from corpus.kcore import k_core, largest_k
from corpus.make import Made, busiest, check_negatives, make
from corpus.quarantine import Quarantined
from corpus.raw import Items, Raw
from corpus.sequences import SPLITS, Ints
from corpus.settings import DataSettings, SimulateSettings
from corpus.table import Corpus, FileKey, publish_statistics, write_samples

ATTEMPTS = 100
"""Times that an append is made anew because another one landed first, before it gives up."""


LONGEST_REST_S = 4.0
"""Before an append is made anew, at most."""


Read = tuple[Raw, Items]
"""A domain as it was read."""


@dataclass(frozen=True)
class Grown:
    """A domain's part in an append.

    found: user_id, domain, item_id, timestamp of the interactions that come in; items: domain, item_id, title of theirs; dropped: by reason;
    quarantined: of that, what cannot be used.
    """

    found: pl.DataFrame
    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[Quarantined, ...]


def prepare(data: DataSettings, simulated: SimulateSettings, seed: int, uri: str, say: Say, *, held_out: bool = False) -> Corpus:
    """Simulate the behaviours if the recipe asks for it and they are missing, then append them."""
    if data.format == "simulated":
        simulate.write(data, simulated, seed)
    return append(data, seed, uri, say, held_out=held_out)


def append(data: DataSettings, seed: int, uri: str, say: Say, *, held_out: bool = False) -> Corpus:
    """Append the behaviours of `data.domains` (held_out: of `data.held_out`) to the corpus at a URI as its next version, and return that.

    The same append again changes nothing; interactions that the corpus has already are left out. When another process commits first, the append is
    made anew on what that one made. Raises DataError for behaviours that cannot be used, CorpusError for a corpus of other rules, or none.
    """
    uri = storage.absolute(uri)
    names = _names(data, held_out)
    _check_same_rules(Corpus.open(uri), data, seed)
    delta.check_conditional_put(uri)
    request, behaviours = _asked(data, seed, names, held_out, say)
    return _landed(uri, lambda corpus: _append_to(corpus, behaviours, request, say), say)


def preview(data: DataSettings, seed: int, uri: str, say: Say, *, held_out: bool = False) -> None:
    """Check what `append` would be given, and say what would come in; nothing is written. Raises as `append` does."""
    corpus, names = Corpus.open(storage.absolute(uri)), _names(data, held_out)
    _check_same_rules(corpus, data, seed)
    request, behaviours = _asked(data, seed, names, held_out, say)
    if (since := _since(corpus, request.identity)) is not None:
        say(f"these behaviours are in the corpus already, since version {since}; nothing to do")
        return
    coming = _coming(corpus, behaviours, request, say)
    if coming.found.is_empty():
        say(_nothing_new(corpus, behaviours))
        return
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in sorted(coming.dropped.items()) if n)
    say(f"would make version {corpus.version + 1} of {corpus.uri}: {coming.found.height:,} new interactions; dropped: {dropped or 'none'}")


def preview_text(file: str, uri: str, say: Say) -> None:
    """The same of `append_text`."""
    corpus, source = Corpus.open(storage.absolute(uri)), text.source_of(file)
    content = text.read(file, "--text")
    if (since := _since(corpus, _identity_of_text(source, content))) is not None:
        say(f"this text is in the corpus already, since version {since}; nothing to do")
        return
    say(f"would make version {corpus.version + 1} of {corpus.uri}: {len(text.windows(content)):,} windows of {source}")


def _identity_of_text(source: str, content: str) -> str:
    """What the append of a text is known by."""
    return storage.sha256(json.dumps([text.RULES, text.WINDOW, source, text.digest(content)]).encode())


def _names(data: DataSettings, held_out: bool) -> tuple[str, ...]:
    """The domains that are appended. Raises DataError without any."""
    names = data.held_out if held_out else data.domains
    if not names:
        raise DataError(f"data.{'held_out' if held_out else 'domains'} names no domain to append; name at least one")
    return tuple(sorted(names))


def _asked(data: DataSettings, seed: int, names: tuple[str, ...], held_out: bool, say: Say) -> tuple["_Request", dict[str, Read]]:
    """The request, known by the digest of all that it depends on, and the behaviours of its domains, read."""
    input_digests = build.digests(data, list(names))
    of_input = json.loads(data.model_dump_json(include={"columns", "time_unit", "latest", "min_rating", "max_per_user", "format"}))
    identity = storage.sha256(json.dumps([build.rules(data, seed), of_input, input_digests], sort_keys=True).encode())
    return _Request(data, seed, held_out, identity, {}), {name: raw.read(data, name, say) for name in names}


def append_text(file: str, uri: str, say: Say) -> Corpus:
    """Append a file of plain text to the corpus at a URI as its next version, and return that: windows of it, as the source text/<name of the file>.

    The same text again changes nothing; another text of the same name adds to the source. Raises RecipeError or DataError for a file that is no text
    or has an unfit name, CorpusError where there is no corpus.
    """
    uri, source = storage.absolute(uri), text.source_of(file)
    content = text.read(file, "--text")
    Corpus.open(uri)
    delta.check_conditional_put(uri)
    identity = _identity_of_text(source, content)
    return _landed(uri, lambda corpus: _append_text_to(corpus, file, source, content, identity, say), say)


def _landed(uri: str, attempt: Callable[[Corpus], Corpus], say: Say) -> Corpus:
    """What an append made on the newest version; made anew when another process commits first."""
    for number in range(ATTEMPTS):
        started = time.monotonic()
        try:
            return attempt(Corpus.open(uri))
        except Overtaken as error:
            say(f"{error}; the append is made anew")
            # Of many that race, those go on at different times, or all would be overtaken by one; yet none rests for long while nobody works.
            time.sleep(random.uniform(0, min((time.monotonic() - started) * min(1 << number, 4), LONGEST_REST_S)))
    raise Overtaken(f"{uri}: other processes committed {ATTEMPTS} times in the meantime; start the append again when fewer write here")


def _append_text_to(corpus: Corpus, file: str, source: str, content: str, identity: str, say: Say) -> Corpus:
    """One attempt, on the newest version. What a commit tells of behaviours stays as it was."""
    if (done := _done(corpus, identity, "this text is", say)) is not None:
        return done
    told = corpus.commits[-1].metadata
    written = write_samples(corpus.uri, FileKey(source, SPLITS[0], corpus.version + 1), [text.rows(source, content)])
    metadata = {
        **{key: told[key] for key in ("rules", "fingerprint", "domains", "held_out", "items_version", "item_runs")},
        "appended": identity,
        quarantine.PLACE: None,
        "text": text.digest(content),
        "origin": {"root": storage.absolute(file), "format": "text", "domains": [source]},
    }
    numbers = {**told["statistics"], "dropped": {}}
    made = Made((written,), (), 0, Counter())
    return build.land(corpus.uri, made, numbers, metadata, after=corpus.version, transaction=identity, say=say)


def _done(corpus: Corpus, identity: str, what: str, say: Say) -> Corpus | None:
    """The version that an append made before, if it did."""
    if (done := _since(corpus, identity)) is None:
        return None
    publish_statistics(corpus)
    say(f"{what} in the corpus already, since version {done}; nothing to do")
    return Corpus.open(corpus.uri, done)


def _nothing_new(corpus: Corpus, behaviours: dict[str, Read]) -> str:
    return f"the corpus has all usable interactions of {', '.join(behaviours)} already; version {corpus.version} stays the newest"


def _since(corpus: Corpus, identity: str) -> int | None:
    """The version that an append made; None if it is not there."""
    return next((commit.version for commit in corpus.commits if commit.transaction == identity), None)


@dataclass(frozen=True)
class _Request:
    """What was asked for. identity: digest of rules, seed and input; the append is known by it. read: old interactions that an attempt has read."""

    data: DataSettings
    seed: int
    held_out: bool
    identity: str
    read: dict[str, pl.DataFrame]


@dataclass(frozen=True)
class _Coming:
    """What an append adds to a version. data: settings of the whole corpus after it; old: its users' interactions that are there; runs: the numbering
    of the items that are there; found, items, dropped, quarantined: of all its domains, as in Grown."""

    data: DataSettings
    old: pl.DataFrame
    runs: dict[str, Any]
    found: pl.DataFrame
    items: pl.DataFrame
    dropped: Counter[str]
    quarantined: tuple[Quarantined, ...]


def _coming(corpus: Corpus, behaviours: dict[str, Read], request: _Request, say: Say) -> _Coming:
    """Compare the behaviours with a version; writes nothing."""
    told = corpus.commits[-1].metadata
    data, runs = _whole(told, request), told["item_runs"]
    old = kept.of_users(corpus, pl.concat([of.users for of, _ in behaviours.values()]).unique(), request.read)
    parts = [_grow(corpus, runs, name, of, old, data, say) for name, of in behaviours.items()]
    found, items = pl.concat([part.found for part in parts]), pl.concat([part.items for part in parts])
    dropped, bad = sum((part.dropped for part in parts), Counter[str]()), tuple(of for part in parts for of in part.quarantined)
    return _Coming(data, old, runs, found, items, dropped, bad)


def _append_to(corpus: Corpus, behaviours: dict[str, Read], request: _Request, say: Say) -> Corpus:
    """One attempt, on the newest version."""
    if (done := _done(corpus, request.identity, "these behaviours are", say)) is not None:
        return done
    coming = _coming(corpus, behaviours, request, say)
    data, came, told = coming.data, coming.found, corpus.commits[-1].metadata
    if came.is_empty():
        say(_nothing_new(corpus, behaviours))
        return corpus
    items, items_version, renamed = catalogue.add(corpus.uri, coming.items, request.identity)
    indices = catalogue.indices_of(catalogue.joined(coming.runs, items))
    numbered = came.join(items.select("domain", "item_id", "item_index"), on=["domain", "item_id"], how="left")
    users = numbered.select("user_id").unique()
    new = build.as_new(numbered, corpus.version + 1)
    found = Coded.of(pl.concat([new, coming.old.join(users, on="user_id", how="semi").select(new.columns)]))
    sizes, wanted = sizes_of(indices), data.num_candidates - 1
    check_negatives(busiest(found, sizes, wanted), sizes, wanted)
    made = _made(found, indices, data, request.seed, corpus.uri, say)
    dropped = coming.dropped + made.dropped + Counter(title_made_distinct=renamed)
    counts = statistics.count(made.files)
    numbers = statistics.describe(told["statistics"], statistics.came(found.sizes), sizes, data, counts, made.mixed_users, dropped)
    metadata = {
        **{key: told[key] for key in ("rules", "fingerprint")},
        "appended": request.identity,
        "origin": build.origin(data, sorted(behaviours)),
        "domains": data.domains,
        "held_out": data.held_out,
        quarantine.PLACE: quarantine.write(corpus.uri, storage.absolute(data.root), coming.quarantined),
        "items_version": items_version,
        "item_runs": catalogue.runs_of(indices),
    }
    return build.land(corpus.uri, made, numbers, metadata, after=corpus.version, transaction=request.identity, say=say)


def _made(found: Coded, items: dict[str, Ints], data: DataSettings, seed: int, uri: str, say: Say) -> Made:
    """Make and write the samples: in this process, or on Ray where what comes and its users' old interactions are many."""
    interactions = found.rows.height
    if interactions <= data.distribute_above:
        return make(found, items, data, seed, uri)
    from corpus import distributed  # only a large append needs Ray

    say(f"{interactions:,} interactions are more than data.distribute_above ({data.distribute_above:,}): making samples on Ray")
    with distributed.session():
        return distributed.make_coded(found, items, data, seed, uri)


def _check_same_rules(corpus: Corpus, data: DataSettings, seed: int) -> None:
    there, asked = corpus.commits[0].metadata.get("rules"), build.rules(data, seed)
    if there is None:
        raise CorpusError(f"{corpus.uri}: was built without what an append needs to know; build the corpus anew, elsewhere")
    keys = {**there, **asked}  # one that came with a later release is only there where it is used
    other = [f"{key} {there.get(key, 'not set')} (asked for: {asked.get(key, 'not set')})" for key in keys if there.get(key) != asked.get(key)]
    if other:
        raise CorpusError(f"{corpus.uri}: a corpus has one set of rules, and this one was built with {', '.join(other)}; set the keys as they were")


def _whole(told: Any, request: _Request) -> DataSettings:
    """The settings of the whole corpus, the appended domains among its own. Raises DataError for a domain that it has as the other kind."""
    names = request.data.held_out if request.held_out else request.data.domains
    kinds = {"pre-training": tuple(told["domains"]), "held out": tuple(told["held_out"])}
    kind, other = ("held out", "pre-training") if request.held_out else ("pre-training", "held out")
    if wrong := sorted(set(names) & set(kinds[other])):
        raise DataError(f"{', '.join(wrong)}: in this corpus {other}, for ever; {'leave out' if request.held_out else 'append with'} --held-out")
    all_of_kind = (*kinds[kind], *(name for name in names if name not in kinds[kind]))
    domains, held_out = (kinds[other], all_of_kind) if request.held_out else (all_of_kind, kinds[other])
    return request.data.model_copy(update={"domains": domains, "held_out": held_out})


def _grow(corpus: Corpus, runs: dict[str, Any], domain: str, of: Read, old: pl.DataFrame, data: DataSettings, say: Say) -> Grown:
    """The interactions of one domain that come in: with a title, not there yet, in the core of what is there and they together."""
    there = old.filter(pl.col("domain") == domain)
    numbers = catalogue.indices_of(runs).get(domain)
    known = catalogue.of_domains(corpus.uri, [domain]).filter(
        pl.col("item_index").is_in(pl.Series(numbers if numbers is not None else [], dtype=pl.Int64).implode())
    )
    there_raw, items = of
    titles = pl.concat([items.titles, known.select("item_id", "title").join(items.titles, on="item_id", how="anti")]).sort("item_id")
    titled = interactions.cleaned(domain, interactions.usable(domain, there_raw, titles["item_id"], data, interactions.latest(data)), data)
    fresh = titled.named().join(there, on=["user_id", "item_id", "timestamp"], how="anti", maintain_order="left")
    core = k_core(fresh, data.k_core, there["user_id"].unique(), known["item_id"])
    if core.is_empty() and not fresh.is_empty() and numbers is None:
        best = largest_k(lambda k: k_core(fresh, k).is_empty(), data.k_core)
        advice = f"the largest data.k_core that leaves data is {best}, and a corpus keeps the one it was built with" if best else "no row can be used"
        raise DataError(f"{domain}: the {data.k_core}-core of {fresh.height:,} interactions is empty; {advice}")
    dropped = (
        titled.left_out + items.left_out + Counter(already_in_corpus=titled.interactions.height - fresh.height, k_core=fresh.height - core.height)
    )
    say(f"{domain}: {core.height:,} new interactions of {core['user_id'].n_unique():,} users and {core['item_id'].n_unique():,} items")
    named = titles.join(core, on="item_id", how="semi").sort("item_id").select(pl.lit(domain).alias("domain"), "item_id", "title")
    found = core.select("user_id", pl.lit(domain).alias("domain"), "item_id", "timestamp")
    return Grown(found, named, dropped, (*titled.quarantined, *items.quarantined))
