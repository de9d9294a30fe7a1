"""Makes the samples of a new version from its interactions and writes its files, in one process.

The files are those of samples and those of the version's own interactions; nothing is committed.
Users are processed by ranges of their hashes. The samples of a range wait on the local disk until
all samples of an output file are made. So memory grows with the interactions, which
`corpus.sampling.encoded_interactions` holds compactly, and not with the samples.
"""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from corpus.backend import UncommittedSamples
from corpus.sampling.encoded_interactions import EncodedInteractions
from corpus.sampling.samples import Samples, build_samples, max_sample_counts
from corpus.sampling.schemas import STORED_INTERACTION_SCHEMA
from corpus.sampling.sequences import IntArray
from corpus.settings import DataSettings
from corpus.store import delta, stored_interactions
from corpus.store.scratch import THREADS, ByteRange, open_scratch_file
from corpus.store.stored_interactions import InteractionFile
from corpus.store.tables import FileKey, split_by_file, write_samples

NamedFile = TypeVar("NamedFile", delta.WrittenFile, InteractionFile)


def write_sample_files(
    interactions: EncodedInteractions,
    item_indices: Mapping[str, IntArray],
    data: DataSettings,
    seed: int,
    uri: str,
) -> UncommittedSamples:
    """Makes all samples of a version and writes its files, without committing them.

    Args:
        interactions: All interactions, new and old, of the users who have new ones.
        item_indices: Item indices of each domain, ascending.
        data: Settings that name all domains of the corpus.
        seed: Seed for drawing candidates.
        uri: URI of the corpus.
    """
    bounds = max_sample_counts(interactions.user_domain_counts, data)
    num_ranges = stored_interactions.count_user_ranges(interactions.num_new)
    pieces_by_file: dict[FileKey, list[ByteRange]] = {}
    interaction_files: list[InteractionFile] = []
    mixed_users = 0
    dropped = Counter[str]()

    with open_scratch_file() as scratch, ThreadPoolExecutor(THREADS) as threads:

        def process_range(
            index: int,
        ) -> tuple[Samples, list[tuple[FileKey, ByteRange]], InteractionFile | None]:
            """Makes the samples of a range of users; returns their counts and where they wait."""
            samples = build_samples(
                interactions.select_hash_range(index, num_ranges), item_indices, data, seed
            )
            pieces = [
                (key, scratch.write(rows)) for key, rows in split_by_file(samples.tables, bounds)
            ]
            file = (
                stored_interactions.write_interactions(
                    uri, index, num_ranges, samples.new_interactions
                )
                if samples.new_interactions.num_rows
                else None
            )
            # Only the counts are needed from here on: drop the tables, which are large.
            counts = replace(
                samples, tables={}, new_interactions=STORED_INTERACTION_SCHEMA.empty_table()
            )
            return counts, pieces, file

        def write_file(key: FileKey) -> delta.WrittenFile:
            """Writes one file of samples from its pieces."""
            return write_samples(
                uri, key, [scratch.read(location) for location in pieces_by_file[key]]
            )

        for counts, pieces, interaction_file in threads.map(process_range, range(num_ranges)):
            mixed_users += counts.mixed_users
            dropped += counts.dropped
            if interaction_file is not None:
                interaction_files.append(interaction_file)
            for key, location in pieces:
                pieces_by_file.setdefault(key, []).append(location)
        sample_files = list(threads.map(write_file, pieces_by_file))
    return UncommittedSamples(
        sort_by_name(sample_files), sort_by_name(interaction_files), mixed_users, dropped
    )


def sort_by_name(files: list[NamedFile]) -> tuple[NamedFile, ...]:
    """Returns files in the order of their names, so that the order of writing does not count."""
    return tuple(sorted(files, key=lambda file: file.name))
