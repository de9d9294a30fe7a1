"""Reads the text of a value, as a command line gives it, by the type of its key.

Text stays as it is, whatever it looks like; choices are told apart by their names; numbers and
booleans are written as in a recipe file (YAML 1.2). A list is `a,b` or `[a, b]`, a mapping
`{a: 1, b: 2}`, whose values may be mappings too. Where a key takes text or a list, only `[a, b]`
is a list, whose items may be mappings. `null` means no value where the type allows none.

A text that does not fit its type is returned as it is, so that validation names what was seen.
"""

import types
import typing
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

NULL = "null"
"""How no value is written."""

METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false"}
"""How `--help` shows the value of a key, by its type."""


def parse_text(text: str, annotation: Any) -> Any:
    """Returns the value that a text stands for, as plain data.

    Args:
        text: The text.
        annotation: Type of the key.
    """
    members = _union_members(annotation)
    if text == NULL and types.NoneType in members:
        return None
    if str in members and not text.startswith("["):
        members = [member for member in members if _item_type(member) is None]
    values = (_parse_member(text, member) for member in members if member is not types.NoneType)
    # Of a union, the first member that the text fits: text fits everything, so it comes last.
    return next((value for value in values if value is not text), text)


def metavar(annotation: Any) -> str:
    """Returns how `--help` shows the value of a key: its choices, or the name of its type."""
    member = next(m for m in _union_members(annotation) if m is not types.NoneType)
    if (choices := _choices(member)) is not None:
        return "|".join(choices)
    if _item_type(member) is not None:
        return "A,B"
    return METAVARS.get(member, "VALUE")


def _union_members(annotation: Any) -> list[Any]:
    """Returns the types that a value may have, NoneType included, each without `Annotated`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _union_members(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return [member for argument in arguments for member in _union_members(argument)]
    return [annotation]


def _parse_member(text: str, member: Any) -> Any:
    """Returns the value of a text as one type that is no union; the text itself if it is none."""
    if (choices := _choices(member)) is not None:
        return choices.get(text, text)
    if (item_type := _item_type(member)) is not None:
        parts = _split_list(text)
        return [parse_text(p, item_type) if isinstance(p, str) else p for p in parts]
    if _is_kind(member, Mapping):
        return _parse_mapping(text, member)
    if _is_kind(member, str):
        return text
    return _parse_scalar(text)


def _choices(member: Any) -> dict[str, Any] | None:
    """Returns the values of a choice by how they are written; None for another type."""
    values: Sequence[Any] = ()
    if typing.get_origin(member) is Literal:
        values = typing.get_args(member)
    elif _is_kind(member, Enum):
        values = [choice.value for choice in member]
    return {_write(value): value for value in values} or None


def _write(value: Any) -> str:
    """Returns how a choice is written."""
    return str(value).lower() if isinstance(value, bool) else NULL if value is None else str(value)


def _item_type(member: Any) -> Any:
    """Returns the type of a list's items; None for another type."""
    if _is_kind(member, str) or not (_is_kind(member, Sequence) or _is_kind(member, Set)):
        return None
    return next(iter(typing.get_args(member)), str)


def _is_kind(member: Any, kind: type) -> bool:
    """Returns whether a type is a class of a kind, parameters aside."""
    origin = typing.get_origin(member) or member
    return isinstance(origin, type) and issubclass(origin, kind)


def _split_list(text: str) -> list[Any]:
    """Returns the items of a list: of `[a, b]`, where they may be quoted, or of `a,b`.

    They are text, or in brackets mappings and lists of texts.
    """
    if text.startswith("["):
        items = _load(text, "base")
        if isinstance(items, list):
            return items
    return [part for part in text.split(",") if part]


def _parse_mapping(text: str, member: Any) -> Any:
    """Returns the entries of `{a: 1, b: {c: 2}}`; the text itself if it is not a mapping."""
    entries = _load(text, "base")
    return _type_entries(entries, member) if isinstance(entries, dict) else text


def _type_entries(entries: Mapping[str, Any], member: Any) -> dict[str, Any]:
    """Returns the entries of a mapping by its type: texts, and mappings of texts, become values."""
    value_type = (typing.get_args(member) or (str, str))[1]

    def typed(value: Any) -> Any:
        if isinstance(value, dict):
            return _type_entries(value, value_type)
        return parse_text(value, value_type) if isinstance(value, str) else value

    return {key: typed(value) for key, value in entries.items()}


def _parse_scalar(text: str) -> Any:
    """Returns a number or a boolean, as YAML 1.2 writes it; the text itself if it is neither."""
    value = _load(text, "safe")
    return value if isinstance(value, bool | int | float) else text


def _load(text: str, kind: str) -> Any:
    """Loads YAML: `base` leaves every scalar text, `safe` reads it by its form."""
    try:
        return YAML(typ=kind, pure=True).load(text)
    except (YAMLError, ValueError):  # ValueError: a date that no calendar has
        return None
