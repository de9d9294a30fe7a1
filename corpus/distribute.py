"""The same samples as `corpus.make.here`, made on Ray Data: users are partitioned, made into samples, and shuffled to the files that they belong in.

Both ways share every function that decides anything, so they write the same files. The only file of this package that knows Ray.
"""

import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import ray
from ray.data import DataContext

from cluster import session
from corpus import kept
from corpus.coded import Coded
from corpus.delta import Written
from corpus.kept import KeptFile
from corpus.make import Made, by_name
from corpus.samples import at_most, samples_of
from corpus.sequences import Ints
from corpus.settings import DataSettings
from corpus.table import FileKey, by_file, file_count, write_samples

COUNTS = ""
"""In place of a file's key: the row tells counts."""


def make(found: Coded, items: Mapping[str, Ints], data: DataSettings, seed: int, uri: str) -> Made:
    """Make and write all samples on Ray; in the session that there is, else in one of its own."""
    with session.session("auto", os.cpu_count() or 1), _quiet():
        bounds, parts = at_most(found.sizes, data), kept.parts(found.new)
        blocks: list[Any] = [ray.put(block) for block in _blocks(found, parts)]  # one at a time in this process: by names they are large
        made = ray.data.from_arrow_refs(blocks).map_batches(_samples(items, data, seed, bounds, uri, parts), batch_size=None, batch_format="pyarrow")
        places = sum(map(file_count, bounds.values()))
        rows = made.groupby("file", num_partitions=places).map_groups(_write(uri), batch_format="pyarrow").take_all()
    told = [json.loads(row["told"]) for row in rows]
    files = [Written(**entry) for entry in told if "name" in entry]
    counts = next(entry for entry in told if "mixed_users" in entry)
    return Made(by_name(files), by_name([KeptFile(**entry) for entry in counts["kept"]]), counts["mixed_users"], Counter(counts["dropped"]))


def _blocks(found: Coded, parts: int) -> Iterator[pa.Table]:
    """The interactions of each range of users, by names; a task takes whole blocks."""
    for number in range(parts):
        if (part := found.part(number, parts)).rows.height:
            yield part.named().with_columns(partition=number).to_arrow()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data without its bars and its plan; the build says what it does itself."""
    context = DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before


def _samples(
    items: Mapping[str, Ints], data: DataSettings, seed: int, bounds: Mapping[tuple[str, str], int], uri: str, parts: int
) -> Callable[[pa.Table], pa.Table]:
    """A partition of users to rows of (file, payload): the samples that belong in a file, as Arrow IPC; and one row of counts.

    What is kept of the partition's interactions is a file of its own, and written here.

    One row for a whole table keeps the shuffle to a few large values instead of many small ones with lists in them.
    """

    def of_partition(block: pa.Table) -> pa.Table:
        samples = samples_of(Coded.of(pl.DataFrame(block)), items, data, seed)
        written = kept.write(uri, block["partition"][0].as_py(), parts, samples.kept)
        counts = {"mixed_users": samples.mixed_users, "dropped": samples.dropped, "kept": [asdict(written)] if written else []}
        rows = [(COUNTS, json.dumps(counts).encode())]
        rows += [(json.dumps(asdict(key)), _packed(table)) for key, table in by_file(samples.tables, bounds)]
        keys, payloads = zip(*rows, strict=True)
        return pa.table({"file": pa.array(keys, pa.string()), "payload": pa.array(payloads, pa.large_binary())})

    return of_partition


def _write(uri: str) -> Callable[[pa.Table], pa.Table]:
    """All rows of one file: write it, and tell what was written; of counts: tell their sum."""

    def of_file(block: pa.Table) -> pa.Table:
        key, payloads = block["file"][0].as_py(), block["payload"].to_pylist()
        if key == COUNTS:
            counts = [json.loads(payload) for payload in payloads]
            dropped = sum((Counter(entry["dropped"]) for entry in counts), Counter[str]())
            files = [file for entry in counts for file in entry["kept"]]
            told = {"mixed_users": sum(entry["mixed_users"] for entry in counts), "dropped": dropped, "kept": files}
        else:
            told = asdict(write_samples(uri, FileKey(**json.loads(key)), [_unpacked(payload) for payload in payloads]))
        return pa.table({"told": [json.dumps(told)]})

    return of_file


def _packed(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    return buffer.getvalue()


def _unpacked(payload: bytes) -> pa.Table:
    with pa.ipc.open_stream(payload) as stream:
        return stream.read_all()
