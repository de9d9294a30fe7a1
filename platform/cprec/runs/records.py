"""The records that a run leaves on storage, one class per JSON object. Pure.

Events are in `cprec.runs.events`. docs/reference/file-formats.md is made from all these classes.
A reader ignores fields that it does not know, and fills those that earlier releases did not write.
"""

import time
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from cprec.schedule.wsa import Phase

PLAN_FILE = "plan.json"
TRACE_FILE = "trace.jsonl"
EVENTS_FILE = "events.jsonl"
STATUS_FILE = "status.json"
AUDIT_FILE = "audit.json"
RECIPE_FILE = "resolved.yaml"
REPORT_FILE = "report.html"
BASE_FILE = "base.json"
EVALUATION_FOLDER = "evaluation"

SINCE_0_2: JsonDict = {"since": "0.2.0"}
"""Marks a field that release 0.1.0 did not write."""

SINCE_0_3: JsonDict = {"since": "0.3.0"}
"""Marks a field that release 0.2.0 did not write."""


def run_folder(storage: str, run: str) -> str:
    """Returns the folder (URI) of a run below a storage."""
    return f"{storage.rstrip('/')}/{run}"


class Record(BaseModel):
    """An immutable JSON object with named fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads a record from plain data.

        Raises:
            ValueError: A field is missing or has another type.
        """
        return cls.model_validate(values)

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain data, without the fields that have no value."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class TraceRow(Record):
    """One optimizer step: an object of trace.jsonl."""

    lease: int | None = Field(
        None,
        description="number of the lease under which the row was written",
        json_schema_extra=SINCE_0_3,
    )
    step: int = Field(description="number of the step, from 0")
    samples: int = Field(description="samples seen before the step")
    batch_samples: int = Field(description="samples of the step, over all workers")
    phase: Phase = Field(description="phase of the schedule")
    lr: float = Field(description="learning rate")
    loss: float = Field(description="mean loss per supervised token (nats)")
    grad_norm: float | None = Field(None, description="gradient norm before clipping")
    supervised_tokens: int = Field(description="tokens that count in the loss")
    tokens: int = Field(description="tokens of all prompts and answers")
    dropped_titles: int = Field(
        0,
        description="titles of histories, the oldest, that did not fit into model.max_tokens",
        json_schema_extra=SINCE_0_2,
    )
    computed_tokens: int | None = Field(
        None,
        description="tokens of samples that were computed; "
        "fewer than tokens where samples share some",
        json_schema_extra=SINCE_0_2,
    )
    filled_tokens: int = Field(
        0,
        description="tokens that were computed beside them, to fill rows",
        json_schema_extra=SINCE_0_3,
    )
    imbalance: float = Field(
        0.0,
        description="by how much the fullest worker exceeds the mean (fraction of the mean)",
        json_schema_extra=SINCE_0_2,
    )
    tflops: float = Field(
        0.0, description="TFLOP/s of the step, over all workers", json_schema_extra=SINCE_0_2
    )
    memory_gb: float = Field(
        0.0, description="peak memory of the first worker so far (GB)", json_schema_extra=SINCE_0_2
    )
    planned_memory_gb: float | None = Field(
        None,
        description="what the estimate gives for the longest passes of that worker so far (GB); "
        "none on a CPU",
        json_schema_extra=SINCE_0_3,
    )
    compiled_graphs: int = Field(
        0,
        description="graphs that the first worker has compiled so far (`train.compile`)",
        json_schema_extra=SINCE_0_3,
    )
    step_s: float = Field(description="duration of the step (s)")
    data_wait_s: float = Field(description="time the loop waited for data before the step (s)")
    held_s: float = Field(
        0.0,
        description="time the loop waited before that, because the stable phase was held open (s)",
        json_schema_extra=SINCE_0_3,
    )
    sources: dict[str, int] = Field(description="samples by source")
    objectives: dict[str, int] | None = Field(
        None,
        description="samples by objective, without windows of text; none where all have the next "
        "item (`schedule.objectives`)",
        json_schema_extra=SINCE_0_3,
    )
    ids_digest: str = Field(
        description="sum modulo 2^64 of the sample ids of the step (16 hex digits)"
    )
    planned: int = Field(
        0,
        description="samples of the plan (A) when the step was issued",
        json_schema_extra=SINCE_0_2,
    )

    @property
    def end(self) -> int:
        """Samples seen after the step."""
        return self.samples + self.batch_samples


class Owner(Record):
    """The driver process that trains a run."""

    host: str = Field(description="host name")
    pid: int = Field(description="process id on that host")
    token: str = Field(description="random text that tells two processes of one id apart")


