"""The index finds what comparing every vector finds."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cprec.retrieval.candidates import NO_ITEM
from cprec.retrieval.vector_index import VectorIndex


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 80), st.integers(0, 99))
def test_the_search_is_exact(items: int, width: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = np.sort(rng.choice(1000, items, replace=False))
    vectors = rng.standard_normal((items, width), dtype=np.float32)
    queries = rng.standard_normal((4, width), dtype=np.float32)
    index = VectorIndex(names, vectors)
    found = index.search(queries, k)
    assert found.shape == (4, k)
    brute = names[np.argsort(-(queries.astype(float) @ vectors.T), axis=1)][:, :k]
    np.testing.assert_array_equal(found[:, : brute.shape[1]], brute)
    assert (found[:, items:] == NO_ITEM).all()
    # It travels to other processes, before and after its first search.
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(index)).search(queries, k), found)


def test_an_empty_index_finds_nothing() -> None:
    index = VectorIndex(np.empty(0, dtype=np.int64), np.empty((0, 3), dtype=np.float32))
    assert index.search(np.ones((2, 3), dtype=np.float32), 2).tolist() == [[NO_ITEM] * 2] * 2
