"""A run's recipe is settled at its first start: going on with another one is refused, with the difference."""

from collections.abc import Collection
from typing import Any

from cluster.errors import RecipeError, RunError
from cluster.storage import exists, join, write_text
from cprec.config.recipe import RENAMED_KEYS, Recipe
from cprec.config.recipe_file import iter_keys, load_recipe, to_yaml
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
    "data.root",
    "data.distribute_above",
    "train.pack",
    "train.compile",
    "train.micro_batch",
    "train.profile",
    "train.recompute",
    "train.zero_stage",
    "train.max_failures",
    "train.gpus_per_worker",
    "train.cpus_per_worker",
    "train.stream_cpus",
    "schedule.segment_samples",
    "schedule.poll_samples",
    "schedule.hold_open",
)
"""Keys that may change between two starts of a run: where it runs and how it is watched, never what is computed."""


def lock(recipe: Recipe, run_uri: str, allow: Collection[str] = ()) -> Recipe | None:
    """Compare with resolved.yaml, if it is there, and write it. Returns and raises as `compared` does."""
    before = check_unchanged(recipe, run_uri, allow)
    write_text(join(run_uri, RECIPE_FILE), to_yaml(recipe))
    return before


def check_unchanged(recipe: Recipe, run_uri: str, allow: Collection[str] = ()) -> Recipe | None:
    """The recipe of the run's last start, which this one may go on from; None if this is the first.

    allow: keys that may differ all the same. Raises RunError listing every key that changed, RecipeError for an unknown key in allow.
    """
    known = {name for name, *_ in iter_keys()}
    allow = [RENAMED_KEYS.get(key, key) for key in allow]
    if strange := sorted(set(allow) - known):
        raise RecipeError(f"--allow-change {strange[0]}: no such key; --help lists every key")
    where = join(run_uri, RECIPE_FILE)
    before = load_recipe(where) if exists(where) else None
    if before is not None:
        changed = [
            line
            for name, line in _diff_recipes(before, recipe)
            if name not in allow and not name.startswith(CHANGEABLE_KEYS)
        ]
        if changed:
            raise RunError(
                f"the run {recipe.run} was started with another recipe ({where}):\n"
                + "\n".join(f"  {line}" for line in changed)
                + "\n"
                "use another --run, put the values back, or accept a change with --allow-change KEY"
            )
    return before


def _diff_recipes(before: Recipe, after: Recipe) -> list[tuple[str, str]]:
    pairs = [(name, _read_key(before, name), _read_key(after, name)) for name, *_ in iter_keys()]
    return [(name, f"{name}: {old!r} -> {new!r}") for name, old, new in pairs if old != new]


def _read_key(recipe: Recipe, dotted: str) -> Any:
    value: Any = recipe
    for part in dotted.split("."):
        value = getattr(value, part)
    return value
