"""The command line of a job: `[RECIPE.yaml] [ACTION] [--section.key VALUE ...]` to a `Recipe`.

A value on the command line wins over the recipe file, and the file wins over the defaults.
"""

import argparse
import os
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cluster.console import Say
from cluster.errors import RecipeError
from cprec.config.recipe import RENAMED_KEYS, Recipe
from cprec.config.recipe_file import (
    RecipeKey,
    format_value,
    iter_keys,
    load_recipe,
    suggest_nearest,
)
from cprec.config.secrets import reject_secrets
from cprec.config.typed_text import metavar, parse_text

RECIPE_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Job:
    """A job: its function, and what its command line takes.

    Attributes:
        run: Takes the recipe and the flags.
        description: What it does, with examples: the text at the top of `--help`.
        keys: What it reads of the recipe, and `--help` shows: names of sections, and dotted keys.
        add_flags: Adds the flags that only this job takes.
        actions: Names of what it can do, such as `hold`; the flag `action` holds the given one.
        again: What the same command does after an interruption or a fault, for the last line.
    """

    run: Callable[[Recipe, argparse.Namespace], None]
    description: str
    keys: Collection[str]
    add_flags: Callable[[argparse.ArgumentParser], None] | None = None
    actions: Collection[str] = ()
    again: str = "the same command starts over"

    def reads(self, key: str) -> bool:
        """Returns whether the job reads a key, by its dotted name."""
        return any(key == name or key.startswith(f"{name}.") for name in self.keys)

    @property
    def computes(self) -> bool:
        """Whether it computes with the model: it reads how many CPUs or samples that takes."""
        sizes = ("train.cpus_per_worker", "evaluate.batch")
        return self.reads("model.precision") and any(map(self.reads, sizes))


def parse_arguments(
    arguments: Sequence[str], job: Job, default_recipe: Path, say: Say | None = None
) -> tuple[Recipe, argparse.Namespace]:
    """Parses a job's command line. `--help` prints the job's keys and exits with 0.

    Args:
        arguments: The arguments, without the name of the program.
        job: The job.
        default_recipe: Recipe file that is read where none is given.
        say: Takes one line for each key that is given under the name of an earlier release.

    Returns:
        The recipe, and the flags. Three of the flags are set here: `action`, the given action or
        None; `recipe`, the path of the given recipe or None; and `keys`, the text of each key that
        was given, by its dotted name.

    Raises:
        RecipeError: A key, flag or action is unknown, or a value is wrong. The message suggests
            the nearest known key.
    """
    parser = build_parser(job)
    _answer_completion(parser)
    # Intermixed: recipe and action may stand apart from each other, with keys between them.
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise RecipeError(_unknown_argument_message(unknown[0]))
    overrides = _parse_overrides(options, say)
    actions = job.actions
    options.action = next((word for word in options.positional if word in actions), None)
    recipes = [word for word in options.positional if word != options.action]
    if len(recipes) > 1:
        or_action = f", and one of {', '.join(actions)}" if actions else ""
        raise RecipeError(
            f"{recipes[1]!r}: one recipe at most{or_action}; every value behind its --key"
        )
    if recipes and actions and not recipes[0].endswith(RECIPE_SUFFIXES):
        raise RecipeError(
            f"{recipes[0]!r} is neither a recipe (.yaml or .json) nor one of {', '.join(actions)}"
        )
    options.recipe = recipes[0] if recipes else None
    recipe = load_recipe(options.recipe or str(default_recipe), overrides, say)
    reject_secrets(recipe.flatten(), options.recipe or "the command line")
    reject_secrets(vars(options), "the command line")
    old_names = {new: old for old, new in RENAMED_KEYS.items()}
    given = (
        (key.name, getattr(options, name))
        for key in iter_keys()
        for name in (key.name, old_names.get(key.name, key.name))
    )
    options.keys = {name: text for name, text in given if text is not None}
    return recipe, options


def option_name(key: str) -> str:
    """Returns the option of a key: --section.key, or --top-level-key with dashes."""
    return f"--{key}" if "." in key else f"--{key.replace('_', '-')}"


