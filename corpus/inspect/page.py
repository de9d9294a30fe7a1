"""A corpus version as one offline page: what it holds, where it comes from, what it looks like, what was dropped, whether it leaks."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cluster import storage
from corpus.ingest import quarantine
from corpus.ingest.quarantine import QuarantinedRows
from corpus.inspect.distributions import TOP_ITEM_FRACTIONS, length_bin_labels
from corpus.inspect.inspection import InspectionResult
from corpus.inspect.leakage import ALL_CHECKS, LEAK_CHECKS
from corpus.sampling.sequences import SPLITS
from corpus.store.tables import Corpus

PAGE_FILE = "statistics.html"
MAX_QUARANTINED = 100
"""Files and reasons of rows that cannot be used that are shown, at most."""


def write_page(corpus: Corpus, result: InspectionResult) -> str:
    """Write the page beside the tables; returns its URI."""
    uri = storage.join(corpus.uri, PAGE_FILE)
    storage.write_text(uri, render_page(corpus, result))
    return uri


def render_page(corpus: Corpus, result: InspectionResult) -> str:
    """The page as HTML. Everything that comes from data is escaped."""
    # Autoescaping is on for everything.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": "{:,}".format, "percent": "{:.1%}".format}
    return environment.get_template("page.html.j2").render(
        corpus=corpus,
        statistics=corpus.statistics(),
        versions=describe_versions(corpus),
        sources=count_by_source(corpus),
        dropped=dropped_by_version(corpus),
        quarantined=read_quarantined(corpus),
        most=MAX_QUARANTINED,
        splits=SPLITS,
        classes=length_bin_labels(),
        shares=TOP_ITEM_FRACTIONS,
        looks=result.distributions,
        leaks=result.leak_counts,
        leaking=result.failed_checks,
        sound=LEAK_CHECKS,
        counted=ALL_CHECKS,
    )


def describe_versions(corpus: Corpus) -> list[dict[str, Any]]:
    """Every version up to this one: when it was made, from what, and the samples that it added."""
    found = []
    for commit in corpus.commits:
        origin = commit.metadata.get("origin", {})
        found.append(
            {
                "version": commit.version,
                "time": datetime.fromtimestamp(commit.time_ms / 1000, UTC).strftime(
                    "%Y-%m-%d %H:%M:%S UTC"
                ),
                "root": origin.get("root", "unknown"),
                "format": origin.get("format", "unknown"),
                "domains": ", ".join(origin.get("domains", [])),
                "samples": sum(added.file.rows for added in commit.added),
                "files": len(commit.added),
            }
        )
    return found


def count_by_source(corpus: Corpus) -> list[tuple[str, int, tuple[int, ...]]]:
    """(source, version, samples of each split) of everything that versions added."""
    rows: dict[tuple[str, int], dict[str, int]] = {}
    for split in SPLITS:
        for stream in corpus.streams(split):
            rows.setdefault((stream.source, stream.version), {})[split] = stream.rows
    return [
        (source, version, tuple(of.get(split, 0) for split in SPLITS))
        for (source, version), of in sorted(rows.items())
    ]


def read_quarantined(corpus: Corpus) -> list[tuple[int, QuarantinedRows]]:
    """What of the files of each version could not be used, the most first: (version, of a file for one reason)."""
    names = [(commit.version, commit.metadata.get(quarantine.FOLDER)) for commit in corpus.commits]
    found = [
        (version, of) for version, name in names if name for of in quarantine.read(corpus.uri, name)
    ]
    return sorted(
        found, key=lambda entry: (-entry[1].rows, entry[0], entry[1].file, entry[1].reason)
    )


def dropped_by_version(corpus: Corpus) -> dict[str, list[int]]:
    """What each version left out, oldest first, by reason."""
    found = [commit.metadata["statistics"]["dropped"] for commit in corpus.commits]
    return {
        reason: [of.get(reason, 0) for of in found]
        for reason in sorted({reason for of in found for reason in of})
    }
