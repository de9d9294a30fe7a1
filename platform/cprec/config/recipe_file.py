"""Recipe files: YAML to a checked `Recipe`, and back.

A recipe file is YAML 1.2 and names only the keys that differ from their defaults. Keys may have the
names of earlier releases (`RENAMED_KEYS`).
"""

import difflib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple, TypeGuard

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from cluster.console import Say
from cluster.errors import RecipeError
from cprec.config.recipe import RENAMED_KEYS, Recipe
from cprec.config.secrets import redact

MAX_VALUES = 10_000
"""Values of a recipe file, at most. There are fewer than 200 keys, and some take a list."""


class RecipeKey(NamedTuple):
    """One key of the recipe.

    Attributes:
        name: Dotted name, such as `train.global_batch`.
        annotation: Type of its value.
        default: Value where a recipe does not name it.
        description: One sentence for `--help`.
    """

    name: str
    annotation: Any
    default: Any
    description: str


def iter_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[RecipeKey]:
    """Yields every key below a section, in the order of the classes.

    Args:
        section: Class of the section; by default the whole recipe.
        prefix: Dotted name of the section with a dot at its end; empty for the whole recipe.
    """
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            yield from iter_keys(field.annotation, f"{prefix}{name}.")
        else:
            default = None if field.default is PydanticUndefined else field.default
            yield RecipeKey(prefix + name, field.annotation, default, field.description or "")


def load_recipe(
    path: str | None,
    overrides: Mapping[str, Any] | None = None,
    say: Say | None = None,
    arguments: str = "the command line",
) -> Recipe:
    """Reads a recipe file and applies overrides.

    Args:
        path: Path or URI of the file; None for the defaults alone.
        overrides: Values by dotted name, such as {"train.global_batch": 64}. They win.
        say: Takes one line for each key in the file that was renamed. None for the files of a run,
            which nobody is going to edit.
        arguments: Where the overrides are from, for messages.

    Raises:
        RecipeError: The file is not YAML, or a key or value is wrong. The message names the key,
            the value seen and what is allowed.
    """
    values = parse_yaml(_read_recipe(path), path) if path is not None else {}
    values = rename_old_keys(values, path or "", say)
    origin = path or arguments
    if path is not None and overrides:
        _reject_unknown_keys(values, Recipe, "", path)
        origin = f"{path} and {arguments}"
    for name, value in (overrides or {}).items():
        _set_key(values, name, value)
    return validate_recipe(values, origin)


def rename_old_keys(
    values: Mapping[str, Any], origin: str, say: Say | None = None
) -> dict[str, Any]:
    """Returns nested keys with the names of earlier releases replaced by the present ones.

    Args:
        values: Sections of keys, as in a recipe file; they stay as they are.
        origin: Where the values are from, for messages.
        say: Takes one line for each key that was renamed.

    Raises:
        RecipeError: A key is there under both names.
    """
    renamed = {name: _copy_section(value) for name, value in values.items()}
    for old, new in RENAMED_KEYS.items():
        section, old_key = old.split(".")
        keys = renamed.get(section)
        if not isinstance(keys, dict) or old_key not in keys:
            continue
        new_key = new.split(".")[1]
        if new_key in keys:
            raise RecipeError(
                f"{origin}: {old} is now called {new}, and both are given; keep {new}"
            )
        keys[new_key] = keys.pop(old_key)
        if say is not None:
            say(f"{origin}: {old} is now called {new}")
    return renamed


