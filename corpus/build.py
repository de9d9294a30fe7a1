"""Raw behaviours of the named domains to corpus version 0.

Items are committed first, samples second and in one transaction, statistics.json last. A build that was killed anywhere is completed by
the same build.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from cluster import storage
from cluster.errors import CorpusError, DataError
from corpus import catalogue, delta, interactions, kept, simulate, statistics
from corpus.coded import Coded, codes, renumbered
from corpus.interactions import Behaviours, Say
from corpus.kcore import largest_k, rows_of_core
from corpus.make import Made, check_negatives, make
from corpus.sequences import Ints
from corpus.settings import DataSettings, SimulateSettings
from corpus.sources import layout
from corpus.table import ITEMS_SCHEMA, PARTITION, SAMPLES, SAMPLES_SCHEMA, Corpus, publish_statistics

RULES = 1
"""Goes up whenever the same input would make other samples."""


@dataclass(frozen=True)
class Gathered:
    """All domains after cleaning and k-core.

    interactions: those of all domains, all new; items: ITEMS_SCHEMA, row i is item i; dropped: rows left out, by reason.
    """

    interactions: Coded
    items: pl.DataFrame
    dropped: Counter[str]

    def indices(self) -> dict[str, Ints]:
        """Item indices of each domain, ascending."""
        return {str(name): rows["item_index"].to_numpy() for (name,), rows in self.items.group_by("domain")}


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
    delta.check_conditional_put(uri)
    gathered = gather(data, say)
    items_version = catalogue.begin(uri, gathered.items, identity)
    items = gathered.indices()
    made = make(gathered.interactions, items, data, seed, uri, say)
    dropped = gathered.dropped + made.dropped
    numbers = statistics.describe(
        statistics.NOTHING, gathered.interactions.sizes, sizes_of(items), data, statistics.count(made.files), made.mixed_users, dropped
    )
    told = {
        "fingerprint": identity,
        "rules": rules(data, seed),
        "origin": origin(data, (*data.domains, *data.held_out)),
        "domains": data.domains,
        "held_out": data.held_out,
        "items_version": items_version,
        "item_runs": catalogue.runs_of(items),
    }
    return land(uri, made, numbers, told, after=None, transaction=identity, say=say)


def land(uri: str, made: Made, numbers: dict[str, Any], told: dict[str, Any], *, after: int | None, transaction: str, say: Say) -> Corpus:
    """Commit what was made as the next version of the corpus, and tell its statistics. Raises Overtaken if another process was faster."""
    metadata = {**told, "statistics": numbers, kept.KEPT_PLACE: kept.to_metadata(made.kept)}
    place = storage.join(uri, SAMPLES)
    version = delta.commit(place, SAMPLES_SCHEMA, made.files, after=after, partition_by=PARTITION, metadata=metadata, transaction=transaction)
    newest = Corpus.open(uri)
    publish_statistics(newest)
    say(f"committed corpus version {version} at {uri}: {sum(file.rows for file in made.files):,} samples")
    if not numbers["mixed"]["samples"]:
        say("no mixed sample: no user's history spans enough domains, so annealing has nothing to read; see data.mixed_min_domains")
    return Corpus(uri, version, newest.commits[: version + 1])


def gather(data: DataSettings, say: Say) -> Gathered:
    """Read, validate and clean every domain, take its k-core, number its items. Raises DataError naming domain or file."""
    names = sorted((*data.domains, *data.held_out))
    if not data.domains:
        raise DataError("data.domains names no domain to pre-train on; name at least one")
    found, items, dropped = [], [pl.DataFrame(ITEMS_SCHEMA.empty_table())], Counter[str]()
    for domain in names:
        rows, users, of_domain, left_out = _domain(data, domain, sum(part.height for part in items), say)
        found.append((rows, users))
        items.append(of_domain)
        dropped += left_out
    gathered = Gathered(Coded.joined(found, pl.concat(items)), pl.concat(items), dropped)
    check_negatives(gathered.interactions, sizes_of(gathered.indices()), data.num_candidates - 1)
    return gathered


def _domain(data: DataSettings, domain: str, first: int, say: Say) -> tuple[pl.DataFrame, pl.Series, pl.DataFrame, Counter[str]]:
    """One domain: interactions (user, item, timestamp) with the names of its users' numbers; items, numbered from `first`; what is dropped."""
    raw = interactions.read(data, domain, say)
    core = _core(domain, raw, data.k_core)
    (user, users), (item, item_ids) = renumbered(core["user"], raw.users), renumbered(core["item"], raw.item_ids)
    titled, renamed = interactions.distinct(raw.items.join(pl.DataFrame({"item_id": item_ids}), on="item_id", how="semi"))
    index = pl.int_range(first, first + titled.height, dtype=pl.Int64)
    items = titled.select(item_index=index, domain=pl.lit(domain), item_id="item_id", title="title")
    rows = pl.DataFrame({"user": user, "item": (codes(item_ids, titled["item_id"]) + first).gather(item), "timestamp": core["timestamp"]})
    dropped = raw.dropped + Counter(k_core=raw.interactions.height - core.height, title_made_distinct=renamed)
    say(f"{domain}: {users.len():,} users, {items.height:,} items, {core.height:,} interactions in the {data.k_core}-core")
    return rows, users, items, dropped


