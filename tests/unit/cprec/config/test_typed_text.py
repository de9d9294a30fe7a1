"""Values on the command line are read by the type of their key, whatever they look like."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from cluster.errors import RecipeError
from cprec.config.cli import Job, option_name, parse_arguments
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import iter_keys, load_recipe
from cprec.config.typed_text import metavar, parse_text

Name = Annotated[str, Field(max_length=100)]


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("null", str, "null"),
        ("null", str | None, None),
        ("null", Optional[Name], None),  # noqa: UP045 - what Annotated | None becomes
        ("null", tuple[str, ...], ["null"]),
        ("null", tuple[float, ...] | None, None),
        ("null", int, "null"),
        ("1e-4", float, 1e-4),
        ("1e-4", str, "1e-4"),
        ('"1e-4"', float, '"1e-4"'),
        ("01", int, 1),
        ("01", Name, "01"),
        ("01", tuple[Name, ...], ["01"]),
        ("true", bool, True),
        ("true", Name | None, "true"),
        ("yes", bool, "yes"),
        ("2024-01-01", Name, "2024-01-01"),
        ("2024-01-01", int, "2024-01-01"),
        ("[a, b]", tuple[Name, ...], ["a", "b"]),
        ('["a, b", 01, no, 2024-01-01]', list[str], ["a, b", "01", "no", "2024-01-01"]),
        ("s3://a/b,C:d e", tuple[str, ...], ["s3://a/b", "C:d e"]),
        ("1e-3,2", tuple[float, ...], [1e-3, 2]),
        ("[1e-3, 2]", tuple[float, ...], [1e-3, 2]),
        ("1,x", tuple[float, ...], [1, "x"]),
        ("1", Literal["auto", 1], 1),
        ("auto", Literal["auto", 1], "auto"),
        ("1", Literal["1", "2"], "1"),
        ("true", Literal["auto", True], True),
        ("red", Colour | None, "red"),
        ("3", int | str, 3),
        ("x", str | int, "x"),
        ("{a: 1, b: 2}", dict[str, int], {"a": 1, "b": 2}),
        ("{a: {b: 1e-1}, c: 2}", dict[str, dict[str, float]], {"a": {"b": 0.1}, "c": "2"}),
        ("{a: 01}", Mapping[str, str], {"a": "01"}),
        ("8: 9", int, "8: 9"),
        ("", int, ""),
    ],
)
def test_a_text_is_read_by_the_type_of_its_key(text: str, annotation: Any, value: Any) -> None:
    parsed = parse_text(text, annotation)
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.text())
def test_text_is_never_read_as_anything_else(text: str) -> None:
    assert parse_text(text, str) == text


@given(st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)))
def test_what_json_writes_is_read_back(value: float) -> None:
    text = TypeAdapter(type(value)).dump_json(value).decode()
    assert parse_text(text, type(value)) == value


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (Optional[Name], "TEXT"),  # noqa: UP045
        (int | None, "INT"),
        (tuple[Name, ...], "A,B"),
        (Literal["a", 1] | None, "a|1"),
        (Colour, "red"),
        (bool, "true|false"),
    ],
)
def test_help_shows_the_type(annotation: Any, shown: str) -> None:
    assert metavar(annotation) == shown


def resolve(tmp_path: Path, *arguments: str) -> Recipe:
    (tmp_path / "recipe.yaml").write_text("")
    job = Job(lambda recipe, options: None, "A job.", ())
    return parse_arguments(list(arguments), job, tmp_path / "recipe.yaml")[0]


def test_names_may_look_like_something_else(tmp_path: Path) -> None:
    odd = ["01", "1e-4", "true", "null", "2024-01-01", "0x10", "no"]
    recipe = resolve(tmp_path, "--data.domains", ",".join(odd), "--run", "null")
    assert recipe.data.domains == tuple(odd)
    assert recipe.run == "null"
    assert resolve(tmp_path, "--data.domains", str(odd)).data.domains == tuple(odd)
    for name in ("01", "2024-01-01", "true"):
        assert resolve(tmp_path, "--evaluate.domain", name).evaluate.domain == name
    assert resolve(tmp_path, "--evaluate.domain", "null").evaluate.domain is None


@pytest.mark.parametrize(
    ("key", "text"),
    [("seed", "2024-01-01"), ("seed", "null"), ("train.pack", "yes"), ("seed", '"1"')],
)
def test_what_does_not_fit_is_refused_as_it_was_written(
    tmp_path: Path, key: str, text: str
) -> None:
    with pytest.raises(RecipeError, match=rf"{key}: .*\(seen: {text}\)"):
        resolve(tmp_path, option_name(key), text)


def test_every_optional_key_can_be_set_to_null(tmp_path: Path) -> None:
    optional = [key for key in iter_keys() if type(None) in getattr(key.annotation, "__args__", ())]
    assert len(optional) > 10
    arguments = [part for key in optional for part in (option_name(key.name), "null")]
    flat = resolve(tmp_path, *arguments).model_dump()
    for key in optional:
        value: Any = flat
        for name in key.name.split("."):
            value = value[name]
        assert value is None, key.name


def test_a_date_in_a_file_is_named_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {domains: [A, 2024-01-01]}")
    with pytest.raises(
        RecipeError, match=r"data\.domains: YAML reads 2024-01-01 as a date.*quotes"
    ):
        load_recipe(str(path))
    path.write_text('data: {domains: [A, "2024-01-01"]}')
    assert load_recipe(str(path)).data.domains == ("A", "2024-01-01")
