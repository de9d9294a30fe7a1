"""The source of candidates of a real corpus: what it knows, and what an append adds to it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cluster import storage
from corpus.append import append
from corpus.build import build
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.downstream import stored_baselines
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.evaluation.catalogue_predictions import true_items
from cprec.retrieval.candidates import Items
from cprec.retrieval.catalogue import Catalogue
from cprec.retrieval.vector_index import Vectors
from tests.unit.corpus.worlds import settings, shop, write_root


def embed(titles: Sequence[str]) -> Vectors:
    """Embeds a title by its hash: two titles are alike only where they are equal."""
    seeds = [int(storage.sha256(title.encode())[:8], 16) for title in titles]
    return np.array([np.random.default_rng(seed).standard_normal(16) for seed in seeds], np.float32)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return validate_recipe(
        {
            "storage": f"{tmp_path}/runs",
            "baseline": {"size": 4, "max_epochs": 1, "patience": 1, "patience_steps": 0},
        },
        "the test",
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    root = write_root(tmp_path / "root", shop(("A", "B")))
    data = settings(root, domains=("A", "B"), held_out=(), max_history=10)
    return build(data, 0, str(tmp_path / "corpus"), print)


def find(recipe: Recipe, corpus: Corpus, domain: str, k: int, lines: list[str]) -> Items:
    """Candidates for the test samples of a domain; nothing is trained."""
    items = Domain.from_corpus(corpus, domain, "test")
    catalogue = Catalogue(recipe, corpus, items, EvaluatedModel("base", "base", "b", None))
    samples = corpus.read_samples(items.source, "test")
    return catalogue.build_source(embed, lines.append).find(samples["history"].to_pylist(), k)


def test_an_appended_domain_is_found_at_once(
    tmp_path: Path, recipe: Recipe, corpus: Corpus
) -> None:
    find(recipe, corpus, "A", 5, [])
    root = write_root(tmp_path / "other", shop(("C",)))
    other = settings(root, domains=("C",), held_out=(), max_history=10)
    appended = append(other, 0, corpus.uri, print)
    lines: list[str] = []
    items = Domain.from_corpus(appended, "C").item_indices
    found = find(recipe, appended, "C", len(items), lines)
    assert all(sorted(row) == items.tolist() for row in found.tolist())
    assert lines == [
        f"item vectors: {len(items)} of {len(items)} titles have to be embedded",
        "no SASRec of C is stored: candidates are found without it",
    ]


def test_items_that_join_a_domain_are_found_beside_those_that_sasrec_knows(
    tmp_path: Path, recipe: Recipe, corpus: Corpus
) -> None:
    stored_baselines.ensure_trained(recipe, corpus, "A", "sasrec", 0)
    known = Domain.from_corpus(corpus, "A").item_indices
    lines: list[str] = []
    find(recipe, corpus, "A", 5, lines)
    assert lines == [f"item vectors: {len(known)} of {len(known)} titles have to be embedded"]
    root = write_root(tmp_path / "more", shop(("A",), items=40))
    more = settings(root, domains=("A",), held_out=(), max_history=10)
    grown = append(more, 0, corpus.uri, print)
    items = Domain.from_corpus(grown, "A").item_indices
    new = len(items) - len(known)
    assert new > 0
    lines.clear()
    found = find(recipe, grown, "A", len(items), lines)
    assert all(sorted(row) == items.tolist() for row in found.tolist())
    assert lines == [
        f"item vectors: {new} of {len(items)} titles have to be embedded",
        f"SASRec of corpus version 0 does not know {new} items of A, which the other sources find",
    ]
    # They are not merely what fills up the end.
    assert np.isin(found[:, : len(known)], items[~np.isin(items, known)]).any()


def test_nothing_later_than_the_training_split_is_counted(recipe: Recipe, corpus: Corpus) -> None:
    domain = Domain.from_corpus(corpus, "A")
    counts = stored_baselines.count_training_purchases(recipe, corpus, domain)
    by_split = {
        split: corpus.read_samples(domain.source, split)
        for split in ("train", "validation", "test")
    }
    test = by_split["test"]
    whole = Counter(
        item
        for history, target in zip(test["history"].to_pylist(), true_items(test), strict=True)
        for item in [*history, target]
    )
    held_out = Counter([*true_items(test), *true_items(by_split["validation"])])
    # Histories of this corpus hold whole sequences: without what was held out, all is training.
    assert dict(zip(domain.item_indices.tolist(), counts.tolist(), strict=True)) == {
        item: whole[item] - held_out[item] for item in domain.item_indices.tolist()
    }
