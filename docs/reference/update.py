#!/usr/bin/env python3
"""Writes the tables of file-formats.md and recipe-keys.md from the types that own the facts.

    python docs/reference/update.py            writes them
    python docs/reference/update.py --check    exits with 1 if a page is not up to date

A table stands between `<!-- fields: module:Class -->`, `<!-- columns: module:SCHEMA -->` or
`<!-- keys: section -->` and `<!-- end -->`.
"""

import argparse
import dataclasses
import difflib
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

import pyarrow as pa  # noqa: E402
from pydantic import BaseModel  # noqa: E402

from cprec.config.recipe import Recipe  # noqa: E402
from cprec.runs.events import Event  # noqa: E402

ANCHORS = {
    "Metrics": "modelmetricsjson",
    "TrialResult": "tunedjson",
    "VersionStatistics": "statisticsjson",
}
"""Headings of records that have a file of their own; others are named like the record."""

PAGES = ("file-formats.md", "recipe-keys.md")
FIRST_RELEASE = "0.1.0"

SINCE = {
    "VersionMetadata.feedback": "0.3.0",
    "RunPlan.prompt_template": "0.3.0",
    "SearchIdentity.prompt_template": "0.3.0",
    "FeedbackCounts": "0.3.0",
    "AnnealingCalled": "0.2.0",
    "Failed": "0.2.0",
    "PerplexityMeasured": "0.2.0",
    "BaseRecord": "0.3.0",
    "RecordDropped": "0.3.0",
    "RequestRefused": "0.3.0",
    "VersionAnnounced": "0.3.0",
    "StoredRequest.by": "0.3.0",
    "StorageFailed": "0.3.0",
    "WorkersFailed": "0.3.0",
    "PreemptionNoticed": "0.3.0",
    "SamplesPadded": "0.2.0",
    "Status": "0.2.0",
    "Owner": "0.2.0",
    "Era.replayed": "0.2.0",
    "Era.spread": "0.2.0",
    "Era.stop": "0.2.0",
    "Plan.inherited": "0.2.0",
    "Plan.mixed_ratio": "0.3.0",
    "LeaseRecord": "0.3.0",
    "Attempt": "0.3.0",
    "WSA.mode": "0.2.0",
    "RunPlan": "0.2.0",
    "RunPlan.token_form": "0.3.0",
    "RunPlan.lease": "0.3.0",
    "ComparisonRow.permutation_p": "0.2.0",
    "ComparisonRow.over_seeds": "0.2.0",
    "ComparisonRow.holm_p": "0.2.0",
    "ComparisonRow.perplexity": "0.2.0",
    "TrialResult": "0.2.0",
    "FitResult": "0.2.0",
    "Comparison.name": "0.3.0",
    "Comparison.time": "0.3.0",
    "Comparison.mode": "0.3.0",
    "Comparison.chance": "0.3.0",
    "Comparison.measure": "0.3.0",
    "CATALOGUE_SCHEMA": "0.3.0",
    "RANKING_SCHEMA": "0.3.0",
    "VECTOR_SCHEMA": "0.3.0",
    "KnownItems": "0.3.0",
    "QuarantinedRows": "0.2.0",
    "InteractionFile": "0.2.0",
    "STORED_INTERACTION_SCHEMA": "0.2.0",
    "SCHEMA.length_correlation": "0.3.0",
    "Metrics.recall": "0.3.0",
    "Metrics.length_correlation": "0.3.0",
    "StoredPerplexity": "0.2.0",
    "BatchSummary": "0.3.0",
    "BatchCounts": "0.3.0",
    "LastStart": "0.3.0",
    "EvaluatedModel": "0.3.0",
    "Rejected": "0.3.0",
    "SearchIdentity": "0.2.0",
    "SearchIdentity.base_revision": "0.3.0",
    "SearchIdentity.token_form": "0.3.0",
    "SearchIdentity.train": "0.3.0",
    "SearchSummary": "0.2.0",
    "SearchWinner": "0.2.0",
    "EpochResult": "0.2.0",
    "EpochResult.seconds": "0.3.0",
    "EpochResult.tokens": "0.3.0",
    "EpochResult.memory_gb": "0.3.0",
    "StepResult": "0.3.0",
    "CorpusContent": "0.3.0",
    "DomainCounts": "0.3.0",
    "PretrainContent": "0.3.0",
    "Cost": "0.3.0",
    "TuneContent": "0.3.0",
    "TunedSeed": "0.3.0",
    "ScoreContent": "0.3.0",
    "Cell": "0.3.0",
    "StoredFit": "0.2.0",
    "StoredRequest": "0.2.0",
    "VersionStatistics.prompt_injections": "0.3.0",
    "VersionMetadata.rules": "0.2.0",
    "VersionMetadata.origin": "0.2.0",
    "VersionMetadata.quarantine": "0.2.0",
    "VersionMetadata.appended": "0.2.0",
    "VersionMetadata.text": "0.2.0",
    "VersionMetadata.item_runs": "0.2.0",
    "VersionMetadata.interactions": "0.2.0",
    "Origin": "0.2.0",
    "Origin.platform": "0.3.0",
}
"""Since when a class, a schema or one of its fields is written, where not since the first release.

Pydantic records say it of a field themselves (`json_schema_extra`).
"""

