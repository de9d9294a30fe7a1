"""Tables of a corpus version for the console; `corpus.inspect.page` shows it in a browser.

Tables fit 80 columns if the names of domains are short.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from corpus.inspect import page
from corpus.inspect.distributions import TOP_ITEM_FRACTIONS, Distributions, length_bin_labels
from corpus.inspect.injections import TitlesWithInjection
from corpus.inspect.inspection import InspectionResult
from corpus.inspect.leakage import LEAK_CHECKS
from corpus.sampling.source import MIXED, SPLITS
from corpus.store.statistics import VersionStatistics
from corpus.store.tables import Corpus

MAX_QUARANTINED = 10
"""Largest number of entries of unusable rows (a file and a reason each); the page shows more."""

MAX_OVERLAP_DOMAINS = 12
"""Largest number of domains whose overlap is shown; the page shows it for any number."""


def corpus_tables(corpus: Corpus) -> Iterator[Table]:
    """Yields tables of the versions, the samples by source, the statistics and unusable rows.

    They follow from the commits and the quarantine; no rows of the tables are read.
    """
    versions = _new_table(
        f"Versions of {corpus.uri}",
        ("version", "made (UTC)", "from", "domains", "samples"),
        numeric_columns=(0, 4),
    )
    for version in page.describe_versions(corpus):
        versions.add_row(
            str(version["version"]),
            version["time"][:16],
            escape(f"{version['root']} ({version['format']})"),
            version["domains"],
            f"{version['samples']:,}",
        )
    yield versions
    by_source = _new_table("Samples by source and version", ("source", "version", *SPLITS))
    for source, number, counts in page.count_by_source(corpus):
        by_source.add_row(source, str(number), *(f"{count:,}" for count in counts))
    yield by_source
    yield statistics_table(corpus.statistics())
    entries, missing_records = page.read_quarantined(corpus)
    if entries or missing_records:
        quarantined = _new_table(
            "Rows that cannot be used",
            ("file", "reason", "rows", "first row"),
            numeric_columns=(2,),
        )
        most_frequent = f"the most frequent of {len(entries):,}"
        captions = [most_frequent] if len(entries) > MAX_QUARANTINED else []
        captions += [missing_records] if missing_records else []
        quarantined.caption = "; ".join(captions)
        for _, rows in entries[:MAX_QUARANTINED]:
            quarantined.add_row(
                escape(rows.file), rows.reason, f"{rows.rows:,}", escape(rows.first_example)
            )
        yield quarantined


def statistics_table(statistics: VersionStatistics) -> Table:
    """Returns the statistics of a version: a row for each domain and one for mixed samples.

    Args:
        statistics: The statistics, with or without the number of the version.
    """
    version = f" of corpus version {statistics['version']}" if "version" in statistics else ""
    table = Table(
        title=f"Domains and samples{version}",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption_justify="left",
    )
    table.add_column("domain", overflow="fold")
    for name in ("users", "items", "interactions", "sparsity", *SPLITS):
        table.add_column(name, justify="right", no_wrap=True)
    for name, domain in statistics["domains"].items():
        table.add_row(
            name + ("*" if domain["held_out"] else ""),
            *(f"{domain[key]:,}" for key in ("users", "items", "interactions")),
            f"{domain['sparsity']:.2%}",
            *(f"{domain['splits'][split]:,}" for split in SPLITS),
        )
    mixed = statistics["mixed"]
    # A preview has an upper bound of the samples, and knows no users.
    users = "" if mixed["samples"] and not mixed["users"] else f"{mixed['users']:,}"
    table.add_row(MIXED, users, "", "", "", f"{mixed['samples']:,}", "", "")
    caption = f"{', '.join(SPLITS)}: samples; *: held out of pre-training"
    if dropped := ", ".join(f"{reason} {n:,}" for reason, n in statistics["dropped"].items()):
        caption += f"\ndropped: {dropped}"
    # Versions of earlier releases did not count them.
    if injections := ", ".join(
        f"{domain} {counts['titles']:,}"
        for domain, counts in statistics.get("prompt_injections", {}).items()
    ):
        caption += f"\nnew titles with prompt injections: {injections}"
    table.caption = caption
    return table


def inspection_tables(result: InspectionResult) -> Iterator[Table]:
    """Yields the tables of an inspection: lengths, popularity and ties, overlap, leakage, titles.

    Overlap is left out for a single domain, and for more than MAX_OVERLAP_DOMAINS.
    """
    distributions = result.distributions
    lengths = _new_table("Sequences by number of interactions", ("domain", *length_bin_labels()))
    for domain in distributions.domains:
        fractions = distributions.length_fractions(domain)
        lengths.add_row(domain, *(f"{fraction:.1%}" if fraction else "" for fraction in fractions))
    yield lengths
    popularity = _new_table(
        "Interactions with the most popular items; ties in time",
        ("domain", *(f"top {fraction:.0%}" for fraction in TOP_ITEM_FRACTIONS), "ties"),
    )
    for domain in distributions.domains:
        fractions = [*distributions.popularity[domain], distributions.ties[domain]]
        popularity.add_row(domain, *(f"{fraction:.1%}" for fraction in fractions))
    yield popularity
    if 1 < len(distributions.domains) <= MAX_OVERLAP_DOMAINS:
        yield _overlap_table(distributions)
    yield _leakage_table(result.leak_counts)
    if result.prompt_injections:
        yield _injections_table(result.prompt_injections)


def _overlap_table(distributions: Distributions) -> Table:
    """Returns the overlap of every pair of domains; columns are numbered, to stay narrow."""
    domains = distributions.domains
    table = _new_table(
        "Shared users, % of the smaller domain",
        ("domain", *(str(number) for number in range(1, len(domains)))),
    )
    for index, a in enumerate(domains):
        fractions = [distributions.overlap_fraction(a, b) for b in domains[:index]]
        table.add_row(f"{index + 1} {a}", *(f"{fraction:.0%}" for fraction in fractions))
    return table


def _leakage_table(leak_counts: Mapping[str, int]) -> Table:
    table = _new_table("Leakage", ("check", "found", "verdict"), numeric_columns=(1,))
    for check, count in leak_counts.items():
        verdict = "NOT SOUND" if count else "sound"
        table.add_row(check, f"{count:,}", verdict if check in LEAK_CHECKS else "for information")
    return table


def _injections_table(prompt_injections: Iterable[TitlesWithInjection]) -> Table:
    table = _new_table(
        "Titles with prompt injections",
        ("domain", "kind", "titles", "such as"),
        numeric_columns=(2,),
    )
    for found in prompt_injections:
        table.add_row(
            found.domain, found.kind, f"{found.titles:,}", escape("\n".join(found.examples))
        )
    return table


def _new_table(title: str, columns: Sequence[str], numeric_columns: Sequence[int] = ()) -> Table:
    """Returns an empty table; columns of numbers are right-aligned, by default all but the first.

    Args:
        title: Title of the table.
        columns: Headings of the columns.
        numeric_columns: Indices of the columns of numbers.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    right_aligned = numeric_columns or range(1, len(columns))
    for index, name in enumerate(columns):
        justify: Literal["left", "right"] = "right" if index in right_aligned else "left"
        # A number stays whole; the names beside it are folded.
        table.add_column(name, justify=justify, overflow="fold", no_wrap=justify == "right")
    return table
