"""More behaviours to the next corpus version: a new domain, new users, or newer rows of an old domain.

    python jobs/append_domain.py jobs/recipes/amazon.yaml --data.root data/more --data.domains Books --corpus out/corpus

    python jobs/append_domain.py --text plain.txt --corpus out/corpus      a file of plain text, for replay (schedule.replay_share)

`data.domains` names what is appended; with `--held-out`, `data.held_out` does. Rows of earlier versions are never rewritten. The same line again
changes nothing, nor do rows that the corpus has already. Running jobs below `storage` take the new version up by themselves and say where.
"""

import argparse
import sys

import source_roots  # noqa: F401
from rich.console import Console

from cluster.storage import absolute_uri
from corpus import append
from corpus.inspect import console_tables
from cprec.config.command import main
from cprec.config.recipe import Recipe
from cprec.runs import control_channel

TIMEOUT_S = 60.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """`--held-out` and `--text`."""
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="append data.held_out, kept out of pre-training, instead of data.domains",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="append a file of plain text (path or s3://) as source text/<name>, instead of behaviours",
    )


def run_job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Append the behaviours of a recipe's domains; print the statistics of the corpus and its new version."""
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if options.dry_run:
        if options.text:
            append.preview_text(options.text, recipe.corpus, say)
        else:
            append.preview(recipe.data, recipe.seed, recipe.corpus, say, held_out=options.held_out)
        return
    if options.text:
        corpus = append.append_text(options.text, recipe.corpus, say)
    else:
        corpus = append.simulate_and_append(
            recipe.data, recipe.simulate, recipe.seed, recipe.corpus, say, held_out=options.held_out
        )
    console.print(console_tables.statistics_table(corpus.statistics()))
    say(f"corpus version {corpus.version} at {corpus.uri}")
    told = control_channel.notify_runs(absolute_uri(recipe.storage), corpus.uri, TIMEOUT_S)
    for line in told or [
        f"no run below {absolute_uri(recipe.storage)} is training on this corpus now; the next one takes it up"
    ]:
        say(line)


if __name__ == "__main__":
    sys.exit(main(run_job, __doc__, add_flags))
