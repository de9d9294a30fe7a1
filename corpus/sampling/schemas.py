"""Columns of what a corpus stores, for those who read it without the libraries that build it."""

import pyarrow as pa

SAMPLE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),  # the bits of a uint64: Delta has no unsigned integers
        ("domain", pa.string()),
        ("user_id", pa.string()),
        ("history", pa.list_(pa.int64())),
        ("candidates", pa.list_(pa.int64())),
        ("target", pa.int8()),
        ("timestamp", pa.int64()),
    ]
)
"""Columns of a sample.

history and candidates are item indices, target is the position of the target among the candidates.
Source and split are not columns: they are partitions of the table (`corpus.store.tables`).
"""

STORED_INTERACTION_SCHEMA = pa.schema(
    [
        ("user_hash", pa.int64()),  # the bits of a uint64; readers find files and row groups by it
        ("user_id", pa.string()),
        ("domain", pa.string()),
        ("item_id", pa.string()),
        ("item_index", pa.int64()),
        ("timestamp", pa.int64()),
        ("split", pa.int8()),
    ]
)
"""Columns of a stored interaction; split is an index into SPLITS and never changes."""
