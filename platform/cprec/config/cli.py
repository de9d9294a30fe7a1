"""The command line of a job: `[RECIPE.yaml] [ACTION] [--section.key VALUE ...]` to a `Recipe`.

A value on the command line wins over the recipe file, and the file wins over the defaults.
"""

import argparse
import typing
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from cluster.console import Say
from cluster.errors import RecipeError
from cprec.config.recipe import RENAMED_KEYS, Recipe
from cprec.config.recipe_file import (
    format_value,
    iter_keys,
    load_recipe,
    suggest_nearest,
)
from cprec.config.typed_text import metavar, parse_text


def parse_arguments(
    arguments: Sequence[str],
    description: str,
    default_recipe: Path,
    add_flags: Callable[[argparse.ArgumentParser], None] | None = None,
    actions: Collection[str] = (),
    say: Say | None = None,
) -> tuple[Recipe, argparse.Namespace]:
    """Parses a job's command line. `--help` prints every key and exits with 0.

    Args:
        arguments: The arguments, without the name of the program.
        description: Text at the top of `--help`.
        default_recipe: Recipe file that is read where none is given.
        add_flags: Adds the flags that only this job takes.
        actions: Names of what the job can do, such as `hold`; one of them may be given.
        say: Takes one line for each key that is given under the name of an earlier release.

    Returns:
        The recipe, and the flags. `action` among the flags is the given action, or None.

    Raises:
        RecipeError: A key, flag or action is unknown, or a value is wrong. The message suggests
            the nearest known key.
    """
    parser = _build_parser(description)
    if add_flags is not None:
        add_flags(parser)
    # Intermixed: recipe and action may stand apart from each other, with keys between them.
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise RecipeError(_unknown_argument_message(unknown[0]))
    overrides = _parse_overrides(options, say)
    options.action = next((word for word in options.positional if word in actions), None)
    recipes = [word for word in options.positional if word != options.action]
    if len(recipes) > 1:
        or_action = f", and one of {', '.join(actions)}" if actions else ""
        raise RecipeError(
            f"{recipes[1]!r}: one recipe at most{or_action}; every value behind its --key"
        )
    if recipes and actions and not recipes[0].endswith((".yaml", ".yml")):
        raise RecipeError(
            f"{recipes[0]!r} is neither a recipe (.yaml) nor one of {', '.join(actions)}"
        )
    recipe = load_recipe(recipes[0] if recipes else str(default_recipe), overrides, say)
    return recipe, options


def option_name(key: str) -> str:
    """Returns the option of a key: --section.key, or --top-level-key with dashes."""
    return f"--{key}" if "." in key else f"--{key.replace('_', '-')}"


def _build_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser that knows every key and raises RecipeError instead of exiting."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> typing.NoReturn:
            raise RecipeError(f"{message}; --help lists every key")

    parser = Parser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "positional", nargs="*", metavar="RECIPE.yaml", help="default: the demo recipe"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the recipe and the inputs, print what would be done, and stop",
    )
    for key in iter_keys():
        # argparse formats help texts with the operator %.
        help_text = f"{key.description} [{format_value(key.default)}]".replace("%", "%%")
        parser.add_argument(
            option_name(key.name),
            dest=key.name,
            metavar=metavar(key.annotation),
            help=help_text,
        )
    for old_name in RENAMED_KEYS:
        parser.add_argument(option_name(old_name), dest=old_name, help=argparse.SUPPRESS)
    return parser


def _parse_overrides(options: argparse.Namespace, say: Say | None) -> dict[str, Any]:
    """Returns the values of the keys on the command line by their dotted names."""
    overrides = {}
    old_names = {new: old for old, new in RENAMED_KEYS.items()}
    for key in iter_keys():
        text = getattr(options, key.name)
        old_name = old_names.get(key.name)
        old_text = None if old_name is None else getattr(options, old_name)
        if old_text is not None:
            if text is not None:
                raise RecipeError(
                    f"--{old_name} is now called --{key.name}, and both are given; "
                    f"keep --{key.name}"
                )
            if say is not None:
                say(f"--{old_name} is now called --{key.name}")
            text = old_text
        if text is not None:
            overrides[key.name] = parse_text(text, key.annotation)
    return overrides


def _unknown_argument_message(argument: str) -> str:
    """Returns what to do about an argument that is neither a key, a flag nor a recipe."""
    if not argument.startswith("--"):
        return f"{argument!r}: one recipe at most, and every value behind its --key"
    name = argument[2:].split("=")[0]
    known = [option_name(key.name)[2:] for key in iter_keys()]
    return f"--{name}: no such key{suggest_nearest(name, known, '--')}; --help lists every key"
