"""A corpus version on the console, as `corpus.inspect.page` shows it in a browser. Tables fit 80 columns where the names of domains are short."""

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from corpus.inspect import page
from corpus.inspect.distributions import TOP_ITEM_FRACTIONS, Distributions, length_bin_labels
from corpus.inspect.inspection import InspectionResult
from corpus.inspect.leakage import LEAK_CHECKS
from corpus.sampling.sequences import SPLITS
from corpus.store.statistics import console_table
from corpus.store.tables import Corpus

MAX_QUARANTINED = 10
"""Files and reasons of rows that cannot be used that are shown, at most; the page shows more."""
MAX_OVERLAP_DOMAINS = 12
"""Domains whose overlap is shown, at most; the page shows all."""


def corpus_tables(corpus: Corpus) -> Iterator[Table]:
    """What the commits say: the versions, the samples by source, the statistics, what could not be used."""
    made = _new_table(
        f"Versions of {corpus.uri}", ("version", "made (UTC)", "from", "domains", "samples"), (0, 4)
    )
    for of in page.describe_versions(corpus):
        made.add_row(
            str(of["version"]),
            of["time"][:16],
            escape(f"{of['root']} ({of['format']})"),
            of["domains"],
            f"{of['samples']:,}",
        )
    yield made
    by_source = _new_table("Samples by source and version", ("source", "version", *SPLITS))
    for source, version, counts in page.count_by_source(corpus):
        by_source.add_row(source, str(version), *(f"{n:,}" for n in counts))
    yield by_source
    yield console_table(corpus.statistics())
    if bad := page.read_quarantined(corpus):
        shown = _new_table(
            "Rows that cannot be used", ("file", "reason", "rows", "the first"), (2,)
        )
        shown.caption = f"the most frequent of {len(bad):,}" if len(bad) > MAX_QUARANTINED else None
        for _, rows in bad[:MAX_QUARANTINED]:
            shown.add_row(
                escape(rows.file), rows.reason, f"{rows.rows:,}", escape(rows.first_example)
            )
        yield shown


def inspection_tables(result: InspectionResult) -> Iterator[Table]:
    """What all rows come to: lengths, popularity, ties, users in two domains, leakage."""
    looks = result.distributions
    lengths = _new_table("Sequences with so many interactions", ("domain", *length_bin_labels()))
    for domain in looks.domains:
        lengths.add_row(
            domain, *(f"{share:.1%}" if share else "" for share in looks.length_fractions(domain))
        )
    yield lengths
    popular = _new_table(
        "Interactions with the most popular items; ties in time",
        ("domain", *(f"top {s:.0%}" for s in TOP_ITEM_FRACTIONS), "ties"),
    )
    for domain in looks.domains:
        popular.add_row(
            domain, *(f"{share:.1%}" for share in (*looks.popularity[domain], looks.ties[domain]))
        )
    yield popular
    if 1 < len(looks.domains) <= MAX_OVERLAP_DOMAINS:
        yield _overlap_table(looks)
    yield _leakage_table(result.leak_counts)


def _overlap_table(looks: Distributions) -> Table:
    """A triangle of shares; its columns are numbered, so that it is narrow."""
    shown = _new_table(
        "Users in both, of the smaller domain's",
        ("domain", *(str(n + 1) for n in range(len(looks.domains) - 1))),
    )
    for number, a in enumerate(looks.domains):
        shown.add_row(
            f"{number + 1} {a}",
            *(f"{looks.overlap_fraction(a, b):.0%}" for b in looks.domains[:number]),
        )
    return shown


def _leakage_table(leak_counts: Mapping[str, int]) -> Table:
    shown = _new_table("Leakage", ("number", "found", "verdict"), (1,))
    for what, n in leak_counts.items():
        shown.add_row(
            what,
            f"{n:,}",
            ("sound" if not n else "NOT SOUND") if what in LEAK_CHECKS else "for information",
        )
    return shown


def _new_table(title: str, columns: Sequence[str], numbers: Sequence[int] = ()) -> Table:
    """numbers: the columns of numbers; without them all but the first one."""
    shown = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        shown.add_column(
            name,
            justify="right" if place in (numbers or range(1, len(columns))) else "left",
            overflow="fold",
        )
    return shown
