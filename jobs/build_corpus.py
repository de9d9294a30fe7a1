# PYTHON_ARGCOMPLETE_OK
"""Build a corpus: raw interactions of the named domains to corpus version 0.

    python jobs/build_corpus.py my.yaml --data.root data/amazon --corpus out/corpus
    python jobs/build_corpus.py --corpus out/corpus --describe    versions, and samples by source
    python jobs/build_corpus.py --corpus out/corpus --inspect     leakage, and a statistics.html

A place that already holds this corpus is left as it is. --dry-run reads and checks all interactions
and prints what k-core leaves. --inspect reads all rows; leakage gives exit code 1.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line, print_table, print_tables
from cprec.config.command import Job, main
from cprec.config.recipe import Recipe

KEYS = ("corpus", "corpus_version", "seed", "data", "simulate")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --describe and --inspect."""
    text = "only describe the corpus that is there"
    parser.add_argument("--describe", action="store_true", help=text)
    text = "only check the corpus that is there for leakage, and write its statistics.html"
    parser.add_argument("--inspect", action="store_true", help=text)


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Builds the corpus of a recipe and prints its statistics, or shows the one that is there."""
    from corpus.inspect import console_tables, inspection, page
    from corpus.store.tables import Corpus
    from cprec.config.next_steps import after_build
    from cprec.workflows.build_corpus import build_corpus, preview_statistics, require_sound

    if options.describe or options.inspect:
        corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
        print_tables(console_tables.corpus_tables(corpus))
        if options.inspect:
            result = inspection.inspect_corpus(corpus)
            print_tables(console_tables.inspection_tables(result))
            if not options.dry_run:
                print_line(f"page: {page.write_page(corpus, result)}")
            require_sound(corpus, result)
    elif options.dry_run:
        print_table(console_tables.statistics_table(preview_statistics(recipe, print_line)))
        print_line("mixed samples are upper bounds: the rules for mixed histories only remove some")
    else:
        print_table(console_tables.statistics_table(build_corpus(recipe, print_line).statistics()))
        for line in after_build(recipe, options):
            print_line(line)


JOB = Job(run_job, __doc__, KEYS, add_flags)

if __name__ == "__main__":
    sys.exit(main(JOB))
