"""Raw behaviours of the named domains to corpus version 0.

Items are committed first, samples second and in one transaction, statistics.json last. A build that was killed anywhere is completed by
the same build.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from cluster import storage
from cluster.errors import CorpusError, DataError
from corpus import delta, interactions, simulate, statistics
from corpus.interactions import Say
from corpus.kcore import k_core, largest_k
from corpus.samples import at_most, samples_of
from corpus.sequences import Ints
from corpus.settings import DataSettings, SimulateSettings
from corpus.table import ITEMS, ITEMS_SCHEMA, PARTITION, SAMPLES, SAMPLES_SCHEMA, Corpus, by_file, publish_statistics, write_samples

RULES = 1
"""Goes up whenever the same input would make other samples."""


@dataclass(frozen=True)
class Gathered:
    """All domains after cleaning and k-core.

    interactions: user_id, domain, item_id, item_index, timestamp; items: ITEMS_SCHEMA, row i is item i; dropped: rows left out, by reason.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    dropped: Counter[str]

    def indices(self) -> dict[str, Ints]:
        """Item indices of each domain, ascending."""
        return {str(name): rows["item_index"].to_numpy() for (name,), rows in self.items.group_by("domain")}


@dataclass(frozen=True)
class Made:
    """Samples that are written but not committed."""

    files: tuple[delta.Written, ...]
    mixed_users: int
    dropped: Counter[str]


def prepare(data: DataSettings, simulated: SimulateSettings, seed: int, uri: str, say: Say) -> Corpus:
    """Simulate the behaviours if the recipe asks for it and they are missing, then build the corpus if it is missing."""
    if data.format == "simulated":
        simulate.write(data, simulated, seed)
    return build(data, seed, uri, say)


def build(data: DataSettings, seed: int, uri: str, say: Say) -> Corpus:
    """Build corpus version 0 at a URI; a corpus of the same input, rules and seed is left as it is. `say` gets lines of progress.

    Raises DataError for behaviours that cannot be used, CorpusError for another corpus in the place.
    """
    uri = storage.absolute(uri)
    if uri == storage.absolute(data.root):
        raise CorpusError(f"{uri}: the corpus cannot lie in its own data root; change the key corpus")
    identity = fingerprint(data, seed)
    existing = delta.commits(storage.join(uri, SAMPLES))
    if existing:
        return _existing(uri, existing, identity, say)
    gathered = gather(data, say)
    items_version = _commit_items(uri, gathered, identity)
    made = _make(gathered, data, seed, uri, say)
    counts = statistics.count(made.files)
    numbers = statistics.describe(gathered.interactions, data, counts, made.mixed_users, gathered.dropped + made.dropped)
    metadata = {"fingerprint": identity, "items_version": items_version, "statistics": numbers}
    delta.commit(storage.join(uri, SAMPLES), SAMPLES_SCHEMA, made.files, after=None, partition_by=PARTITION, metadata=metadata)
    corpus = Corpus.open(uri)
    publish_statistics(corpus)
    say(f"committed corpus version {corpus.version} at {uri}: {sum(counts.values()):,} samples")
    if not numbers["mixed"]["samples"]:
        say("no mixed sample: no user's history spans enough domains, so annealing has nothing to read; see data.mixed_min_domains")
    return corpus


def gather(data: DataSettings, say: Say) -> Gathered:
    """Read, validate and clean every domain, take its k-core, number its items. Raises DataError naming domain or file."""
    names = sorted((*data.domains, *data.held_out))
    if not data.domains:
        raise DataError("data.domains names no domain to pre-train on; name at least one")
    found, items, dropped = [], [], Counter[str]()
    first = 0
    for domain in names:
        raw = interactions.read(data.root, domain, data.max_quarantined, say)
        core = _core(domain, raw.interactions, data.k_core)
        kept, renamed = interactions.distinct(raw.items.join(core, on="item_id", how="semi"))
        indexed = kept.select(
            item_index=pl.int_range(first, first + kept.height, dtype=pl.Int64), domain=pl.lit(domain), item_id="item_id", title="title"
        )
        first += kept.height
        found.append(core.join(indexed.select("item_id", "domain", "item_index"), on="item_id", how="left"))
        items.append(indexed)
        dropped += raw.dropped + Counter(k_core=raw.interactions.height - core.height, title_made_distinct=renamed)
        say(f"{domain}: {core['user_id'].n_unique():,} users, {kept.height:,} items, {core.height:,} interactions in the {data.k_core}-core")
    columns = ("user_id", "domain", "item_id", "item_index", "timestamp")
    gathered = Gathered(pl.concat(found).select(columns), pl.concat(items), dropped)
    _check_negatives(gathered, data.num_candidates - 1)
    return gathered


