"""Samples of ranges of users, and the files that they are shuffled to, by Ray Data: what `corpus.local.make_samples` does in one process."""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import ray

from corpus.distributed.tasks import Ref, told
from corpus.local import make_samples
from corpus.local.make_samples import Made, by_name
from corpus.sampling.encoded_interactions import Coded
from corpus.sampling.samples import at_most, samples_of
from corpus.sampling.sequences import Ints
from corpus.settings import DataSettings
from corpus.store import statistics, stored_interactions
from corpus.store.delta import Written
from corpus.store.statistics import Came
from corpus.store.stored_interactions import KeptFile
from corpus.store.tables import FileKey, by_file, file_count, write_samples

COUNTS = ""
"""In place of a file's key: the row tells counts."""
KEPT = "kept"
"""In a file's key: it is one of kept interactions, with this number."""


Counted = tuple[dict[str, tuple[int, int]], dict[tuple[str, str], int], pl.DataFrame]
"""`came`, `at_most` and `busiest` of some users."""


@dataclass(frozen=True)
class Blocks:
    """Interactions by names, of ranges of users, that samples are to be made of.

    refs: of those that have any; parts: ranges that the files of kept interactions are of; came, bounds: `statistics.came` and `at_most` over all.
    """

    refs: tuple[Ref, ...]
    parts: int
    came: Came
    bounds: Mapping[tuple[str, str], int]

    def make(self, items: Mapping[str, Ints], data: DataSettings, seed: int, uri: str) -> Made:
        """Make and write all samples. As `corpus.local.make_samples.make`."""
        blocks = ray.data.from_arrow_refs(list(self.refs))
        made = blocks.map_batches(
            _samples(items, data, seed, self.bounds), batch_size=None, batch_format="pyarrow"
        )
        places = sum(map(file_count, self.bounds.values())) + self.parts
        rows = (
            made.groupby("file", num_partitions=places)
            .map_groups(_write(uri, self.parts), batch_format="pyarrow")
            .take_all()
        )
        entries = [json.loads(row["told"]) for row in rows]
        files = [Written(**entry) for entry in entries if "partition" in entry]
        of_kept = [KeptFile(**entry) for entry in entries if "of" in entry]
        counts = next(entry for entry in entries if "mixed_users" in entry)
        return Made(
            by_name(files), by_name(of_kept), counts["mixed_users"], Counter(counts["dropped"])
        )


def block(
    found: Coded, number: int, sizes: Mapping[str, int], data: DataSettings
) -> tuple[pa.Table, Counted]:
    """The interactions of a range of users, by names, which a task takes as a whole; and what is counted of them.

    number: of the file that keeps the new ones, which may be those of several blocks; sizes: items of each domain.
    """
    busiest = make_samples.busiest(found, sizes, data.num_candidates - 1)
    return found.named().with_columns(partition=number).to_arrow(), (
        statistics.came(found.sizes),
        at_most(found.sizes, data),
        busiest,
    )


def counted(
    blocks: Sequence[tuple[Ref, Ref]], parts: int, sizes: Mapping[str, int], wanted: int
) -> Blocks:
    """Refs of what `block` gives, and what is counted over all.

    parts: as in Blocks; sizes: items of each domain; wanted: negatives. Raises DataError where a user leaves too few items for them.
    """
    found = told([of for _, of in blocks])
    make_samples.check_negatives(
        make_samples.most(pl.concat([busiest for _, _, busiest in found])), sizes, wanted
    )
    came, bounds = dict[str, tuple[int, int]](), Counter[tuple[str, str]]()
    for of_domains, of_sources, _ in found:
        bounds.update(of_sources)
        for name, (rows, users) in of_domains.items():
            before = came.get(name, (0, 0))
            came[name] = before[0] + rows, before[1] + users
    return Blocks(
        tuple(ref for (ref, _), (there, _, _) in zip(blocks, found, strict=True) if there),
        parts,
        came,
        bounds,
    )


def _samples(
    items: Mapping[str, Ints], data: DataSettings, seed: int, bounds: Mapping[tuple[str, str], int]
) -> Callable[[pa.Table], Iterator[pa.Table]]:
    """A block to rows of (file, payload): the samples, or the kept interactions, that belong in a file, as Arrow IPC; and one row of counts.

    One row for a whole table keeps the shuffle to a few large values instead of many small ones with lists in them. They are told one by one, so that
    few are held at a time.
    """

    def of_partition(block: pa.Table) -> Iterator[pa.Table]:
        samples = samples_of(Coded.of(pl.DataFrame(block)), items, data, seed)
        yield _row(
            COUNTS,
            json.dumps({"mixed_users": samples.mixed_users, "dropped": samples.dropped}).encode(),
        )
        yield _row(json.dumps({KEPT: block["partition"][0].as_py()}), _packed(samples.kept))
        for key, table in by_file(samples.tables, bounds):
            yield _row(json.dumps(asdict(key)), _packed(table))

    return of_partition


def _write(uri: str, parts: int) -> Callable[[pa.Table], pa.Table]:
    """All rows of one file: write it, and tell what was written; of counts: tell their sum."""

    def of_file(block: pa.Table) -> pa.Table:
        key, payloads = block["file"][0].as_py(), block["payload"].to_pylist()
        if key == COUNTS:
            counts = [json.loads(payload) for payload in payloads]
            dropped = sum((Counter(entry["dropped"]) for entry in counts), Counter[str]())
            return _told(
                {"mixed_users": sum(entry["mixed_users"] for entry in counts), "dropped": dropped}
            )
        of, tables = json.loads(key), [_unpacked(payload) for payload in payloads]
        if KEPT not in of:
            return _told(asdict(write_samples(uri, FileKey(**of), tables)))
        # Each table is of a range of hashes, and in their order.
        rows = pa.concat_tables(sorted(tables, key=lambda table: table["user_hash"][0].as_py()))
        return _told(asdict(stored_interactions.write(uri, of[KEPT], parts, rows.combine_chunks())))

    return of_file


def _told(of: dict[str, Any]) -> pa.Table:
    return pa.table({"told": [json.dumps(of)]})


def _row(key: str, payload: bytes) -> pa.Table:
    return pa.table(
        {"file": pa.array([key], pa.string()), "payload": pa.array([payload], pa.large_binary())}
    )


def _packed(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    return buffer.getvalue()


def _unpacked(payload: bytes) -> pa.Table:
    with pa.ipc.open_stream(payload) as stream:
        return stream.read_all()