class LeaseRecord(Record):
    """Who trains a run: leases/<number>.json, renewed every few seconds by the driver."""

    number: int = Field(description="number of the lease; the highest holds the run")
    owner: Owner = Field(description="driver that holds it")
    time: float = Field(
        default_factory=time.time, description="when it was renewed last (Unix seconds)"
    )
    run: str = Field(description="name of the run")
    corpus: str = Field(description="URI of the corpus")
    ended: bool = Field(False, description="whether the driver ended by itself")


class Attempt(Record):
    """One start of the worker group: attempts/<number>.json, which is never changed."""

    number: int = Field(description="number of the attempt; checkpoints carry it")
    lease: int = Field(description="number of the lease under which it began")
    owner: Owner = Field(description="driver that holds the lease")
    time: float = Field(default_factory=time.time, description="when it began (Unix seconds)")
    samples: int = Field(description="samples that were trained already")
    checkpoint: str | None = Field(None, description="checkpoint that it went on from")
    workers: int = Field(description="number of workers")


class Status(Record):
    """How a run stands: status.json, rewritten every few seconds while the run is under way."""

    time: float = Field(default_factory=time.time, description="when it was written (Unix seconds)")
    owner: Owner = Field(description="driver that wrote it")
    lease: int = Field(
        0,
        description="number of the lease under which it was written",
        json_schema_extra=SINCE_0_3,
    )
    answers: dict[str, str] = Field(
        default_factory=dict, description="latest answers by request id"
    )
    refused: list[str] = Field(
        default_factory=list,
        description="ids of the requests among them that were refused",
        json_schema_extra=SINCE_0_3,
    )
    run: str = Field(description="name of the run")
    state: Literal["starting", "training", "waiting", "ended"] = Field(
        description="what the run does (`starting` in files of earlier builds)"
    )
    waits_for: str | None = Field(
        None,
        description="what workers that wait are waiting for, for people",
        json_schema_extra=SINCE_0_3,
    )
    corpus: str | None = Field(None, description="URI of the corpus")
    corpus_version: int | None = Field(None, description="newest corpus version in the plan")
    phase: Phase | None = Field(None, description="phase of the schedule; absent before a start")
    samples: int = Field(0, description="samples seen")
    issued: int | None = Field(None, description="samples handed out to workers")
    warmup_end: int | None = Field(None, alias="W", description="end of warmup (samples)")
    stable_end: int | None = Field(None, alias="S", description="end of the stable phase (samples)")
    annealing_end: int | None = Field(None, alias="A", description="end of the plan (samples)")
    hold: bool = Field(False, description="whether the stable phase stays open when it runs dry")
    lr: float | None = Field(
        None,
        validation_alias=AliasChoices("lr", "rate"),
        description="learning rate of the next step (`rate` in files of earlier builds)",
        json_schema_extra=SINCE_0_2,
    )
    sources: dict[str, int] = Field(
        default_factory=dict, description="samples seen by source@version"
    )


class FileDigest(Record):
    """Size and digest of one file of a checkpoint."""

    size: int = Field(description="size (bytes)")
    sha256: str = Field(description="SHA-256 of the content (hex digits)")


class Manifest(Record):
    """Every file of a checkpoint: manifest.json, written last."""

    files: dict[str, FileDigest] = Field(description="files by path below the checkpoint")
    digest: str | None = Field(
        None, description="SHA-256 of the list itself (hex digits)", json_schema_extra=SINCE_0_3
    )
    lease: int | None = Field(
        None,
        description="number of the lease under which it was written",
        json_schema_extra=SINCE_0_3,
    )


class BaseRecord(Record):
    """The base of a run as it was found at the start: base.json."""

    base: str = Field(description="hub id, absolute directory or URI")
    revision: str | None = Field(
        None,
        description="hash of the commit of a hub id, or digests of the files: `files:<a>.<b>`",
    )
    files: dict[str, str] = Field(
        default_factory=dict,
        description="tag of each file by name: SHA-256 in a directory, ETag and size in a store",
    )


class AuditCounts(Record):
    """How often planned samples were trained."""

    planned: int = Field(description="samples of the plan")
    trained: int = Field(description="samples of all traced steps")
    missing: int = Field(description="planned samples that no traced step holds")
    repeated: int = Field(description="samples that a second traced step holds")


class ObjectiveCounts(Record):
    """Samples of one objective."""

    planned: int = Field(
        description="samples that seed, ids and recipe give it", json_schema_extra=SINCE_0_3
    )
    trained: int = Field(
        description="samples that were trained with it, by trace.jsonl",
        json_schema_extra=SINCE_0_3,
    )


class AuditReport(AuditCounts):
    """Whether every planned sample was trained exactly once: audit.json."""

    sources: dict[str, dict[str, AuditCounts]] = Field(
        description="the same counts by source and corpus version"
    )
    objectives: dict[str, ObjectiveCounts] | None = Field(
        None,
        description="samples by objective, over all traced steps; none where all have the next "
        "item. They differ only where the recipe was changed with --allow-change",
        json_schema_extra=SINCE_0_3,
    )
