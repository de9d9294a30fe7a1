"""Raw behaviours of the named domains to corpus version 0.

    python jobs/build_corpus.py jobs/recipes/amazon.yaml --data.root data/amazon --corpus out/corpus

The same line goes after `ray job submit --working-dir . --`. A place that already holds this corpus is left as it is. `--dry-run` reads and checks
all behaviours and prints what is left of each domain after k-core, without writing.
"""

import argparse
import sys

import source_roots  # noqa: F401
from rich.console import Console

from corpus import build, statistics
from corpus.samples import at_most
from cprec.command import main
from cprec.recipe import Recipe


def job(recipe: Recipe, options: argparse.Namespace) -> None:
    """Build the corpus of a recipe and print its statistics."""
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    if options.dry_run:
        gathered = build.gather(recipe.data, say)
        found, items = gathered.interactions, build.sizes_of(gathered.indices())
        samples = at_most(found, recipe.data)
        console.print(statistics.table(statistics.describe(statistics.NOTHING, found, items, recipe.data, samples, 0, gathered.dropped)))
        say("mixed samples are at most as many; the rules for mixed histories only take away")
        return
    corpus = build.prepare(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, say)
    console.print(statistics.table(corpus.statistics()))


if __name__ == "__main__":
    sys.exit(main(job, __doc__))
