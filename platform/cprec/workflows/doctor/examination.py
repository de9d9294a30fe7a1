"""The doctor: looks at everything that the jobs of a recipe depend on."""

from collections.abc import Iterator
from functools import partial

from cprec.config.recipe import Recipe
from cprec.workflows.doctor.findings import Check, Finding
from cprec.workflows.doctor.input_checks import check_base, check_corpus
from cprec.workflows.doctor.machines import describe_this_machine, judge_disks
from cprec.workflows.doctor.mlflow_check import check_mlflow
from cprec.workflows.doctor.ray_checks import check_ray
from cprec.workflows.doctor.storage_checks import check_commits, check_storage


def plan_checks(recipe: Recipe) -> list[Check]:
    """Returns the checks of a recipe; none has begun."""
    return [
        Check(
            "storage",
            partial(check_storage, recipe.storage),
            90,
            f"writes, reads, lists and removes files below {recipe.storage}/.doctor-*",
        ),
        Check(
            "corpus: commits",
            partial(check_commits, recipe.corpus),
            60,
            f"writes and removes files below {recipe.corpus}/.doctor-*",
        ),
        Check("corpus", partial(check_corpus, recipe), 120, f"reads {recipe.corpus}"),
        Check("base", partial(check_base, recipe), 120, f"reads {recipe.model.base}"),
        Check(
            "mlflow: registry",
            partial(check_mlflow, recipe),
            60,
            "registers a version of a model cprec-doctor-*, and deletes it",
        ),
        Check(
            "disk",
            _check_disks,
            10,
            "asks for free space",
        ),
        Check(
            "ray",
            partial(check_ray, recipe),
            300,
            f"connects to {recipe.cluster.address}, and runs a process on every node",
        ),
    ]


def _check_disks() -> Iterator[Finding]:
    return judge_disks("disk", [describe_this_machine()])
