"""Finds the titles of a corpus version that have prompt injections."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from corpus.ingest.prompt_injection import KINDS, find_injections
from corpus.store import catalogue, delta
from corpus.store.tables import Corpus, translate_file_errors

MAX_EXAMPLES = 3
"""Maximum titles to show of a domain and kind: those with the lowest item indices."""

_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class TitlesWithInjection:
    """The titles of a domain that have one kind of prompt injection.

    Attributes:
        domain: Name of the domain.
        kind: One of `prompt_injection.KINDS`.
        titles: How many there are.
        examples: The first of them.
    """

    domain: str
    kind: str
    titles: int
    examples: tuple[str, ...]


def find_titles_with_injections(corpus: Corpus) -> tuple[TitlesWithInjection, ...]:
    """Finds the titles of a corpus version that have prompt injections, by domain and kind.

    A title of several kinds counts in each.

    Raises:
        CorpusError: A file is missing or damaged.
    """
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for items in _read_batches(corpus):
        kinds = find_injections(items["title"])
        for kind in KINDS:
            for (domain,), found in items.filter(kinds[kind]).group_by("domain"):
                key = str(domain), kind
                counts[key] += found.height
                indexed = zip(found["item_index"], found["title"], strict=True)
                examples[key] = sorted([*examples.get(key, []), *indexed])[:MAX_EXAMPLES]
    return tuple(
        TitlesWithInjection(*key, counts[key], tuple(title for _, title in examples[key]))
        for key in sorted(counts, key=lambda key: (key[0], KINDS.index(key[1])))
    )


def _read_batches(corpus: Corpus) -> Iterator[pl.DataFrame]:
    """Yields the items of a corpus version, some at a time."""
    runs = corpus.commits[-1].metadata["item_runs"]
    for file in corpus.item_files():
        with translate_file_errors(file.uri):
            for batch in delta.open_parquet(file.uri).iter_batches(_BATCH_ROWS, use_threads=False):
                items = pl.DataFrame(batch)
                # The table may hold items of appends that were killed, which no version knows.
                yield items.filter(catalogue.items_in_runs(items, runs))
