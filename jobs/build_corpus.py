"""Build a corpus: raw behaviours of the named domains to corpus version 0.

    python jobs/build_corpus.py my.yaml --data.root data/amazon --corpus out/corpus
    python jobs/build_corpus.py --corpus out/corpus --describe    versions, and samples by source
    python jobs/build_corpus.py --corpus out/corpus --inspect     leakage, and a statistics.html

A place that already holds this corpus is left as it is. --dry-run reads and checks all behaviours
and prints what k-core leaves. --inspect reads all rows; leakage gives exit code 1.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line, print_table
from corpus.inspect import console_tables, page
from corpus.inspect.inspection import inspect_corpus
from corpus.inspect.console_tables import statistics_table
from corpus.store.tables import Corpus
from cprec.config.command import main
from cprec.config.recipe import Recipe
from cprec.workflows.build_corpus import build_corpus, preview_statistics, require_sound


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --describe and --inspect."""
    text = "only describe the corpus that is there"
    parser.add_argument("--describe", action="store_true", help=text)
    text = "only check the corpus that is there for leakage, and write its statistics.html"
    parser.add_argument("--inspect", action="store_true", help=text)


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Builds the corpus of a recipe and prints its statistics, or shows the one that is there."""
    if options.describe or options.inspect:
        show_corpus(Corpus.open(recipe.corpus, recipe.corpus_version), options.inspect)
    elif options.dry_run:
        print_table(statistics_table(preview_statistics(recipe, print_line)))
        print_line("mixed samples are upper bounds: the rules for mixed histories only remove some")
    else:
        print_table(statistics_table(build_corpus(recipe, print_line).statistics()))


def show_corpus(corpus: Corpus, inspect: bool) -> None:
    """Prints what a corpus holds and, where asked to, inspects it."""
    for table in console_tables.corpus_tables(corpus):
        print_table(table)
        print_line("")
    if inspect:
        result = inspect_corpus(corpus)
        for table in console_tables.inspection_tables(result):
            print_table(table)
            print_line("")
        print_line(f"page: {page.write_page(corpus, result)}")
        require_sound(corpus, result)


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))
