"""An index of item vectors that is searched by inner product, exactly (faiss)."""

from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from cprec.retrieval.candidates import NO_ITEM, Items

Vectors = NDArray[np.float32]


class VectorIndex:
    """Vectors of items, found by their inner product with a query.

    The search is exact: it compares a query with every item. Its cost grows with the number of
    items; docs/decisions/022-retrieve-then-rank.md says how far that goes.
    """

    def __init__(self, items: Items, vectors: Vectors) -> None:
        """Stores the vectors.

        Args:
            items: Items by their index in the catalogue [m], ascending.
            vectors: Vector of each of them [m, H].
        """
        self.items = items
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what faiss built: another process builds it anew, in milliseconds."""
        return {"items": self.items, "vectors": self.vectors}

    @cached_property
    def _index(self) -> Any:
        index = faiss.IndexFlatIP(self.vectors.shape[1])
        index.add(self.vectors)
        return index

    def search(self, queries: Vectors, k: int) -> Items:
        """Finds the items whose vectors have the largest inner product with each query.

        Args:
            queries: Queries [n, H].
            k: Items of a query.

        Returns:
            Items [n, k], best first; `NO_ITEM` where there are fewer.
        """
        if not len(self.items):
            return np.full((len(queries), k), NO_ITEM, dtype=np.int64)
        _, rows = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        # faiss fills up with -1 itself.
        return np.where(rows < 0, NO_ITEM, self.items[rows])
