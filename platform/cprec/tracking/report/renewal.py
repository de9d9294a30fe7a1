"""Makes the report of a run again: from its records, and from what the registry knows of it."""

from typing import Literal

from cluster import storage
from cluster.errors import RunError
from cprec.config.recipe import Recipe
from cprec.runs.records import EVENTS_FILE, REPORT_FILE
from cprec.runs.run_records import read_run_records, recipe_run_uri
from cprec.tracking.registry import Registry
from cprec.tracking.report import page
from cprec.tracking.report.content import Registered

Format = Literal["html", "md"]


def read_registered(registry: Registry) -> Registered:
    """Reads the versions of a model, and of those fine-tuned from it."""
    registries = registry.own_and_fine_tuned()
    return Registered(
        [version for of_model in registries for version in of_model.versions()],
        {of_model.model: of_model.aliases() for of_model in registries},
    )


def renew_report(recipe: Recipe, registry: Registry) -> None:
    """Makes the page of the recipe's run again, if that run was ever started."""
    if storage.exists(storage.join(recipe_run_uri(recipe), EVENTS_FILE)):
        write_report(recipe, registry, "html")


def write_report(recipe: Recipe, registry: Registry, form: Format) -> str:
    """Writes the report of the recipe's run.

    Args:
        recipe: Names the run, and the price of an hour.
        registry: The registry of the recipe.
        form: As what it is written.

    Returns:
        Where it is (URI).

    Raises:
        RunError: There is no such run.
    """
    run_uri = require_run(recipe)
    records, registered = read_run_records(run_uri), read_registered(registry)
    if form == "html":
        page.write(records, recipe.cost, registered)
        return storage.join(run_uri, REPORT_FILE)
    uri = storage.join(run_uri, page.MARKDOWN)
    storage.write_text(uri, page.render_markdown(records, recipe.cost, registered))
    return uri


def require_run(recipe: Recipe) -> str:
    """Returns the folder of the recipe's run.

    Raises:
        RunError: There is no such run.
    """
    run_uri = recipe_run_uri(recipe)
    if not storage.exists(storage.join(run_uri, EVENTS_FILE)):
        raise RunError(
            f"no run {recipe.run} below {recipe.storage}, so there is nothing to report; "
            "python jobs/list.py runs names those that there are"
        )
    return run_uri