def build_parser(job: Job, show_all: bool = False) -> argparse.ArgumentParser:
    """Builds the parser of a job. It knows every key, and raises RecipeError instead of exiting.

    Args:
        job: The job.
        show_all: Whether help shows every key, and not only those that the job reads.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> typing.NoReturn:
            raise RecipeError(f"{message}; --help lists the keys of this job")

    class HelpAll(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            build_parser(job, show_all=True).print_help()
            parser.exit()

    parser = Parser(
        description=job.description,
        epilog=""
        if show_all
        else "Every job takes every key: --help-all shows those of the "
        "others, which this job does not read.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recipe = parser.add_argument(
        "positional",
        nargs="*",
        metavar="RECIPE.yaml",
        help="the recipe, without which jobs/recipes/demo.yaml is taken"
        + (f"; and one of {', '.join(job.actions)}" if job.actions else ""),
    )
    recipe.completer = _complete_recipe(job.actions)  # type: ignore[attr-defined]
    parser.add_argument("--help-all", nargs=0, action=HelpAll, help="show every key and exit")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the recipe and the inputs, print what would be done, and stop",
    )
    if job.add_flags is not None:
        job.add_flags(parser)
    parser.usage = _usage(parser, job.actions)
    for section, keys in groupby(iter_keys(), _section_of):
        group = parser.add_argument_group(_section_title(section))
        for key in keys:
            _add_key(group, key, is_shown=show_all or job.reads(key.name))
    for old_name in RENAMED_KEYS:
        parser.add_argument(option_name(old_name), dest=old_name, help=argparse.SUPPRESS)
    return parser


def _add_key(group: argparse._ArgumentGroup, key: RecipeKey, is_shown: bool) -> None:
    """Adds the option of a key."""
    # argparse formats help texts with the operator %.
    text = f"{key.description} [{format_value(key.default)}]".replace("%", "%%")
    shown = metavar(key.annotation)
    option = group.add_argument(
        option_name(key.name),
        dest=key.name,
        metavar=shown,
        help=text if is_shown else argparse.SUPPRESS,
    )
    if "|" in shown:
        option.completer = _complete_words(shown.split("|"))  # type: ignore[attr-defined]


def _usage(parser: argparse.ArgumentParser, actions: Collection[str]) -> str:
    """Returns how a job is called: with its recipe, its action and what has to be given."""
    required = (
        f"{action.option_strings[0]} {action.metavar}"
        for action in parser._actions
        if action.required and action.option_strings
    )
    words = ("[RECIPE.yaml]", f"[{'|'.join(actions)}]" if actions else "", *required)
    program = f"python {sys.argv[0]}".replace("%", "%%")
    return " ".join(filter(None, (program, *words, "[--section.key VALUE ...]")))


def _section_of(key: RecipeKey) -> str:
    """Returns the name of a key's section; "" for a key of the top level."""
    return key.name.partition(".")[0] if "." in key.name else ""


def _section_title(section: str) -> str:
    """Returns the heading of a section, from the first line of its class."""
    if not section:
        return "keys"
    documentation = str(getattr(Recipe.model_fields[section].annotation, "__doc__", ""))
    return documentation.splitlines()[0].replace("`", "").rstrip(".")


def _answer_completion(parser: argparse.ArgumentParser) -> None:
    """Tells the shell, if it is the one that asks, how the words so far go on; ends the process."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def _complete_words(words: Iterable[str]) -> Callable[..., list[str]]:
    """Returns what completes the value of an option that takes one of some words."""
    return lambda prefix, **_: [word for word in words if word.startswith(prefix)]


def _complete_recipe(actions: Collection[str]) -> Callable[..., list[str]]:
    """Returns what completes the positional words of a job: recipes, folders and actions."""

    def complete(prefix: str, **_: object) -> list[str]:
        from argcomplete.completers import FilesCompleter

        files = FilesCompleter([suffix.lstrip(".") for suffix in RECIPE_SUFFIXES])(prefix)
        return [*(word for word in actions if word.startswith(prefix)), *files]

    return complete


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
    return f"--{name}: no such key{suggest_nearest(name, known, '--')}; --help-all lists every key"
