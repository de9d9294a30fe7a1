"""Builds a corpus, says what a build would make, and checks a corpus that exists."""

from cluster.console import Say
from cluster.errors import CorpusError
from corpus import build
from corpus.inspect.inspection import InspectionResult
from corpus.store.statistics import VersionStatistics
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe


def build_corpus(recipe: Recipe, say: Say) -> Corpus:
    """Builds corpus version 0 of a recipe, after simulating its shoppers where it asks for them.

    A place that already holds this corpus is left as it is.
    """
    return build.simulate_and_build(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, say)


def preview_statistics(recipe: Recipe, say: Say) -> VersionStatistics:
    """Reads and checks all interactions of a recipe, and writes nothing.

    Returns:
        The statistics of the version that they would make, see `corpus.build.preview`.
    """
    return build.preview(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, say)


def require_sound(corpus: Corpus, result: InspectionResult) -> None:
    """Raises CorpusError if a check of an inspection failed; names all that did."""
    failed = ", ".join(f"{check} {count:,}" for check, count in result.failed_checks.items())
    if failed:
        raise CorpusError(
            f"{corpus.uri}: version {corpus.version} is not sound: {failed}; "
            "build the corpus again, elsewhere"
        )
