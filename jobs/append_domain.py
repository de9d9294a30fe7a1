"""Append to a corpus: a new domain, new users, newer rows, or text become its next version.

    python jobs/append_domain.py my.yaml --data.root data/more --data.domains Books
    python jobs/append_domain.py my.yaml --text plain.txt    for replay (schedule.replay_share)

`data.domains` names what is appended; with --held-out, `data.held_out` does. Rows of earlier
versions are never rewritten. The same line again changes nothing, nor do rows that the corpus
already has. Running jobs below `storage` adopt the new version by themselves and say at which
sample.
"""

import source_roots  # noqa: F401

import argparse
import sys

from cluster.console import print_line, print_table
from corpus.inspect.console_tables import statistics_table
from cprec.config.command import add_as_flag, main
from cprec.config.recipe import Recipe
from cprec.workflows.append_domain import append_to_corpus, notify_runs, preview_append


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --as, --held-out and --text."""
    add_as_flag(parser)
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="append data.held_out, kept out of pre-training, instead of data.domains",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="append a file of plain text (path or s3://) as source text/<name>, "
        "instead of behaviours",
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Appends, prints the statistics of the new version, and tells running jobs of it."""
    if options.dry_run:
        preview_append(recipe, options.text, options.held_out, print_line)
        return
    corpus = append_to_corpus(recipe, options.text, options.held_out, print_line)
    print_table(statistics_table(corpus.statistics()))
    print_line(f"corpus version {corpus.version} at {corpus.uri}")
    notify_runs(recipe, corpus, print_line, options.by)


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))
