"""Lists of different lengths: one flat array of their values, and an array of their sizes. Pure."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def concat_ranges(starts: Ints, sizes: Ints) -> Ints:
    """Returns start, start + 1, ..., start + size - 1 of each range, one after the other."""
    return np.arange(int(sizes.sum())) + np.repeat(starts - exclusive_cumsum(sizes), sizes)


def take_runs(flat: NDArray[np.generic], starts: Ints, sizes: Ints) -> NDArray[np.generic]:
    """Returns the concatenated slices start : start + size of an array."""
    return flat[concat_ranges(starts, sizes)]


def exclusive_cumsum(sizes: Ints | Sequence[int]) -> Ints:
    """Returns, for each size, the sum of the sizes before it."""
    return np.cumsum(sizes, dtype=np.int64) - np.asarray(sizes, dtype=np.int64)


def flatten_lists(column: pa.ChunkedArray) -> tuple[Ints, Ints]:
    """Returns all values of a column of lists, concatenated, and the size of each list."""
    lists = column.combine_chunks()
    # A column that is too large for one array is still in chunks.
    lists = lists if isinstance(lists, pa.Array) else pa.concat_arrays(lists.chunks)
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return values, np.diff(lists.offsets.to_numpy()).astype(np.int64)
