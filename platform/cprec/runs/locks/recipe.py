"""A run keeps the recipe of its first start: resolved.yaml below <storage>/<run>/.

A start with a recipe that would compute something else is refused, and every difference is named.
"""

from collections.abc import Collection
from enum import Enum
from typing import Any

from cluster.errors import RecipeError, RunError
from cluster.storage import exists, join
from cprec.config.recipe import RENAMED_KEYS, Recipe
from cprec.config.recipe_file import iter_keys, load_recipe, to_yaml
from cprec.runs.control.fence import UNFENCED, RunWriter
from cprec.runs.records import RECIPE_FILE

CHANGEABLE_KEYS = (
    "workers",
    "storage",
    "corpus",
    "cluster.",
    "mlflow.",
    "checkpoint.",
    "evaluate.",
    "gate.",
    "retrieval.",
    "recommend.",
    "serve.",
    "console.",
    "cost.",
    "reproduce.",
    "data.root",
    "data.distribute_above",
    "model.license",
    "train.pack",
    "train.compile",
    "train.cuda_graphs",
    "train.micro_batch",
    "train.profile",
    "train.recompute",
    "train.zero_stage",
    "train.collective_timeout_s",
    "train.max_failures",
    "train.min_workers",
    "train.resize_interval_s",
    "train.gpus_per_worker",
    "train.cpus_per_worker",
    "train.stream_cpus",
    "schedule.segment_samples",
    "schedule.poll_samples",
    "schedule.hold_open",
    "schedule.min_annealing_share",
)
"""Keys, or the first parts of keys, that may change between two starts of a run.

They decide where it runs and how it is watched, never what is computed.
"""


LATER_KEYS = ("baseline.", "finetune.", "search.")
"""First parts of keys that pre-training does not read: they decide what is made of its model."""


def write_recipe(recipe: Recipe, run_uri: str, writer: RunWriter = UNFENCED) -> None:
    """Writes the recipe of a run to resolved.yaml."""
    writer.replace(join(run_uri, RECIPE_FILE), to_yaml(recipe).encode())


def check_unchanged(recipe: Recipe, run_uri: str, allow: Collection[str] = ()) -> Recipe | None:
    """Checks that a run may start again with a recipe.

    Args:
        recipe: The recipe of this start.
        run_uri: Folder of the run.
        allow: Keys that may differ beside `CHANGEABLE_KEYS` and `LATER_KEYS`.

    Returns:
        The recipe of the last start; None if this is the first.

    Raises:
        RunError: Another key changed; lists every such key.
        RecipeError: `allow` names an unknown key.
    """
    known_keys = {key for key, *_ in iter_keys()}
    allow = [RENAMED_KEYS.get(key, key) for key in allow]
    if unknown := sorted(set(allow) - known_keys):
        raise RecipeError(f"--allow-change {unknown[0]}: no such key; --help-all lists every key")
    recipe_uri = join(run_uri, RECIPE_FILE)
    if not exists(recipe_uri):
        return None
    previous = load_recipe(recipe_uri)
    changes = [
        f"  {change}"
        for key, change in _diff_recipes(previous, recipe)
        if key not in allow and not key.startswith((*CHANGEABLE_KEYS, *LATER_KEYS))
    ]
    if changes:
        raise RunError(
            f"the run {recipe.run} was started with another recipe ({recipe_uri}):\n"
            + "\n".join(changes)
            + "\nuse another --run, put the values back, or accept a change with "
            "--allow-change KEY"
        )
    return previous


def _diff_recipes(before: Recipe, after: Recipe) -> list[tuple[str, str]]:
    """Returns (key, old and new value for people) of every key that differs."""
    pairs = [(key, _read_key(before, key), _read_key(after, key)) for key, *_ in iter_keys()]
    return [(key, f"{key}: {old!r} -> {new!r}") for key, old, new in pairs if old != new]


def _read_key(recipe: Recipe, dotted_key: str) -> Any:
    value: Any = recipe
    for name in dotted_key.split("."):
        value = getattr(value, name)
    return value.value if isinstance(value, Enum) else value
