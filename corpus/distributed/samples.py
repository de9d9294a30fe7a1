"""Samples of ranges of users, and the files that they are shuffled to, by Ray Data: what `corpus.make` does in one process."""

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import ray

from corpus import kept
from corpus.coded import Coded
from corpus.delta import Written
from corpus.distributed.tasks import Ref
from corpus.kept import KeptFile
from corpus.make import Made, by_name
from corpus.samples import at_most, samples_of
from corpus.sequences import Ints
from corpus.settings import DataSettings
from corpus.table import FileKey, by_file, file_count, write_samples

COUNTS = ""
"""In place of a file's key: the row tells counts."""


def make_coded(found: Coded, items: Mapping[str, Ints], data: DataSettings, seed: int, uri: str) -> Made:
    """Make and write all samples of interactions that this process holds. As `corpus.make.make`."""
    parts = kept.parts(found.new)
    blocks = [ray.put(block(found.part(number, parts), number)) for number in range(parts)]  # one at a time: by names they are large
    return make_blocks(blocks, parts, items, at_most(found.sizes, data), data, seed, uri)


def make_blocks(
    blocks: Sequence[Ref], parts: int, items: Mapping[str, Ints], bounds: Mapping[tuple[str, str], int], data: DataSettings, seed: int, uri: str
) -> Made:
    """Make and write all samples. blocks: refs of what `block` gives, of so many ranges of users; bounds: `at_most` over all."""
    made = ray.data.from_arrow_refs(list(blocks)).map_batches(
        _samples(items, data, seed, bounds, uri, parts), batch_size=None, batch_format="pyarrow"
    )
    places = sum(map(file_count, bounds.values()))
    rows = made.groupby("file", num_partitions=places).map_groups(_write(uri), batch_format="pyarrow").take_all()
    told = [json.loads(row["told"]) for row in rows]
    files = [Written(**entry) for entry in told if "name" in entry]
    counts = next(entry for entry in told if "mixed_users" in entry)
    return Made(by_name(files), by_name([KeptFile(**entry) for entry in counts["kept"]]), counts["mixed_users"], Counter(counts["dropped"]))


def block(found: Coded, number: int) -> pa.Table:
    """The interactions of the number-th range of users, by names; a task takes whole blocks."""
    return found.named().with_columns(partition=number).to_arrow()


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
