# PYTHON_ARGCOMPLETE_OK
"""Append: a new domain, new users, newer rows or text become a corpus's next version.

    python jobs/append_domain.py my.yaml --data.root data/more --data.domains Garden
    python jobs/append_domain.py my.yaml --data.held_out Games --held-out
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
from cprec.config.command import Job, add_as_flag, main
from cprec.config.recipe import Recipe

KEYS = ("storage", "corpus", "seed", "data", "simulate")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --as, --held-out and --text."""
    add_as_flag(parser)
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="append data.held_out, kept out of pre-training, instead of data.domains",
    )
    text = "append a file of plain text (path or s3://) as source text/<name>, not interactions"
    parser.add_argument("--text", metavar="FILE", help=text)


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Appends, prints the statistics of the new version, and tells running jobs of it."""
    from corpus.inspect.console_tables import statistics_table
    from cprec.workflows.append_domain import append_to_corpus, notify_runs, preview_append

    if options.dry_run:
        preview_append(recipe, options.text, options.held_out, print_line)
        return
    corpus = append_to_corpus(recipe, options.text, options.held_out, print_line)
    print_table(statistics_table(corpus.statistics()))
    print_line(f"corpus version {corpus.version} at {corpus.uri}")
    notify_runs(recipe, corpus, print_line, options.by)


JOB = Job(run_job, __doc__, KEYS, add_flags)

if __name__ == "__main__":
    sys.exit(main(JOB))