def origin(data: DataSettings, domains: Sequence[str]) -> dict[str, Any]:
    """Where the behaviours of a version come from."""
    return {"root": storage.absolute(data.root), "format": data.format, "domains": list(domains)}


def sizes_of(items: Mapping[str, Ints]) -> dict[str, int]:
    """Items of each domain."""
    return {domain: indices.size for domain, indices in items.items()}


def as_new(found: pl.DataFrame, version: int) -> pl.DataFrame:
    """Interactions that a version brings, as `Coded.of` takes them."""
    columns = [pl.col(name) for name in ("user_id", "domain", "item_id", "item_index", "timestamp")]
    return found.select(*columns, version=pl.lit(version, pl.Int32), split=pl.lit(None, pl.Int8))


def rules(data: DataSettings, seed: int) -> dict[str, Any]:
    """What every version of a corpus has in common: the keys of `data` that decide which samples are made, the version of the rules, the seed."""
    chosen: dict[str, Any] = json.loads(data.model_dump_json(include=set(DECIDING)))
    return {**{f"data.{key}": value for key, value in chosen.items()}, "seed": seed, "rules": RULES}


DECIDING = ("k_core", "min_history", "max_history", "num_candidates", "mixed_min_domains", "mixed_min_target_domain")


def fingerprint(data: DataSettings, seed: int) -> str:
    """What samples are a function of: the digest of the rules, the seed and the bytes of every input file. Where files lie does not count."""
    of_data = json.loads(data.model_dump_json(exclude={"root", "format", "distribute_above"}))
    of_data["layout"] = layout.name_of(data)
    of_data["domains"], of_data["held_out"] = sorted(data.domains), sorted(data.held_out)
    return storage.sha256(json.dumps([RULES, of_data, seed, digests(data, (*of_data["domains"], *of_data["held_out"]))], sort_keys=True).encode())


def digests(data: DataSettings, domains: Sequence[str]) -> dict[str, list[list[str]]]:
    """The digests of the files of each domain: of interactions, of items. Raises DataError for one that is not as SHA256SUMS says."""
    sums = layout.told_sums(data.root)
    return {domain: [[_digest(file, sums) for file in kind] for kind in layout.files(data, domain)] for domain in domains}


def _digest(file: str, sums: Mapping[str, str]) -> str:
    found = storage.sha256(storage.read_bytes(file))
    if sums.get(file, found) != found:
        raise DataError(f"{file}: its content is not what SHA256SUMS says ({found[:16]}..., told: {sums[file][:16]}...); fetch or write it again")
    return found


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


def _core(domain: str, raw: Behaviours, k: int) -> pl.DataFrame:
    found = raw.interactions
    core = found[rows_of_core(found["user"].to_numpy(), found["item"].to_numpy(), k)]
    if core.is_empty():
        best = largest_k(raw.named(), k)
        advice = f"the largest data.k_core that leaves data is {best}" if best else "it holds no interaction that can be used"
        raise DataError(f"{domain}: the {k}-core of {found.height:,} interactions is empty; {advice}")
    return core