def restore_old_keys(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a section with renamed keys under their old names.

    For digests on storage, which must stay what they were before a key was renamed.
    """
    old_names = {new: old for old, new in RENAMED_KEYS.items()}
    return {
        old_names.get(f"{section}.{key}", key).removeprefix(f"{section}."): value
        for key, value in values.items()
    }


def to_yaml(recipe: Recipe) -> str:
    """Returns a recipe as YAML with every key written out.

    `load_recipe` reads it back to an equal recipe.
    """
    stream = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(json.loads(recipe.model_dump_json()), stream)
    return stream.getvalue()


def validate_recipe(values: Mapping[str, Any], origin: str) -> Recipe:
    """Checks plain data and returns it as a recipe.

    Args:
        values: Nested mappings of keys, as in a recipe file.
        origin: Where the values are from, for messages.

    Raises:
        RecipeError: There is an unknown key, or values are wrong; then all of them are listed.
    """
    _reject_unknown_keys(values, Recipe, "", origin)
    _reject_dates(values, "", origin)
    try:
        # JSON mode: strict numbers, yet lists are accepted for tuples.
        return Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        lines = [_describe_problem(problem) for problem in error.errors()]
        raise RecipeError(f"{origin}: {len(lines)} wrong value(s):\n" + "\n".join(lines)) from None
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{origin}: a value has a type that no key takes: {error}") from None


def _describe_problem(problem: ErrorDetails) -> str:
    """Returns a line about a wrong value; a rule of ours over a whole section says what it saw."""
    name = ".".join(map(str, problem["loc"])) or "recipe"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):
        return f"  {name}: {message}"
    return f"  {name}: {message} (seen: {format_value(problem['input'])})"


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """Parses YAML 1.2 to plain data; an empty text gives no keys.

    Args:
        text: The YAML.
        origin: Where it is from, for messages.

    Raises:
        RecipeError: It is not YAML 1.2, has a duplicate key, or is not a mapping. Or it is nested
            too deeply, or its aliases (`*name`) stand for themselves or for too many values.
    """
    try:
        values = YAML(typ="safe", pure=True).load(text)
        _reject_aliases_that_multiply(values, origin)
    except DuplicateKeyError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else "?"
        problem = str(error.problem).split(" with")[0]
        raise RecipeError(f"{origin}, line {line}: {problem}; keep one of the two") from None
    except RecursionError:
        raise RecipeError(f"{origin}: not a recipe: nested without an end") from None
    except MarkedYAMLError as error:
        # Not the whole message, which repeats the line: there may be a secret in it.
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        hint = "; indent with spaces" if "'\\t'" in str(error.problem) else ""
        raise RecipeError(f"{origin}{place}: not YAML 1.2: {error.problem}{hint}") from None
    except (YAMLError, ValueError) as error:  # ValueError: a date that no calendar has, and alike
        raise RecipeError(f"{origin}: not YAML 1.2: {redact(str(error))}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(
            f"{origin}: a recipe is a mapping of sections, this is a {type(values).__name__}"
        )
    return values


def _reject_aliases_that_multiply(values: Any, origin: str) -> None:
    """Checks that aliases (`*name`) do not make a short file into very many values.

    Raises:
        RecipeError: There are more than MAX_VALUES, or an alias is part of what it stands for.
    """
    counts: dict[int, int] = {}
    open_ids: set[int] = set()

    def count(value: Any) -> int:
        if not isinstance(value, dict | list):
            return 1
        if id(value) in open_ids:
            raise RecipeError(f"{origin}: an alias (*name) is part of what it stands for")
        if id(value) not in counts:
            open_ids.add(id(value))
            nested = value.values() if isinstance(value, dict) else value
            counts[id(value)] = 1 + sum(map(count, nested))
            open_ids.discard(id(value))
        return counts[id(value)]

    if (total := count(values)) > MAX_VALUES:
        raise RecipeError(
            f"{origin}: {total:,} values, aliases (*name) followed; a recipe has at most "
            f"{MAX_VALUES:,}"
        )


def suggest_nearest(name: str, known: Sequence[str], prefix: str) -> str:
    """Returns ", did you mean PREFIX+NAME?" with the nearest known name, or nothing."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {prefix}{nearest[0]}?" if nearest else ""


def format_value(value: Any) -> str:
    """Returns a value for a message: as JSON, text as it is, without secrets, not too long."""
    text = redact(json.dumps(value, default=str) if not isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _read_recipe(path: str) -> str:
    """Reads a recipe file; raises RecipeError if it is not UTF-8 text."""
    # Imported late: the clients of object stores, for which --help need not wait.
    from cluster.storage import read_text

    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def _copy_section(value: Any) -> Any:
    """Copies the keys of a section; the value of a top-level key stays as it is."""
    return dict(value) if isinstance(value, Mapping) else value


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _reject_unknown_keys(
    values: Mapping[str, Any], section: type[BaseModel], prefix: str, origin: str
) -> None:
    """Checks that the keys given for a section exist, in the sections inside it too.

    Args:
        values: The given keys and their values.
        section: The model whose fields are the keys that exist.
        prefix: Dotted name of the section, for the message: empty, or with a dot at its end.
        origin: Where the values are from, for the message.

    Raises:
        RecipeError: A key is unknown, or the value of a section is no mapping. For an unknown key
            the message lists the known ones, and suggests one that is spelled alike, if any.
    """
    for key, value in values.items():
        field = section.model_fields.get(str(key))
        if field is None:
            known = list(section.model_fields)
            raise RecipeError(
                f"{origin}: no such key {prefix}{key}{suggest_nearest(str(key), known, prefix)}; "
                f"allowed: {', '.join(known)}"
            )
        if _is_section(field.annotation):
            if not isinstance(value, Mapping):
                raise RecipeError(
                    f"{origin}: {prefix}{key} is a section of keys, seen: {format_value(value)}"
                )
            _reject_unknown_keys(value, field.annotation, f"{prefix}{key}.", origin)


def _reject_dates(value: Any, name: str, origin: str) -> None:
    """Raises RecipeError for a date or a time, as which YAML reads text of that form.

    Args:
        value: A value of a recipe, or nested ones.
        name: Dotted name of its key.
        origin: Where it is from, for the message.
    """
    if isinstance(value, Mapping):
        for key, nested in value.items():
            _reject_dates(nested, f"{name}.{key}".lstrip("."), origin)
    elif isinstance(value, list):
        for nested in value:
            _reject_dates(nested, name, origin)
    elif isinstance(value, date):
        raise RecipeError(
            f"{origin}: {name}: YAML reads {value} as a date, and no key takes one; "
            "put text into quotes"
        )


def _set_key(values: dict[str, Any], name: str, value: Any) -> None:
    """Sets the value of a dotted name in nested mappings."""
    *sections, key = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeError(
                f"--{name}: the recipe holds a value where the section {section} should be"
            )
    values[key] = value
