"""The recipe of a program or a notebook: given as keys, or as a file."""

import os
from collections.abc import Mapping
from typing import Any

from cprec.config import recipe as checked
from cprec.config.recipe_file import load_recipe, to_yaml
from cprec.config.secrets import reject_secrets

ARGUMENTS = "the arguments"
"""Where keys come from that are given here, for messages."""


class Recipe(checked.Recipe):
    """All keys of all functions: what to train on what, and how.

    Keys are those of a recipe file (docs/reference/recipe-keys.md), and so are the checks. A
    section is a mapping, which names only what differs::

        Recipe(corpus="out/mine", workers=1, train={"global_batch": 64})

    A recipe never changes. Its values are attributes: `recipe.train.global_batch`.
    """

    def __init__(self, **keys: Any) -> None:
        """Checks keys, and fills in the defaults of all others.

        Args:
            keys: Values by key; a section takes a mapping, or a dotted key with `**`.

        Raises:
            UserError: A key does not exist, or a value is wrong; all wrong values are listed.
        """
        recipe = load_recipe(None, _flatten(keys), arguments=ARGUMENTS)
        reject_secrets(recipe.flatten(), ARGUMENTS)
        super().__init__(**dict(recipe))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **keys: Any) -> "Recipe":
        """Reads a recipe file.

        Args:
            path: Path or URI of the file (YAML).
            keys: Values that win over those of the file, as for `Recipe`.

        Raises:
            UserError: The file cannot be read, or a key or value is wrong.
        """
        recipe = load_recipe(os.fspath(path), _flatten(keys), print, ARGUMENTS)
        reject_secrets(recipe.flatten(), os.fspath(path))
        return cls.model_construct(**dict(recipe))

    def replace(self, **keys: Any) -> "Recipe":
        """Returns a recipe with some keys replaced, given as for `Recipe`.

        Raises:
            UserError: A key does not exist, or a value is wrong.
        """
        return Recipe(**{**_flatten(self.model_dump(mode="json")), **_flatten(keys)})

    def to_yaml(self) -> str:
        """Returns the recipe as YAML with every key, which `from_file` reads back."""
        return to_yaml(self)

    def __repr__(self) -> str:
        """Shows the keys that differ from their defaults, as `Recipe` takes them."""
        defaults = checked.Recipe().model_dump()
        shown = []
        for name, value in self.model_dump().items():
            default = defaults[name]
            if isinstance(value, dict) and isinstance(default, dict):
                value = {key: item for key, item in value.items() if item != default[key]}
                default = {}
            if value != default:
                shown.append(f"{name}={value!r}")
        return f"Recipe({', '.join(shown)})"

    __str__ = __repr__


def _flatten(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values by dotted key; paths as text."""
    flat: dict[str, Any] = {}
    for name, value in keys.items():
        nested = value if isinstance(value, Mapping) else {"": value}
        for key, item in nested.items():
            text = os.fspath(item) if isinstance(item, os.PathLike) else item
            flat[f"{name}.{key}".rstrip(".")] = text
    return flat
