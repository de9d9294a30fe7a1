"""Appends to a corpus: behaviours of a recipe's domains, or a file of plain text."""

from cluster.console import Say
from cluster.storage import absolute_uri
from corpus import append
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.runs import control_channel

TIMEOUT_S = 60.0
"""Seconds that a running job has to answer."""


def append_to_corpus(recipe: Recipe, text_file: str | None, held_out: bool, say: Say) -> Corpus:
    """Appends and returns the new version; without anything new, the newest version.

    Args:
        recipe: Behaviours, corpus and seed.
        text_file: File of plain text to append instead of behaviours.
        held_out: Whether `data.held_out` is appended, instead of `data.domains`.
        say: Takes lines of progress.
    """
    if text_file:
        return append.append_text(text_file, recipe.corpus, say)
    return append.simulate_and_append(
        recipe.data, recipe.simulate, recipe.seed, recipe.corpus, say, held_out=held_out
    )


def preview_append(recipe: Recipe, text_file: str | None, held_out: bool, say: Say) -> None:
    """Says what `append_to_corpus` would do with the same arguments, and writes nothing."""
    if text_file:
        append.preview_text(text_file, recipe.corpus, say)
    else:
        append.simulate_and_preview(
            recipe.data, recipe.simulate, recipe.seed, recipe.corpus, say, held_out=held_out
        )


def notify_runs(recipe: Recipe, corpus: Corpus, say: Say) -> None:
    """Tells the runs below `storage` that train on a corpus of its new version.

    Says at which sample each of them adopts it.
    """
    storage = absolute_uri(recipe.storage)
    for answer in control_channel.notify_runs(storage, corpus.uri, TIMEOUT_S) or [
        f"no run below {storage} is training on this corpus now; the next one adopts it"
    ]:
        say(answer)