COLUMNS = {
    "sample_id": "hash of source, user and target: the bits of a uint64, as Delta has no unsigned "
    "integers",
    "source": "source of the sample; a partition of the table",
    "split": "train, validation or test; a partition of the table",
    "STORED_INTERACTION_SCHEMA.split": "0: train, 1: validation, 2: test",
    "domain": "domain of the target, or of the item",
    "user_id": "user, as in the raw data",
    "user_hash": "hash of user_id: the bits of a uint64; files and row groups are found by it",
    "history": "item indices, oldest first",
    "candidates": "item indices of the target and its negatives, shuffled once",
    "target": "position of the target in candidates",
    "timestamp": "time of the target or of the interaction (Unix seconds)",
    "item_index": "number of the item: dense, never changed or reused",
    "item_id": "item, as in the raw data",
    "title": "cleaned title, unique within its domain",
    "text": "window of plain text",
    "SCHEMA.text": "answer that was generated first; null for scored candidates",
    "history_length": "titles of the history",
    "rank": "rank of the target, from 1; the expected one for ties; absent where it was not named",
    "scores": "score of each candidate (log-probability); null for generated answers",
    "ranking": "item indices, best first",
    "texts": "every answer that was generated, in turn; null for scored candidates",
    "named_exact": "position of the candidate that the text equals; -1: none",
    "named_llara": "position of the one candidate that the text contains; -1: none",
    "target_item": "item index of the target",
    "retrieved_rank": "place of the target among the retrieved items, from 1; null: not retrieved, "
    "or the model scores every item",
    "better": "items that the model ranks above the target; null: it did not rank the target",
    "tied": "items that the model ranks as high as the target, itself included; null likewise",
    "items": "ids of the recommended items, best first; null where the input has titles",
    "titles": "their titles",
    "probabilities": "softmax of the scores over all candidates of the user, not only those shown; "
    "not calibrated",
    "model": "label of the model",
    "title_digest": "first 16 bytes of the title's SHA-256",
    "vector": "mean of the model's last hidden states over the title",
    "length_correlation": "rank correlation of the candidates' scores and title lengths; null for "
    "generated answers",
}
"""What the columns of Arrow schemas hold, by `column`, or `SCHEMA.column` where one differs."""


def load(reference: str) -> Any:
    """Imports `module:NAME`."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def type_name(annotation: Any) -> str:
    """Returns a type for people who do not read Python."""
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any"}
    names[Fraction] = "text (a fraction)"
    if annotation in names:
        return names[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Required, typing.NotRequired):
        return type_name(arguments[0])
    if origin is typing.Annotated:  # plain data of a record, which is named beside it
        is_record = isinstance(arguments[1], type | types.GenericAlias)
        return type_name(arguments[1 if is_record else 0])
    if origin in (typing.Union, types.UnionType):
        members = [a for a in arguments if a is not types.NoneType]
        optional = " or null" if len(members) < len(arguments) else ""
        return " or ".join(map(type_name, members)) + optional
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if isinstance(origin, type) and issubclass(origin, typing.Mapping):  # type: ignore[arg-type]
        return f"object: {type_name(arguments[0])} → {type_name(arguments[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {type_name(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{member.value}`" for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, str):
        return "text"
    name = annotation.__name__
    return f"[{name}](#{ANCHORS.get(name, name.lower())})"


def attribute_texts(cls: type) -> dict[str, str]:
    """Reads the `Attributes:` blocks of a class and those it extends: text by name."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        doc = inspect.cleandoc(base.__doc__ or "")
        if block := re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", doc, re.MULTILINE):
            texts |= re.findall(r"^    (\w+): ((?:.*)(?:\n        .*)*)", block[1], re.MULTILINE)
    return {
        name: re.sub(r"\s+", " ", text).rstrip(".").replace("None", "null")
        for name, text in texts.items()
    }


