"""Checks MLflow: that it answers, takes a version and moves an alias. What it writes is removed."""

import uuid
from collections.abc import Iterator
from contextlib import suppress

from cprec.config.recipe import Recipe
from cprec.tracking.registry import Registry
from cprec.workflows.doctor.findings import Finding

NAME = "mlflow: registry"


def check_mlflow(recipe: Recipe) -> Iterator[Finding]:
    """Registers a version of a model of a random name, names it by an alias, and deletes both.

    A SQLite file that is not there yet is not made.

    Raises:
        RecipeError: `mlflow.uri` is missing, and storage is an object store.
    """
    registry = Registry.from_recipe(recipe)
    if not registry.exists():
        yield Finding(NAME, "ok", f"{registry.uri}: none yet; the first run makes it")
        return
    try:
        yield _use(registry)
    except Exception as error:  # whatever MLflow raises while it is away, or refuses
        first_line = str(error).strip().partition("\n")[0]
        yield Finding(
            NAME,
            "fail",
            f"{registry.uri}: {type(error).__name__}: {first_line}",
            "an answer, and the right to write",
            "see mlflow.uri, the server, and MLFLOW_TRACKING_USERNAME and _PASSWORD or _TOKEN",
        )


def _use(registry: Registry) -> Finding:
    """Writes and reads a version and an alias."""
    probe = registry.with_model(f"cprec-doctor-{uuid.uuid4().hex[:12]}")
    try:
        # An object store's URI, because a server takes no local path; nobody reads it.
        number = probe.register(f"s3://{probe.model}/checkpoint", {})
        probe.set_alias("champion", number)
        champion = probe.version_by_alias("champion")
    except Exception:
        with suppress(Exception):  # the first error counts
            probe.delete_model()
        raise
    probe.delete_model()
    if champion is None or champion.number != number:
        return Finding(
            NAME,
            "fail",
            f"{registry.uri}: an alias that was set to version {number} names {champion}",
            f"version {number}",
            "see which MLflow the server runs",
        )
    return Finding(NAME, "ok", f"{registry.uri}: a version registered, an alias set, both deleted")
