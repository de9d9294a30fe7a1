"""A corpus version on the console, as `corpus.inspect.page` shows it in a browser. Tables fit 80 columns where the names of domains are short."""

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from corpus.inspect import page
from corpus.inspect.distributions import SHARES, Shape, classes
from corpus.inspect.inspection import Inspected
from corpus.inspect.leakage import SOUND
from corpus.sampling.sequences import SPLITS
from corpus.store.statistics import table
from corpus.store.tables import Corpus

MOST_QUARANTINED = 10
"""Files and reasons of rows that cannot be used that are shown, at most; the page shows more."""
MOST_DOMAINS = 12
"""Domains whose overlap is shown, at most; the page shows all."""


def described(corpus: Corpus) -> Iterator[Table]:
    """What the commits say: the versions, the samples by source, the statistics, what could not be used."""
    made = _table(
        f"Versions of {corpus.uri}", ("version", "made (UTC)", "from", "domains", "samples"), (0, 4)
    )
    for of in page.versions(corpus):
        made.add_row(
            str(of["version"]),
            of["time"][:16],
            escape(f"{of['root']} ({of['format']})"),
            of["domains"],
            f"{of['samples']:,}",
        )
    yield made
    by_source = _table("Samples by source and version", ("source", "version", *SPLITS))
    for source, version, counts in page.sources(corpus):
        by_source.add_row(source, str(version), *(f"{n:,}" for n in counts))
    yield by_source
    yield table(corpus.statistics())
    if bad := page.quarantined(corpus):
        shown = _table("Rows that cannot be used", ("file", "reason", "rows", "the first"), (2,))
        shown.caption = (
            f"the most frequent of {len(bad):,}" if len(bad) > MOST_QUARANTINED else None
        )
        for _, rows in bad[:MOST_QUARANTINED]:
            shown.add_row(escape(rows.file), rows.reason, f"{rows.rows:,}", escape(rows.first))
        yield shown


def inspected(found: Inspected) -> Iterator[Table]:
    """What all rows come to: lengths, popularity, ties, users in two domains, leakage."""
    looks = found.shape
    lengths = _table("Sequences with so many interactions", ("domain", *classes()))
    for domain in looks.domains:
        lengths.add_row(
            domain, *(f"{share:.1%}" if share else "" for share in looks.of_lengths(domain))
        )
    yield lengths
    popular = _table(
        "Interactions with the most popular items; ties in time",
        ("domain", *(f"top {s:.0%}" for s in SHARES), "ties"),
    )
    for domain in looks.domains:
        popular.add_row(
            domain, *(f"{share:.1%}" for share in (*looks.popularity[domain], looks.ties[domain]))
        )
    yield popular
    if 1 < len(looks.domains) <= MOST_DOMAINS:
        yield _overlap(looks)
    yield _leaks(found.leaks)


def _overlap(looks: Shape) -> Table:
    """A triangle of shares; its columns are numbered, so that it is narrow."""
    shown = _table(
        "Users in both, of the smaller domain's",
        ("domain", *(str(n + 1) for n in range(len(looks.domains) - 1))),
    )
    for number, a in enumerate(looks.domains):
        shown.add_row(
            f"{number + 1} {a}", *(f"{looks.shared(a, b):.0%}" for b in looks.domains[:number])
        )
    return shown


def _leaks(leaks: Mapping[str, int]) -> Table:
    shown = _table("Leakage", ("number", "found", "verdict"), (1,))
    for what, n in leaks.items():
        shown.add_row(
            what,
            f"{n:,}",
            ("sound" if not n else "NOT SOUND") if what in SOUND else "for information",
        )
    return shown


def _table(title: str, columns: Sequence[str], numbers: Sequence[int] = ()) -> Table:
    """numbers: the columns of numbers; without them all but the first one."""
    shown = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        shown.add_column(
            name,
            justify="right" if place in (numbers or range(1, len(columns))) else "left",
            overflow="fold",
        )
    return shown
