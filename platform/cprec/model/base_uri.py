"""Which base a recipe means: its own, or the tiny one, built once for a corpus and kept beside the runs."""

import hashlib
import json
import tempfile
from pathlib import Path

from cluster.console import Say
from cluster.storage import absolute_uri, exists, is_remote, join, upload
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe

TINY_BASE = "tiny"


def resolve_base(recipe: Recipe, corpus: Corpus, say: Say) -> str:
    """What workers load: a hub id, an absolute directory or an object store's URI. The tiny base is built if it is not there."""
    base = recipe.model.base
    if base != TINY_BASE:
        path = Path(base.removeprefix("file://")).expanduser()
        return str(path.absolute()) if not is_remote(base) and path.is_dir() else base
    identity = json.dumps(
        [corpus.commits[0].metadata["fingerprint"], recipe.tiny.model_dump(), recipe.seed],
        sort_keys=True,
    )
    place = join(
        absolute_uri(recipe.storage),
        "bases",
        f"tiny-{hashlib.sha256(identity.encode()).hexdigest()[:12]}",
    )
    # config.json goes last: a base whose writing was cut short is built again.
    if not exists(join(place, "config.json")):
        from cprec.model import tiny

        say(
            f"building the tiny base: {recipe.tiny.layers} layers of {recipe.tiny.hidden}, {recipe.tiny.language_steps} steps of language"
        )
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            tiny.build(corpus.read_titles(), recipe.tiny, recipe.seed, directory)
            upload(directory, place, last="config.json")
    return place