def fingerprint(data: DataSettings, seed: int) -> str:
    """What samples are a function of: the digest of the rules, the seed and the bytes of every input file. Where files lie does not count."""
    rules = json.loads(data.model_dump_json(exclude={"root", "format", "distribute_above"}))
    rules["domains"], rules["held_out"] = sorted(data.domains), sorted(data.held_out)
    files = {
        domain: [[storage.sha256(storage.read_bytes(file)) for file in kind] for kind in interactions.sources(data.root, domain)]
        for domain in (*rules["domains"], *rules["held_out"])
    }
    return storage.sha256(json.dumps([RULES, rules, seed, files], sort_keys=True).encode())


def _existing(uri: str, commits: tuple[delta.Commit, ...], identity: str, say: Say) -> Corpus:
    if commits[0].metadata["fingerprint"] != identity:
        raise CorpusError(
            f"{uri}: holds a corpus of other behaviours, rules or seed; choose another place with --corpus, "
            "append to this one with jobs/append_domain.py, or remove it"
        )
    corpus = Corpus.open(uri)
    publish_statistics(corpus)
    say(f"the corpus at {uri} exists already, made of the same behaviours, rules and seed; nothing to do")
    return corpus


def _core(domain: str, raw: pl.DataFrame, k: int) -> pl.DataFrame:
    core = k_core(raw, k)
    if core.is_empty():
        best = largest_k(raw, k)
        advice = f"the largest data.k_core that leaves data is {best}" if best else "it holds no interaction that can be used"
        raise DataError(f"{domain}: the {k}-core of {raw.height:,} interactions is empty; {advice}")
    return core


def _check_negatives(gathered: Gathered, wanted: int) -> None:
    """Every user must leave enough items of each of their domains to draw negatives from."""
    sizes = gathered.items.group_by("domain").len("items")
    had = gathered.interactions.group_by("domain", "user_id").agg(pl.col("item_id").n_unique().alias("had"))
    busiest = had.sort("domain", "had", "user_id", descending=[False, True, False]).group_by("domain", maintain_order=True).first()
    for domain, user, most, items in busiest.join(sizes, on="domain", how="left", maintain_order="left").iter_rows():
        if items - most < wanted:
            raise DataError(
                f"{domain}: {items} items, of which user {user} interacted with {most}: {items - most} are left, "
                f"{wanted} negatives are wanted; lower data.num_candidates to {items - most + 1} or less, or drop the domain"
            )


def _commit_items(uri: str, gathered: Gathered, identity: str) -> int:
    """The version of the items table that holds exactly these items. It may be one that a killed build left; other leftovers are replaced."""
    place = storage.join(uri, ITEMS)
    before = delta.commits(place)
    if before and before[-1].metadata["fingerprint"] == identity:
        return before[-1].version
    table = gathered.items.to_arrow().cast(ITEMS_SCHEMA)
    files = [delta.write_file(place, "part-00000", table, {})]
    after = before[-1].version if before else None
    return delta.commit(place, ITEMS_SCHEMA, files, after=after, replace=True, metadata={"fingerprint": identity})


def _make(gathered: Gathered, data: DataSettings, seed: int, uri: str, say: Say) -> Made:
    rows = gathered.interactions.height
    if rows > data.distribute_above:
        from corpus import distribute  # only a large build needs Ray

        say(f"{rows:,} interactions are more than data.distribute_above ({data.distribute_above:,}): building on Ray Data")
        return distribute.make(gathered.interactions, gathered.indices(), data, seed, uri)
    say(f"making samples of {rows:,} interactions")
    return make(gathered.interactions, gathered.indices(), data, seed, uri)


def make(found: pl.DataFrame, items: Mapping[str, Ints], data: DataSettings, seed: int, uri: str) -> Made:
    """Make and write all samples in this process."""
    samples = samples_of(found, items, data, seed)
    files = tuple(write_samples(uri, key, [rows]) for key, rows in by_file(samples.tables, at_most(found, data)))
    return Made(files, samples.mixed_users, samples.dropped)
