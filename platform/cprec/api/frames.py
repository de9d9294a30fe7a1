"""Records of a run as polars frames, whose columns do not depend on what is in them."""

import json
from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

import polars as pl

from cprec.runs.events import Event
from cprec.runs.records import TraceRow

SOURCES = pl.List(pl.Struct({"source": pl.String, "count": pl.Int64}))
"""Type of the number of samples by source."""

OBJECTIVES = pl.List(pl.Struct({"objective": pl.String, "count": pl.Int64}))
"""Type of the number of samples by objective."""

EVENTS: dict[str, pl.DataType] = {
    "time": pl.Datetime("ms", "UTC"),
    "event": pl.String(),
    "samples": pl.Int64(),
    "details": pl.String(),
}
"""Columns of events."""


def _column_type(name: str, annotation: Any) -> pl.DataType:
    """Returns the type of the column of a field of a record."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is dict:
        return OBJECTIVES if name == "objectives" else SOURCES
    numbers: dict[Any, pl.DataType] = {int: pl.Int64(), float: pl.Float64()}
    return numbers.get(annotation, pl.String())


TRACE: dict[str, pl.DataType] = {
    name: _column_type(name, field.annotation)
    for name, field in TraceRow.model_fields.items()
    if name != "lease"
}
"""Columns of a trace: the fields of trace.jsonl, but the one that is of the run's own account."""


def trace_frame(steps: Sequence[TraceRow]) -> pl.DataFrame:
    """Returns one row per optimizer step."""
    rows = [step.model_dump(mode="json", include=set(TRACE)) for step in steps]
    for row in rows:
        for name, key in (("sources", "source"), ("objectives", "objective")):
            if row[name] is not None:
                row[name] = [{key: part, "count": n} for part, n in row[name].items()]
    return pl.DataFrame(rows, schema=TRACE)


def events_frame(events: Sequence[Event]) -> pl.DataFrame:
    """Returns one row per event; what only its kind has is JSON in `details`."""
    rows = [
        (round(event.time * 1000), event.event, event.samples, json.dumps(event.details()))
        for event in events
    ]
    return pl.DataFrame(rows, schema=EVENTS, orient="row")
