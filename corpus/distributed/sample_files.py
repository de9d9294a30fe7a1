"""Makes the samples of a new version on Ray and writes its files.

Blocks of interactions, one for each range of users, are made into samples. Ray Data shuffles the
samples to the files that they belong in. It is the counterpart of `corpus.local.sample_files`.
"""

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
from corpus.local import negatives
from corpus.local.sample_files import sort_by_name
from corpus.sampling.encoded_interactions import EncodedInteractions
from corpus.sampling.samples import build_samples, max_sample_counts
from corpus.sampling.sequences import IntArray
from corpus.settings import DataSettings
from corpus.store import stored_interactions
from corpus.store.delta import WrittenFile
from corpus.store.statistics import NewCounts
from corpus.store.stored_interactions import InteractionFile
from corpus.store.tables import FileKey, count_files, split_by_file, write_samples

COUNTS_KEY = ""
"""Shuffle key of the rows that carry counts instead of a table."""

INTERACTIONS_KEY = "interactions"
"""Field of the shuffle keys of files of interactions; its value is the number of the file."""


@dataclass(frozen=True)
class BlockStatistics:
    """What is counted over a block of interactions; the counts of all blocks are combined.

    Attributes:
        counts_by_domain: New interactions and users of each domain.
        sample_bounds: Samples that each (source, split) can have, at most.
        busiest_users: Busiest user of each domain (`corpus.local.negatives.find_busiest_users`).
    """

    counts_by_domain: NewCounts
    sample_bounds: Mapping[tuple[str, str], int]
    busiest_users: pl.DataFrame


@dataclass(frozen=True)
class InteractionBlocks:
    """The interactions that samples are made of, in blocks by ranges of users.

    Attributes:
        refs: Refs of the blocks that are not empty (tables of `build_block`).
        num_interaction_files: Files of interactions that the version gets.
        counts_by_domain: New interactions and users of each domain, over all blocks.
        sample_bounds: Samples that each (source, split) can have, at most, over all blocks.
    """

    refs: tuple[Ref, ...]
    num_interaction_files: int
    counts_by_domain: NewCounts
    sample_bounds: Mapping[tuple[str, str], int]

    def write_sample_files(
        self, item_indices: Mapping[str, IntArray], data: DataSettings, seed: int, uri: str
    ) -> UncommittedSamples:
        """Makes all samples of a version and writes its files, without committing them.

        Args:
            item_indices: Item indices of each domain, ascending.
            data: Settings that name all domains of the corpus.
            seed: Seed for drawing candidates.
            uri: URI of the corpus.
        """
        blocks = ray.data.from_arrow_refs(list(self.refs))
        shuffle_rows = blocks.map_batches(
            _block_processor(item_indices, data, seed, self.sample_bounds),
            batch_size=None,
            batch_format="pyarrow",
        )
        num_files = sum(map(count_files, self.sample_bounds.values())) + self.num_interaction_files
        result_rows = (
            shuffle_rows.groupby("file", num_partitions=num_files)
            .map_groups(_file_writer(uri, self.num_interaction_files), batch_format="pyarrow")
            .take_all()
        )
        results = [json.loads(row["result"]) for row in result_rows]
        # The three kinds of results differ by their fields.
        sample_files = [WrittenFile(**result) for result in results if "partition" in result]
        interaction_files = [InteractionFile(**result) for result in results if "of" in result]
        counts = next(result for result in results if "mixed_users" in result)
        return UncommittedSamples(
            sort_by_name(sample_files),
            sort_by_name(interaction_files),
            counts["mixed_users"],
            Counter(counts["dropped"]),
        )


def build_block(
    interactions: EncodedInteractions,
    file_number: int,
    item_counts: Mapping[str, int],
    data: DataSettings,
) -> tuple[pa.Table, BlockStatistics]:
    """Turns the interactions of a range of users into a block, and counts them.

    Args:
        interactions: All interactions, new and old, of the range's users.
        file_number: Number of the file of interactions that gets the new ones. Several blocks may
            go to one file.
        item_counts: Items of each domain.
        data: Settings that name all domains of the corpus.

    Returns:
        The block, a table of interactions by names with the column `partition` (`file_number`),
        and its statistics.
    """
    busiest_users = negatives.find_busiest_users(interactions, item_counts, data.num_candidates - 1)
    return interactions.to_frame().with_columns(partition=file_number).to_arrow(), BlockStatistics(
        interactions.count_new_by_domain(),
        max_sample_counts(interactions.user_domain_counts, data),
        busiest_users,
    )


