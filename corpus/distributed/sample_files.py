"""Samples of ranges of users, and the files that they are shuffled to, by Ray Data: what `corpus.local.sample_files` does in one process."""

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

from corpus.backend import UncommittedSamples
from corpus.distributed.tasks import Ref, get_results
from corpus.local import sample_files
from corpus.local.sample_files import sort_by_name
from corpus.sampling.encoded_interactions import EncodedInteractions
from corpus.sampling.samples import build_samples, max_sample_counts
from corpus.sampling.sequences import IntArray
from corpus.settings import DataSettings
from corpus.store import statistics, stored_interactions
from corpus.store.delta import WrittenFile
from corpus.store.statistics import NewCounts
from corpus.store.stored_interactions import InteractionFile
from corpus.store.tables import FileKey, file_count, split_by_file, write_samples

COUNTS_KEY = ""
"""In place of a file's key: the row tells counts."""
INTERACTIONS_KEY = "kept"
"""In a file's key: it is one of kept interactions, with this number."""


BlockStatistics = tuple[dict[str, tuple[int, int]], dict[tuple[str, str], int], pl.DataFrame]
"""`came`, `at_most` and `busiest` of some users."""


@dataclass(frozen=True)
class InteractionBlocks:
    """Interactions by names, of ranges of users, that samples are to be made of.

    refs: of those that have any; parts: ranges that the files of kept interactions are of; came, bounds: `statistics.came` and `at_most` over all.
    """

    refs: tuple[Ref, ...]
    interaction_file_count: int
    counts_by_domain: NewCounts
    sample_bounds: Mapping[tuple[str, str], int]

    def write_sample_files(
        self, item_indices: Mapping[str, IntArray], data: DataSettings, seed: int, uri: str
    ) -> UncommittedSamples:
        """Make and write all samples. As `corpus.local.sample_files.make`."""
        blocks = ray.data.from_arrow_refs(list(self.refs))
        made = blocks.map_batches(
            _block_processor(item_indices, data, seed, self.sample_bounds),
            batch_size=None,
            batch_format="pyarrow",
        )
        places = sum(map(file_count, self.sample_bounds.values())) + self.interaction_file_count
        rows = (
            made.groupby("file", num_partitions=places)
            .map_groups(_file_writer(uri, self.interaction_file_count), batch_format="pyarrow")
            .take_all()
        )
        entries = [json.loads(row["result"]) for row in rows]
        files = [WrittenFile(**entry) for entry in entries if "partition" in entry]
        of_kept = [InteractionFile(**entry) for entry in entries if "of" in entry]
        counts = next(entry for entry in entries if "mixed_users" in entry)
        return UncommittedSamples(
            sort_by_name(files),
            sort_by_name(of_kept),
            counts["mixed_users"],
            Counter(counts["dropped"]),
        )


def build_block(
    interactions: EncodedInteractions,
    file_number: int,
    item_counts: Mapping[str, int],
    data: DataSettings,
) -> tuple[pa.Table, BlockStatistics]:
    """The interactions of a range of users, by names, which a task takes as a whole; and what is counted of them.

    number: of the file that keeps the new ones, which may be those of several blocks; sizes: items of each domain.
    """
    busiest = sample_files.find_busiest_users(interactions, item_counts, data.num_candidates - 1)
    return interactions.to_frame().with_columns(partition=file_number).to_arrow(), (
        statistics.count_new_by_domain(interactions.user_domain_counts),
        max_sample_counts(interactions.user_domain_counts, data),
        busiest,
    )


def collect_blocks(
    blocks: Sequence[tuple[Ref, Ref]],
    interaction_file_count: int,
    item_counts: Mapping[str, int],
    negatives: int,
) -> InteractionBlocks:
    """Refs of what `block` gives, and what is counted over all.

    parts: as in Blocks; sizes: items of each domain; wanted: negatives. Raises DataError where a user leaves too few items for them.
    """
    found = get_results([of for _, of in blocks])
    sample_files.check_enough_negatives(
        sample_files.select_busiest_per_domain(pl.concat([busiest for _, _, busiest in found])),
        item_counts,
        negatives,
    )
    came, bounds = dict[str, tuple[int, int]](), Counter[tuple[str, str]]()
    for of_domains, of_sources, _ in found:
        bounds.update(of_sources)
        for name, (rows, users) in of_domains.items():
            before = came.get(name, (0, 0))
            came[name] = before[0] + rows, before[1] + users
    return InteractionBlocks(
        tuple(ref for (ref, _), (there, _, _) in zip(blocks, found, strict=True) if there),
        interaction_file_count,
        came,
        bounds,
    )


def _block_processor(
    item_indices: Mapping[str, IntArray],
    data: DataSettings,
    seed: int,
    sample_bounds: Mapping[tuple[str, str], int],
) -> Callable[[pa.Table], Iterator[pa.Table]]:
    """A block to rows of (file, payload): the samples, or the kept interactions, that belong in a file, as Arrow IPC; and one row of counts.

    One row for a whole table keeps the shuffle to a few large values instead of many small ones with lists in them. They are told one by one, so that
    few are held at a time.
    """

    def process_block(block: pa.Table) -> Iterator[pa.Table]:
        samples = build_samples(
            EncodedInteractions.from_frame(pl.DataFrame(block)), item_indices, data, seed
        )
        yield _shuffle_row(
            COUNTS_KEY,
            json.dumps({"mixed_users": samples.mixed_users, "dropped": samples.dropped}).encode(),
        )
        yield _shuffle_row(
            json.dumps({INTERACTIONS_KEY: block["partition"][0].as_py()}),
            _to_ipc(samples.new_interactions),
        )
        for key, table in split_by_file(samples.tables, sample_bounds):
            yield _shuffle_row(json.dumps(asdict(key)), _to_ipc(table))

    return process_block


def _file_writer(uri: str, interaction_file_count: int) -> Callable[[pa.Table], pa.Table]:
    """All rows of one file: write it, and tell what was written; of counts: tell their sum."""

    def write_file(block: pa.Table) -> pa.Table:
        key, payloads = block["file"][0].as_py(), block["payload"].to_pylist()
        if key == COUNTS_KEY:
            counts = [json.loads(payload) for payload in payloads]
            dropped = sum((Counter(entry["dropped"]) for entry in counts), Counter[str]())
            return _result_row(
                {"mixed_users": sum(entry["mixed_users"] for entry in counts), "dropped": dropped}
            )
        of, tables = json.loads(key), [_from_ipc(payload) for payload in payloads]
        if INTERACTIONS_KEY not in of:
            return _result_row(asdict(write_samples(uri, FileKey(**of), tables)))
        # Each table is of a range of hashes, and in their order.
        rows = pa.concat_tables(sorted(tables, key=lambda table: table["user_hash"][0].as_py()))
        return _result_row(
            asdict(
                stored_interactions.write_interactions(
                    uri, of[INTERACTIONS_KEY], interaction_file_count, rows.combine_chunks()
                )
            )
        )

    return write_file


def _result_row(result: dict[str, Any]) -> pa.Table:
    return pa.table({"result": [json.dumps(result)]})


def _shuffle_row(key: str, payload: bytes) -> pa.Table:
    return pa.table(
        {"file": pa.array([key], pa.string()), "payload": pa.array([payload], pa.large_binary())}
    )


def _to_ipc(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    return buffer.getvalue()


def _from_ipc(payload: bytes) -> pa.Table:
    with pa.ipc.open_stream(payload) as stream:
        return stream.read_all()