def field_rows(cls: Any) -> Iterator[tuple[str, str, str, str]]:
    """Yields (name, type, meaning, since) of every field of a record, dataclass or TypedDict.

    Raises:
        ValueError: A field has no description.
    """
    if isinstance(cls, type) and issubclass(cls, BaseModel):
        inherited = Event.model_fields if issubclass(cls, Event) and cls is not Event else {}
        for name, field in cls.model_fields.items():
            if name in inherited:
                continue
            extra = field.json_schema_extra
            since = SINCE.get(cls.__name__, FIRST_RELEASE)
            if isinstance(extra, dict):
                since = str(extra["since"])
            key = field.alias or name
            text = field.description or ""
            if not text:
                raise ValueError(f"{cls.__name__}.{name} has no description")
            yield key, type_name(field.annotation), text, since
        return
    texts, hints = attribute_texts(cls), typing.get_type_hints(cls, include_extras=True)
    names = hints if typing.is_typeddict(cls) else [f.name for f in dataclasses.fields(cls)]
    for name in names:
        if name not in texts:
            raise ValueError(f"{cls.__name__}: `Attributes:` does not describe {name}")
        since = SINCE.get(f"{cls.__name__}.{name}", SINCE.get(cls.__name__, FIRST_RELEASE))
        yield name, type_name(hints[name]), texts[name], since


def column_rows(name: str, schema: pa.Schema) -> Iterator[tuple[str, str, str, str]]:
    """Yields (name, type, meaning, since) of every column of an Arrow schema."""
    for field in schema:
        kind = str(field.type).replace("element: ", "").replace("item: ", "")
        own = f"{name}.{field.name}"
        text = COLUMNS.get(own) or COLUMNS[field.name]
        yield field.name, kind, text, SINCE.get(own, SINCE.get(name, FIRST_RELEASE))


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Renders a Markdown table; the first column is code."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for first, *rest in rows:
        cells = [f"`{first}`", *(cell.replace("|", "\\|") for cell in rest)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def key_rows(section: str) -> Iterator[tuple[str, str, str, str]]:
    """Yields (key, type, default, meaning) of a section of the recipe; `recipe`: the top level."""
    model: Any = Recipe if section == "recipe" else Recipe.model_fields[section].annotation
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        default = field.get_default(call_default_factory=True)
        shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
        shown = {"None": "null", "True": "true", "False": "false", "": "none"}.get(
            str(shown), shown
        )
        key = name if section == "recipe" else f"{section}.{name}"
        yield key, type_name(field.annotation), f"`{shown}`", field.description or ""


def block(kind: str, reference: str) -> str:
    """Renders the table that a marker asks for."""
    if kind == "fields":
        return table(("field", "type", "meaning", "since"), field_rows(load(reference)))
    if kind == "columns":
        name = reference.partition(":")[2]
        rows = column_rows(name, load(reference))
        return table(("column", "type", "meaning", "since"), rows)
    return table(("key", "type", "default", "meaning"), key_rows(reference))


def updated(text: str) -> str:
    """Returns a page with all its tables made anew."""
    marker = re.compile(r"(<!-- (fields|columns|keys): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return marker.sub(lambda m: f"{m[1]}{block(m[2], m[3])}\n{m[4]}", text)


def main() -> int:
    """Writes or checks all pages; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page differs")
    check = parser.parse_args().check
    code = 0
    for name in PAGES:
        page = HERE / name
        before = page.read_text(encoding="utf-8")
        after = updated(before)
        if before == after:
            continue
        if check:
            print(f"docs/reference/{name} is not up to date; run docs/reference/update.py")
            lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
            print("\n".join(list(lines)[:20]))
            code = 1
        else:
            page.write_text(after, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
