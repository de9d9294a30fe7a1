"""Statistics of a corpus version."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NotRequired, TypedDict

from cluster.errors import CorpusError
from corpus.sampling.source import MIXED, SPLITS, TRAIN, Source, SourceKind, domain_source
from corpus.settings import DataSettings
from corpus.store.commits import Commit
from corpus.store.delta import WrittenFile

SampleCounts = Mapping[tuple[str, str], int]
"""Number of samples by (source, split)."""

NewCounts = Mapping[str, tuple[int, int]]
"""By domain: number of new interactions, and of users who had none in the domain before."""


class DomainStatistics(TypedDict):
    """What a version has of one domain, with the columns of the paper's Table 2.

    Attributes:
        users: Users of the domain after k-core.
        items: Items.
        interactions: Interactions, after k-core and before the split.
        sparsity: 1 - interactions / (users x items).
        samples: Samples of all splits.
        splits: Samples by split.
        held_out: Whether the domain is held out of pre-training.
    """

    users: int
    items: int
    interactions: int
    sparsity: float
    samples: int
    splits: dict[str, int]
    held_out: bool


class MixedStatistics(TypedDict):
    """What a version has of mixed samples.

    Attributes:
        users: Users with mixed samples.
        samples: Mixed samples.
    """

    users: int
    samples: int


class VersionStatistics(TypedDict):
    """Statistics of a corpus version: an object of statistics.json.

    Attributes:
        version: Corpus version; absent in the metadata of the version.
        domains: Each domain, over all versions up to this one.
        mixed: Mixed samples, over all versions up to this one.
        dropped: What this version left out, by reason.
        prompt_injections: Titles with prompt injections, of the items that this version added: by
            domain, how many (`titles`), and how many of each kind (`brace`, `prompt_sentence`,
            `chat_marker`, `instruction`; a title may be of several).
    """

    version: NotRequired[int]
    domains: dict[str, DomainStatistics]
    mixed: MixedStatistics
    dropped: dict[str, int]
    prompt_injections: dict[str, dict[str, int]]


EMPTY_STATISTICS: VersionStatistics = {
    "domains": {},
    "mixed": {"users": 0, "samples": 0},
    "dropped": {},
    "prompt_injections": {},
}
"""Statistics that version 0 adds to."""


def describe_version(
    previous: VersionStatistics,
    new_counts: NewCounts,
    item_counts: Mapping[str, int],
    data: DataSettings,
    sample_counts: SampleCounts,
    mixed_users: int,
    dropped: Mapping[str, int],
    prompt_injections: Mapping[str, Mapping[str, int]],
) -> VersionStatistics:
    """Returns the statistics of a version, without its number.

    Args:
        previous: Statistics of the version before, or EMPTY_STATISTICS.
        new_counts: Interactions and users that this version adds.
        item_counts: Items of each domain, including those that this version adds.
        data: Settings of the whole corpus.
        sample_counts: Samples that this version adds.
        mixed_users: Number of users who get their first mixed samples.
        dropped: What this version drops, by reason.
        prompt_injections: Titles with prompt injections of the items that this version adds
            (`corpus.ingest.prompt_injection.count_by_domain`).
    """
    domains: dict[str, DomainStatistics] = {}
    for name in (*data.domains, *data.held_out):
        old = previous["domains"].get(name)
        interactions, users = new_counts.get(name, (0, 0))
        if old is not None:
            interactions += old["interactions"]
            users += old["users"]
        items = item_counts[name]
        source = domain_source(name, data)
        splits = {
            split: (old["splits"].get(split, 0) if old else 0)
            + sample_counts.get((source, split), 0)
            for split in SPLITS
        }
        domains[name] = {
            "users": users,
            "items": items,
            "interactions": interactions,
            "sparsity": 1 - interactions / (users * items),
            "samples": sum(splits.values()),
            "splits": splits,
            "held_out": name in data.held_out,
        }
    mixed: MixedStatistics = {
        "users": previous["mixed"]["users"] + mixed_users,
        "samples": previous["mixed"]["samples"] + sample_counts.get((MIXED, TRAIN), 0),
    }
    return {
        "domains": domains,
        "mixed": mixed,
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "prompt_injections": {domain: dict(counts) for domain, counts in prompt_injections.items()},
    }


def count_samples(files: Iterable[WrittenFile]) -> dict[tuple[str, str], int]:
    """Counts the samples in written files by (source, split)."""
    counts: dict[tuple[str, str], int] = {}
    for file in files:
        key = file.partition["source"], file.partition["split"]
        counts[key] = counts.get(key, 0) + file.rows
    return counts


def require_all_samples(table_uri: str, commits: Sequence[Commit]) -> None:
    """Checks that the log of samples names all that the statistics of its last version count.

    A file of it that was cut at the end of a line can be read, and names fewer.

    Args:
        table_uri: URI of the table `samples`.
        commits: Its commits up to a version.

    Raises:
        CorpusError: It does not.
    """
    counted: VersionStatistics = commits[-1].metadata["statistics"]
    domains = sum(domain["samples"] for domain in counted["domains"].values())
    expected = domains + counted["mixed"]["samples"]
    named = sum(
        added.file.rows
        for commit in commits
        for added in commit.added
        if Source.parse(added.partition["source"]).kind is not SourceKind.TEXT
    )
    if named != expected:
        raise CorpusError(
            f"{table_uri}: its log names {named:,} samples of {expected:,}, so a file of it was "
            "cut; restore it, or build the corpus again elsewhere"
        )
