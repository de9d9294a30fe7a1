"""Popularity: how often each item was bought in the training split, and never later. Pure."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

POPULARITY = "popularity"
"""Name of this baseline, as in `evaluate.models`; it has no seeds, because nothing is drawn."""


def count_purchases(sequences: Iterable[Sequence[int]], items: Ints) -> Ints:
    """Counts how often each item occurs.

    Args:
        sequences: Training sequences of items (cprec.baselines.sequences).
        items: The items that are counted [m], ascending.

    Returns:
        The counts [m].
    """
    bought = np.array([item for sequence in sequences for item in sequence], dtype=np.int64)
    bought = bought[np.isin(bought, items)]
    return np.bincount(np.searchsorted(items, bought), minlength=len(items))


def order_by_count(items: Ints, counts: Ints) -> Ints:
    """Returns items, the most bought first; equal counts, such as 0, in the order of the items.

    Args:
        items: The items [m].
        counts: How often each was bought [m].
    """
    return items[np.argsort(-counts, kind="stable")]
