"""Appends to a corpus: interactions of a recipe's domains, or a file of plain text."""

from cluster.console import Say
from cluster.errors import UserError
from cluster.storage import absolute_uri, join, list_names
from corpus import append, append_text
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import load_recipe
from cprec.runs.control import control_channel
from cprec.runs.control.status import read_status
from cprec.runs.records import RECIPE_FILE, run_folder
from cprec.runs.run_plan import RunPlan
from cprec.schedule.plan_notes import describe_cap
from cprec.schedule.wsa import Phase

TIMEOUT_S = 60.0
"""Seconds that a running job has to answer."""


def append_to_corpus(recipe: Recipe, text_file: str | None, held_out: bool, say: Say) -> Corpus:
    """Appends and returns the new version; without anything new, the newest version.

    Args:
        recipe: Interactions, corpus and seed.
        text_file: File of plain text to append instead of interactions.
        held_out: Whether `data.held_out` is appended, instead of `data.domains`.
        say: Takes lines of progress.
    """
    if text_file:
        return append_text.append_text(text_file, recipe.corpus, say)
    if not held_out:
        describe_caps(recipe, say)
    return append.simulate_and_append(
        recipe.data, recipe.simulate, recipe.seed, recipe.corpus, say, held_out=held_out
    )


def preview_append(recipe: Recipe, text_file: str | None, held_out: bool, say: Say) -> None:
    """Says what `append_to_corpus` would do with the same arguments, and writes nothing."""
    if text_file:
        append_text.preview_text(text_file, recipe.corpus, say)
        return
    append.simulate_and_preview(
        recipe.data, recipe.simulate, recipe.seed, recipe.corpus, say, held_out=held_out
    )
    if not held_out:
        describe_caps(recipe, say)


def describe_caps(recipe: Recipe, say: Say) -> None:
    """Says what the caps of open runs below `storage` mean for interactions that join them."""
    storage = absolute_uri(recipe.storage)
    fingerprint = Corpus.open(recipe.corpus).fingerprint
    for run in list_names(storage):
        run_uri = run_folder(storage, run)
        try:
            effect = _describe_cap_of(run, run_uri, fingerprint)
        except UserError as error:  # another run's files must not keep the append
            effect = f"{run}: what the append means for it is not known ({error})"
        if effect is not None:
            say(effect)


def _describe_cap_of(run: str, run_uri: str, fingerprint: str) -> str | None:
    """Returns what the cap of a run means for what joins it; None if it has none, or nothing joins.

    Args:
        run: Name of the run.
        run_uri: Its folder.
        fingerprint: Fingerprint of the corpus that is appended to.

    Raises:
        UserError: A file of the run is damaged, or of another release.
    """
    run_plan, status = RunPlan.read(run_uri), read_status(run_uri)
    if run_plan is None or run_plan.closed or run_plan.corpus != fingerprint:
        return None
    if status is not None and status.phase in (Phase.ANNEALING, Phase.DONE):
        return None
    cap = load_recipe(join(run_uri, RECIPE_FILE)).train.max_samples
    if cap is None:
        return None
    issued = 0 if status is None or status.issued is None else status.issued
    return describe_cap(run, run_plan.plan, issued, cap)


def notify_runs(recipe: Recipe, corpus: Corpus, say: Say, by: str | None = None) -> None:
    """Tells the runs below `storage` that train on a corpus of its new version.

    Says at which sample each of them adopts it.
    """
    storage = absolute_uri(recipe.storage)
    for answer in control_channel.notify_runs(storage, corpus.uri, TIMEOUT_S, by) or [
        f"no run below {storage} is training on this corpus now; the next one adopts it"
    ]:
        say(answer)
