"""From a recipe file and a command line to a Recipe, and back to YAML.

A recipe is YAML 1.2 with closed keys; `--section.key VALUE` on the command line wins over the file, the file over the defaults.
"""

import argparse
import difflib
import io
import json
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from cluster.errors import RecipeError
from cluster.storage import read_text
from cprec.config.recipe import Recipe


def load_recipe(path: str | None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Resolve a recipe file and overrides ({"train.global_batch": 64}).

    Raises RecipeError that names the key, the value seen and what is allowed.
    """
    values = parse_yaml(read_text(path), path) if path is not None else {}
    for dotted, value in (overrides or {}).items():
        _set_key(values, dotted, value)
    return validate_recipe(values, path or "the command line")


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML, every key written out; `load` reads it back to an equal recipe."""
    stream = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(json.loads(recipe.model_dump_json()), stream)
    return stream.getvalue()


def validate_recipe(values: Mapping[str, Any], origin: str) -> Recipe:
    """Plain data to a Recipe. Raises RecipeError naming every wrong key at once."""
    _reject_unknown_keys(values, Recipe, "", origin)
    try:
        # JSON mode: strict numbers, yet lists are accepted for tuples.
        return Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']} (seen: {_format_value(e['input'])})"
            for e in error.errors()
        ]
        raise RecipeError(f"{origin}: {len(lines)} wrong value(s):\n" + "\n".join(lines)) from None
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{origin}: a value is no plain data: {error}") from None


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """YAML 1.2 to plain data. Raises RecipeError for a syntax error or a duplicate key, with its line."""
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else "?"
        raise RecipeError(
            f"{origin}, line {line}: {str(error.problem).split(' with')[0]}; keep one of the two"
        ) from None
    except YAMLError as error:
        raise RecipeError(f"{origin}: not YAML 1.2: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(
            f"{origin}: a recipe is a mapping of sections, this is a {type(values).__name__}"
        )
    return values


def iter_keys(
    section: type[BaseModel] = Recipe, prefix: str = ""
) -> Iterator[tuple[str, Any, Any, str]]:
    """Every leaf key as (dotted name, type, default, description), in the order of the classes."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from iter_keys(field.annotation, f"{prefix}{name}.")
        else:
            default = None if field.default is PydanticUndefined else field.default
            yield prefix + name, field.annotation, default, field.description or ""


def parse_arguments(
    arguments: Sequence[str],
    description: str,
    default_recipe: Path,
    add_flags: Callable[[argparse.ArgumentParser], None] | None = None,
    actions: Collection[str] = (),
) -> tuple[Recipe, argparse.Namespace]:
    """Command line to (recipe, job flags): `[RECIPE.yaml] [WORD] [--section.key VALUE ...]`.

    words: what a job takes by name, such as `hold`; the one that was given, or None, is in the flags as `word`.

    Raises RecipeError for an unknown key, naming the nearest known ones; `--help` prints every key and exits 0.
    """
    parser = _build_parser(description)
    if add_flags is not None:
        add_flags(parser)
    # Intermixed: a word may stand behind the keys, apart from the recipe.
    known, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise RecipeError(_unknown_argument_message(unknown[0]))
    overrides = {}
    for name, annotation, _, _ in iter_keys():
        raw = getattr(known, name, None)
        if raw is not None:
            overrides[name] = _parse_value(raw, annotation, name)
    known.action = next((p for p in known.positional if p in actions), None)
    recipes = [p for p in known.positional if p != known.action]
    if len(recipes) > 1:
        named = f", and one of {', '.join(actions)}" if actions else ""
        raise RecipeError(
            f"{recipes[1]!r}: one recipe at most{named}; every value behind its --key"
        )
    if recipes and actions and not recipes[0].endswith((".yaml", ".yml")):
        raise RecipeError(
            f"{recipes[0]!r} is neither a recipe (.yaml) nor one of {', '.join(actions)}"
        )
    return load_recipe(recipes[0] if recipes else str(default_recipe), overrides), known


def option_name(key: str) -> str:
    """How a key is given on the command line: --section.key, and --top-level-key with dashes."""
    return f"--{key}" if "." in key else f"--{key.replace('_', '-')}"


def _build_parser(description: str) -> argparse.ArgumentParser:
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
        help="resolve the recipe, check the inputs, print the plan, stop",
    )
    for name, annotation, default, text in iter_keys():
        shown = _format_value(default).replace("%", "%%")
        parser.add_argument(
            option_name(name),
            dest=name,
            metavar=_metavar(annotation),
            help=f"{text.replace('%', '%%')} [{shown}]",
        )
    return parser


def _metavar(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    members = (
        [a for a in typing.get_args(annotation) if a is not types.NoneType]
        if isinstance(annotation, types.UnionType)
        else [annotation]
    )
    kind = typing.get_origin(members[0]) or members[0]
    kind = typing.get_args(members[0])[0] if kind is typing.Annotated else kind
    return {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false", tuple: "A,B"}.get(
        kind, "VALUE"
    )


def _parse_value(text: str, annotation: Any, key: str) -> Any:
    """A command-line value in the type of its key: lists split at commas, text as it is, everything else as a YAML scalar."""
    if typing.get_origin(annotation) is tuple:
        parts = [part for part in text.split(",") if part]
        return (
            parts
            if "str" in str(annotation)
            else [parse_yaml(f"value: {part}", f"--{key}")["value"] for part in parts]
        )
    if text == "null":
        return None
    if str(annotation).find("str") >= 0 or typing.get_origin(annotation) is Literal:
        return text
    return parse_yaml(f"value: {text}", f"--{key}")["value"]


def _unknown_argument_message(argument: str) -> str:
    if not argument.startswith("--"):
        return f"{argument!r}: one recipe at most, and every value behind its --key"
    name = argument[2:].split("=")[0]
    return f"--{name}: no such key{_suggest_nearest(name, [option_name(k)[2:] for k, *_ in iter_keys()], '--')}; --help lists every key"


def _reject_unknown_keys(
    values: Mapping[str, Any], section: type[BaseModel], prefix: str, origin: str
) -> None:
    for key, value in values.items():
        field = section.model_fields.get(str(key))
        if field is None:
            near = _suggest_nearest(str(key), list(section.model_fields), prefix)
            raise RecipeError(
                f"{origin}: no such key {prefix}{key}{near}; allowed: {', '.join(section.model_fields)}"
            )
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            if not isinstance(value, Mapping):
                raise RecipeError(
                    f"{origin}: {prefix}{key} is a section of keys, seen: {_format_value(value)}"
                )
            _reject_unknown_keys(value, field.annotation, f"{prefix}{key}.", origin)


def _suggest_nearest(name: str, known: list[str], prefix: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {prefix}{near[0]}?" if near else ""


def _set_key(values: dict[str, Any], dotted_key: str, value: Any) -> None:
    *sections, key = dotted_key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeError(
                f"--{dotted_key}: the recipe holds a value where the section {section} should be"
            )
    values[key] = value


def _format_value(value: Any) -> str:
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    return text if len(text) <= 80 else text[:77] + "..."