def collect_blocks(
    blocks: Sequence[tuple[Ref, Ref]],
    num_interaction_files: int,
    item_counts: Mapping[str, int],
    num_negatives: int,
) -> InteractionBlocks:
    """Combines the blocks of all ranges of users, of which only the statistics are fetched.

    Blocks without new interactions are left out.

    Args:
        blocks: For each range of users, refs of its block and of its statistics.
        num_interaction_files: Files of interactions that the version gets.
        item_counts: Items of each domain.
        num_negatives: Negatives of a sample.

    Raises:
        DataError: A user leaves too few items of a domain to draw negatives from.
    """
    block_statistics: list[BlockStatistics] = get_results([counted for _, counted in blocks])
    negatives.check_enough_negatives(
        negatives.select_busiest_per_domain(
            pl.concat([counted.busiest_users for counted in block_statistics])
        ),
        item_counts,
        num_negatives,
    )
    counts_by_domain: dict[str, tuple[int, int]] = {}
    sample_bounds = Counter[tuple[str, str]]()
    for counted in block_statistics:
        sample_bounds.update(counted.sample_bounds)
        for name, (rows, users) in counted.counts_by_domain.items():
            total_rows, total_users = counts_by_domain.get(name, (0, 0))
            counts_by_domain[name] = total_rows + rows, total_users + users
    return InteractionBlocks(
        tuple(
            block
            for (block, _), counted in zip(blocks, block_statistics, strict=True)
            if counted.counts_by_domain
        ),
        num_interaction_files,
        counts_by_domain,
        sample_bounds,
    )


def _block_processor(
    item_indices: Mapping[str, IntArray],
    data: DataSettings,
    seed: int,
    sample_bounds: Mapping[tuple[str, str], int],
) -> Callable[[pa.Table], Iterator[pa.Table]]:
    """Returns the function that makes the samples of a block and yields rows to be shuffled.

    A row is (file, payload). There is one for the counts, one for the new interactions, and one for
    the samples of each file, all of them as one Arrow IPC payload. So the shuffle moves a few large
    values instead of many rows with lists in them. Rows are yielded one by one, so that few are in
    memory at a time.

    Args:
        item_indices: Item indices of each domain, ascending.
        data: Settings that name all domains of the corpus.
        seed: Seed for drawing candidates.
        sample_bounds: Samples that each (source, split) can have, at most, over all blocks.
    """

    def process_block(block: pa.Table) -> Iterator[pa.Table]:
        samples = build_samples(
            EncodedInteractions.from_frame(pl.DataFrame(block)), item_indices, data, seed
        )
        counts = {"mixed_users": samples.mixed_users, "dropped": samples.dropped}
        yield _shuffle_row(COUNTS_KEY, json.dumps(counts).encode())
        yield _shuffle_row(
            json.dumps({INTERACTIONS_KEY: block["partition"][0].as_py()}),
            _to_ipc(samples.new_interactions),
        )
        for key, table in split_by_file(samples.tables, sample_bounds):
            yield _shuffle_row(json.dumps(asdict(key)), _to_ipc(table))

    return process_block


def _file_writer(uri: str, num_interaction_files: int) -> Callable[[pa.Table], pa.Table]:
    """Returns the function that writes one file from all its shuffled rows.

    Its result is a row that describes the file. The rows of COUNTS_KEY make no file; their result
    is the sum of the counts.
    """

    def write_file(shuffled: pa.Table) -> pa.Table:
        key, payloads = shuffled["file"][0].as_py(), shuffled["payload"].to_pylist()
        if key == COUNTS_KEY:
            counts = [json.loads(payload) for payload in payloads]
            dropped = sum((Counter(entry["dropped"]) for entry in counts), Counter[str]())
            return _result_row(
                {"mixed_users": sum(entry["mixed_users"] for entry in counts), "dropped": dropped}
            )
        fields = json.loads(key)
        tables = [_from_ipc(payload) for payload in payloads]
        if INTERACTIONS_KEY not in fields:
            return _result_row(asdict(write_samples(uri, FileKey(**fields), tables)))
        # Each table is one range of user hashes in their order, so sorting the tables is enough.
        rows = pa.concat_tables(sorted(tables, key=lambda table: table["user_hash"][0].as_py()))
        return _result_row(
            asdict(
                stored_interactions.write_interactions(
                    uri, fields[INTERACTIONS_KEY], num_interaction_files, rows.combine_chunks()
                )
            )
        )

    return write_file


def _result_row(result: dict[str, Any]) -> pa.Table:
    """Returns a table of one row with a result as JSON."""
    return pa.table({"result": [json.dumps(result)]})


def _shuffle_row(key: str, payload: bytes) -> pa.Table:
    """Returns a table of one row: the key of the file it goes to, and its payload."""
    return pa.table(
        {"file": pa.array([key], pa.string()), "payload": pa.array([payload], pa.large_binary())}
    )


def _to_ipc(table: pa.Table) -> bytes:
    """Serializes a table as an Arrow IPC stream."""
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    return buffer.getvalue()


def _from_ipc(payload: bytes) -> pa.Table:
    """Reads the table of an Arrow IPC stream."""
    with pa.ipc.open_stream(payload) as stream:
        return stream.read_all()
