"""Finds the version that a name stands for: the same one in every job, key and flag."""

import posixpath
import re

from cluster.errors import RecipeError, RunError
from cluster.storage import absolute_uri
from cprec.tracking.registry import ALIASES, Alias, Registry, Version

CANDIDATE = "candidate"
"""Name of the newest version of a run. It is no alias of MLflow: those are one for all runs."""
MODEL_URI = re.compile(r"models:/([A-Za-z0-9][A-Za-z0-9_.-]*)[@/]([a-z]+|[0-9]+)")
"""A version of a registered model, as MLflow writes it: `models:/NAME@champion`, `models:/NAME/3`.
"""
VERSION_NAMES = (
    "candidate (the newest version of --run), champion, previous, a version number, "
    "models:/NAME@champion or models:/NAME/3"
)
"""How a version may be named, for messages and help."""
MAX_LISTED = 10
"""Versions that a message lists, the newest."""


def find_version(registry: Registry, name: str, run_uri: str) -> Version | None:
    """Finds the version that a name stands for.

    Args:
        registry: The registry of the recipe.
        name: `candidate`, `champion`, `previous`, a number, or one of these of another registered
            model (`models:/NAME@champion`, `models:/NAME/3`); or the URI of a checkpoint that is
            registered. Any other text stands for no version, which is None.
        run_uri: Folder of the run whose newest version is the candidate.

    Raises:
        RecipeError: A `models:/` URI of another form.
        RunError: There is no such version.
    """
    if name.startswith("models:"):
        match = MODEL_URI.fullmatch(name)
        if match is None or not (match[2].isdecimal() or match[2] in (CANDIDATE, *ALIASES)):
            raise RecipeError(f"{name}: not a version of a model; give {VERSION_NAMES}")
        return find_version(registry.with_model(match[1]), match[2], run_uri)
    if name.isdecimal():
        return registry.version(int(name))
    if name == CANDIDATE:
        return _find_candidate(registry, run_uri)
    for alias in ALIASES:
        if name == alias:
            return _find_aliased(registry, alias)
    uri = absolute_uri(name)
    return next((version for version in registry.versions() if version.checkpoint == uri), None)


def is_mutable_name(name: str) -> bool:
    """Returns whether a name may stand for another version tomorrow: an alias, or a candidate."""
    match = MODEL_URI.fullmatch(name)
    return (match[2] if match else name) in (CANDIDATE, *ALIASES)


def _find_candidate(registry: Registry, run_uri: str) -> Version:
    """Returns the newest version of a run; raises RunError, with what there is, if it has none."""
    versions = registry.versions()
    if own := [version for version in versions if version.run == run_uri]:
        return own[-1]
    run = posixpath.basename(run_uri)
    listed = ", ".join(
        f"{version.number} (run {version.run})" for version in versions[-MAX_LISTED:]
    )
    raise RunError(
        f"model {registry.model} has no candidate of run {run} ({run_uri}); train one with "
        f"jobs/cpt.py --run {run}, or name another --run, or a version by its number; "
        f"versions: {listed or 'none yet'}"
    )


def _find_aliased(registry: Registry, alias: Alias) -> Version:
    """Returns the version that an alias points at; raises RunError if there is none."""
    version = registry.version_by_alias(alias)
    if version is None:
        todo = "run jobs/promote.py" if alias == "champion" else "the second promotion makes it one"
        raise RunError(f"model {registry.model} has no {alias} yet; {todo}")
    return version
