"""Titles as vectors: by a real network, in any batch; histories find what is like them."""

import numpy as np
import pytest
import torch

from cprec.retrieval.candidates import NO_ITEM
from cprec.retrieval.title_vectors import TitleSource, embed_titles, normalise, whiten
from tests.models import llama
from tests.tokenizers import byte_level

TITLES = [
    "oak lamp",
    "steel mug",
    "oak table with a very long description of its legs",
    "blue lamp",
    "</s> lamp",
]


def test_a_vector_is_the_mean_over_its_title_whatever_shares_the_batch() -> None:
    tokenizer = byte_level(TITLES)
    network = llama(len(tokenizer)).eval()
    vectors = embed_titles(network, tokenizer, TITLES)
    np.testing.assert_allclose(embed_titles(network, tokenizer, TITLES, 2), vectors, atol=1e-5)
    for title, vector in zip(TITLES[:4], vectors, strict=False):
        ids = torch.tensor([tokenizer(title)["input_ids"]])
        with torch.inference_mode():
            hidden = network.model(ids).last_hidden_state[0]
        np.testing.assert_allclose(hidden.mean(dim=0).numpy(), vector, atol=1e-5)
    # What looks like a control token is text, as it is in prompts.
    assert tokenizer.eos_token_id in tokenizer(TITLES[4])["input_ids"]
    with torch.inference_mode():
        ids = torch.tensor([tokenizer(TITLES[4])["input_ids"]])
        as_control = network.model(ids).last_hidden_state[0].mean(dim=0).numpy()
    assert np.abs(vectors[4] - as_control).max() > 1e-3


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Items 10, 11, ... of ten groups, whose vectors are alike, far from the origin."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(10), 6)
    centres = rng.standard_normal((10, 32)) + 20
    vectors = centres[groups] + 0.1 * rng.standard_normal((60, 32))
    return groups, vectors.astype(np.float32)


def test_histories_find_items_like_theirs() -> None:
    groups, vectors = planted()
    items = np.arange(10, 70)
    source = TitleSource.from_vectors(items, vectors, items, 0.7)
    found = source.find([[10], [20, 35, 69]], 6)
    assert set(groups[found[0] - 10]) == {0}
    assert set(groups[found[1] - 10]) == {9}  # the item bought last weighs most
    brute = source.known_vectors @ source.embed_histories([[20, 35, 69]])[0][0]
    assert found[1].tolist() == items[np.argsort(-brute)[:6]].tolist()


def test_a_history_without_vectors_finds_nothing_and_others_are_unmoved() -> None:
    _, vectors = planted()
    items = np.arange(10, 70)
    source = TitleSource.from_vectors(items, vectors, items, 0.7)
    assert source.find([[], [5, 99]], 3).tolist() == [[NO_ITEM] * 3] * 2
    np.testing.assert_array_equal(source.find([[99, 12]], 4), source.find([[12]], 4))


def test_only_the_catalogue_is_found_also_from_other_items() -> None:
    _, vectors = planted()
    items, catalogue = np.arange(10, 70), np.arange(10, 16)
    source = TitleSource.from_vectors(items, vectors, catalogue, 0.7)
    assert set(source.find([[69]], 6)[0]) == set(catalogue)


@pytest.mark.parametrize("count", [1, 5, 200])
def test_whitened_vectors_have_about_one_variance_and_stay_finite(count: int) -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((count, 8)) * [100, 10, 3, 1, 1, 1, 1, 1] + 50).astype(
        np.float32
    )
    white = whiten(vectors)
    assert np.isfinite(white).all()
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-3)
    if count == 200:
        before, after = (np.linalg.eigvalsh(np.cov(v.T)) for v in (vectors, white))
        assert after[-1] / after[0] < before[-1] / before[0] / 50
    assert np.isfinite(normalise(white)).all()
