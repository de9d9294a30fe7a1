"""Resolves `model.base`: the base that a recipe names, or the tiny base.

The tiny base is built once for a corpus and stored beside the runs.
"""

import hashlib
import json
import tempfile
from pathlib import Path

from cluster.console import Say
from cluster.progress import track
from cluster.storage import (
    absolute_uri,
    exists,
    is_remote,
    join,
    local_path,
    read_text_if_exists,
    upload,
)
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.encode.prompt import PROMPT_FILE, TEMPLATES, PromptTemplate, parse_template

TINY_BASE = "tiny"
"""Value of `model.base` that stands for the tiny base."""


def locate_base(recipe: Recipe, corpus: Corpus) -> str:
    """Returns where workers load the base model from; the tiny base may not be built yet.

    Args:
        recipe: The recipe; `model.base` names the base.
        corpus: The corpus whose titles the tiny base is built from.

    Returns:
        A hub id, an absolute directory, or a URI in an object store.
    """
    base = recipe.model.base
    if base != TINY_BASE:
        return locate_named_base(base)
    identity = json.dumps(
        [corpus.fingerprint, recipe.tiny.model_dump(), recipe.seed],
        sort_keys=True,
    )
    return _tiny_bases(recipe) + hashlib.sha256(identity.encode()).hexdigest()[:12]


def locate_named_base(base: str) -> str:
    """Returns where workers load a base other than the tiny one from.

    Args:
        base: A hub id, a directory, or a URI in an object store.
    """
    return absolute_uri(base) if not is_remote(base) and local_path(base).is_dir() else base


def read_base_template(base: str) -> PromptTemplate | None:
    """Reads in which template of the prompt a base was trained: an exported model names one.

    Args:
        base: The base, as `locate_base` returns it; what a hub has is not asked for.

    Returns:
        The template; None of any other base.

    Raises:
        RunError: This release does not have it.
    """
    file = join(base, PROMPT_FILE)
    text = read_text_if_exists(file)
    return None if text is None else parse_template(text, file)


def is_unbuilt(recipe: Recipe, base: str) -> bool:
    """Returns whether a base, as `locate_base` returns it, is a tiny base and not built yet."""
    # config.json is written last, so a base whose upload was interrupted is built again.
    return base.startswith(_tiny_bases(recipe)) and not exists(join(base, "config.json"))


def _tiny_bases(recipe: Recipe) -> str:
    """Returns what the URIs of all tiny bases of a recipe's storage begin with."""
    return join(absolute_uri(recipe.storage), "bases", f"{TINY_BASE}-")


def resolve_base(recipe: Recipe, corpus: Corpus, say: Say) -> str:
    """Returns where workers load the base model from; builds the tiny base if it is missing.

    Args:
        recipe: The recipe; `model.base` names the base.
        corpus: The corpus whose titles the tiny base is built from.
        say: Prints progress.

    Returns:
        A hub id, an absolute directory, or a URI in an object store.
    """
    uri = locate_base(recipe, corpus)
    if is_unbuilt(recipe, uri):
        # Imported late: an existing base does not need the model code that it loads.
        from cprec.model import tiny

        say(
            f"building the tiny base: {recipe.tiny.layers} layers of {recipe.tiny.hidden}, "
            f"{recipe.tiny.language_steps} steps of language"
        )
        steps = recipe.tiny.language_steps
        with (
            tempfile.TemporaryDirectory() as folder,
            track("building the tiny base", say, steps, "steps") as advance,
        ):
            directory = Path(folder)
            template = TEMPLATES[corpus.prompt_template]
            titles = corpus.read_titles()
            tiny.build(titles, recipe.tiny, recipe.seed, directory, template, advance)
            upload(directory, uri, last="config.json")
    return uri
