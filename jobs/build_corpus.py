"""Raw behaviours of the named domains to corpus version 0.

    python jobs/build_corpus.py jobs/recipes/amazon.yaml --data.root data/amazon --corpus out/corpus

    python jobs/build_corpus.py --corpus out/corpus --describe     its versions: when, from what, samples by source
    python jobs/build_corpus.py --corpus out/corpus --inspect      reads all rows: leakage in numbers (exit code 1 if there is any), statistics.html

The first line goes after `ray job submit --working-dir . --`. A place that already holds this corpus is left as it is. `--dry-run` reads and checks
all behaviours and prints what is left of each domain after k-core, without writing.
"""

import argparse
import sys
from collections.abc import Iterable

import source_roots  # noqa: F401
from rich.console import Console
from rich.table import Table

from cluster.errors import CorpusError
from corpus import build
from corpus.inspect import page, console_tables
from corpus.store import statistics
from corpus.store.catalogue import count_items
from corpus.inspect.inspection import inspect_corpus
from corpus.store.tables import Corpus
from cprec.config.command import main
from cprec.config.recipe import Recipe


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What this job takes beside the recipe."""
    parser.add_argument(
        "--describe", action="store_true", help="tell of the corpus that is there; build nothing"
    )
    parser.add_argument(
        "--inspect",
        action="store_true",
        help="check the corpus that is there for leakage and write statistics.html; build nothing",
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Build the corpus of a recipe and print its statistics."""
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(tables: Iterable[Table]) -> None:
        for table in tables:
            console.print(table, "")

    if options.describe or options.inspect:
        corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
        show(console_tables.corpus_tables(corpus))
        if options.inspect:
            seen = inspect_corpus(corpus)
            show(console_tables.inspection_tables(seen))
            say(f"page: {page.write_page(corpus, seen)}")
            if told := ", ".join(f"{what} {n:,}" for what, n in seen.failed_checks.items()):
                raise CorpusError(
                    f"{corpus.uri}: version {corpus.version} is not sound: {told}; build the corpus again, elsewhere"
                )
        return
    if options.dry_run:
        with build.choose_backend(recipe.data, say) as way:
            found = way.prepare(recipe.data, say)
        items = count_items(found.item_indices())
        console.print(
            console_tables.statistics_table(
                statistics.describe_version(
                    statistics.EMPTY_STATISTICS,
                    found.counts_by_domain,
                    items,
                    recipe.data,
                    found.sample_bounds,
                    0,
                    found.dropped,
                )
            )
        )
        say("mixed samples are at most as many; the rules for mixed histories only take away")
        return
    corpus = build.simulate_and_build(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, say)
    console.print(console_tables.statistics_table(corpus.statistics()))


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))
