"""A corpus version as one offline HTML page.

The page shows what the corpus has, what it was made of, what it looks like, what was dropped, which
titles have prompt injections, and whether it leaks.
"""

from datetime import UTC, datetime
from typing import Any

from cluster import storage
from cluster.pages import page_environment
from corpus.ingest import quarantine
from corpus.ingest.quarantine import QuarantinedRows
from corpus.inspect.distributions import TOP_ITEM_FRACTIONS, length_bin_labels
from corpus.inspect.inspection import InspectionResult
from corpus.inspect.leakage import ALL_CHECKS, LEAK_CHECKS
from corpus.sampling.source import SPLITS
from corpus.store.tables import Corpus

PAGE_FILE = "statistics.html"
TEMPLATE = "corpus/inspect/page.html.j2"

MAX_QUARANTINED = 100
"""Largest number of entries of unusable rows that are shown; an entry is a file and a reason."""


def write_page(corpus: Corpus, result: InspectionResult) -> str:
    """Writes the page beside the tables and returns its URI."""
    uri = storage.join(corpus.uri, PAGE_FILE)
    storage.write_text(uri, render_page(corpus, result))
    return uri


def render_page(corpus: Corpus, result: InspectionResult) -> str:
    """Returns the page as HTML; every value is escaped."""
    environment = page_environment()
    environment.filters |= {
        "number": "{:,}".format,
        "percent": "{:.1%}".format,
        "whole_percent": "{:.0%}".format,
    }
    quarantined, missing_records = read_quarantined(corpus)
    return environment.get_template(TEMPLATE).render(
        corpus=corpus,
        statistics=corpus.statistics(),
        versions=describe_versions(corpus),
        sources=count_by_source(corpus),
        dropped=dropped_by_version(corpus),
        quarantined=quarantined,
        missing_records=missing_records,
        max_quarantined=MAX_QUARANTINED,
        splits=SPLITS,
        length_bins=length_bin_labels(),
        top_fractions=TOP_ITEM_FRACTIONS,
        distributions=result.distributions,
        leak_counts=result.leak_counts,
        failed_checks=result.failed_checks,
        leak_checks=LEAK_CHECKS,
        descriptions=ALL_CHECKS,
        prompt_injections=result.prompt_injections,
    )


def describe_versions(corpus: Corpus) -> list[dict[str, Any]]:
    """Returns for every version up to this one when it was made, from what, and what it added."""
    versions = []
    for commit in corpus.commits:
        origin = commit.metadata.get("origin", [])
        origins = origin if isinstance(origin, list) else [origin]
        time = datetime.fromtimestamp(commit.time_ms / 1000, UTC)
        versions.append(
            {
                "version": commit.version,
                "time": time.strftime("%Y-%m-%d %H:%M:%S UTC"),
                "root": ", ".join(origin["root"] for origin in origins) or "unknown",
                "format": ", ".join(origin["format"] for origin in origins) or "unknown",
                "domains": ", ".join(name for origin in origins for name in origin["domains"]),
                "samples": sum(added.file.rows for added in commit.added),
                "files": len(commit.added),
            }
        )
    return versions


def count_by_source(corpus: Corpus) -> list[tuple[str, int, tuple[int, ...]]]:
    """Returns (source, version, samples of each split) for all that versions added, sorted."""
    rows: dict[tuple[str, int], dict[str, int]] = {}
    for split in SPLITS:
        for stream in corpus.streams(split):
            rows.setdefault((stream.source, stream.version), {})[split] = stream.rows
    return [
        (source, version, tuple(counts.get(split, 0) for split in SPLITS))
        for (source, version), counts in sorted(rows.items())
    ]


def read_quarantined(corpus: Corpus) -> tuple[list[tuple[int, QuarantinedRows]], str]:
    """Reads the rows that could not be used.

    An entry has the rows of one file that could not be used for one reason.

    Returns:
        (version, entry), largest entries first.
        What to say of versions whose record is not there; empty if all are.
    """
    names = {commit.version: commit.metadata.get(quarantine.FOLDER) for commit in corpus.commits}
    records = {
        version: quarantine.read(corpus.uri, name) for version, name in names.items() if name
    }
    missing = [str(version) for version, record in records.items() if record is None]
    entries = [(version, rows) for version, record in records.items() for rows in record or ()]
    return (
        sorted(
            entries, key=lambda entry: (-entry[1].rows, entry[0], entry[1].file, entry[1].reason)
        ),
        f"no record of version {', '.join(missing)}: the folder quarantine lacks it"
        if missing
        else "",
    )


def dropped_by_version(corpus: Corpus) -> dict[str, list[int]]:
    """Returns for each reason how much each version dropped, oldest version first."""
    by_version = [commit.metadata["statistics"]["dropped"] for commit in corpus.commits]
    reasons = sorted({reason for dropped in by_version for reason in dropped})
    return {reason: [dropped.get(reason, 0) for dropped in by_version] for reason in reasons}
