"""A hybrid model is refused where it would get another item's embedding, or none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import RunError
from corpus.append import append
from corpus.build import build
from corpus.store.tables import Corpus
from cprec.config.sections.finetuning import FinetuneSettings
from cprec.downstream.domain import Domain
from cprec.downstream.known_items import (
    KNOWN_ITEMS_FILE,
    KnownItems,
    is_hybrid,
    read_known_items,
    require_known_items,
)
from cprec.downstream.llara import build_plan
from cprec.downstream.stored_model import BEHAVIOUR_FOLDER
from cprec.schedule.ledger import Ledger
from tests.unit.corpus.worlds import settings, shop, write_root


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return build_corpus(tmp_path, 0)


def build_corpus(folder: Path, seed: int) -> Corpus:
    data = settings(
        write_root(folder / f"root-{seed}", shop(("A", "B"))), domains=("A", "B"), held_out=()
    )
    return build(data, seed, str(folder / f"corpus-{seed}"), print)


def checkpoint_of(folder: Path, corpus: Corpus, domain: str, earlier_release: bool = False) -> str:
    """Writes what the checks read of a hybrid model's checkpoint, and returns its URI."""
    known = KnownItems.of_domain(corpus, Domain.from_corpus(corpus, domain))
    behaviour = folder / "checkpoint" / BEHAVIOUR_FOLDER
    behaviour.mkdir(parents=True)
    save_file({"items": torch.zeros(known.count, 4)}, behaviour / "behaviour.safetensors")
    plan = build_plan(
        corpus.find_domain_source(domain, "train"), corpus.version, 10, 1e-3, FinetuneSettings(), 0
    )
    (folder / "checkpoint" / "ledger.json").write_text(json.dumps(Ledger(plan).to_json()))
    if not earlier_release:
        (behaviour / KNOWN_ITEMS_FILE).write_text(known.to_text())
    return str(folder / "checkpoint")


@pytest.mark.parametrize("earlier_release", [False, True])
def test_another_domain_and_items_that_joined_are_refused(
    tmp_path: Path, corpus: Corpus, earlier_release: bool
) -> None:
    uri = checkpoint_of(tmp_path, corpus, "A", earlier_release)
    known = read_known_items(uri)
    assert known.count == corpus.read_items()["domain"].to_pylist().count("A")
    assert (known.domain, known.corpus_version) == ("A", 0)
    assert known.corpus_fingerprint == (None if earlier_release else corpus.fingerprint)
    assert (known.digest is None) == earlier_release
    require_known_items("cprec", uri, corpus, "A")
    with pytest.raises(RunError, match=r"cprec: a hybrid model of domain A .*items of B; name a"):
        require_known_items("cprec", uri, corpus, "B")
    other = settings(write_root(tmp_path / "other", shop(("C",))), domains=("C",), held_out=())
    appended = append(other, 0, corpus.uri, print)
    require_known_items("cprec", uri, appended, "A")
    more = settings(
        write_root(tmp_path / "more", shop(("A",), items=40)), domains=("A",), held_out=()
    )
    grown = append(more, 0, corpus.uri, print)
    with pytest.raises(
        RunError, match=rf"knows the {known.count} items .*--corpus-version 0, or tune again"
    ):
        require_known_items("cprec", uri, grown, "A")


def test_a_model_of_a_later_version_knows_the_items_of_an_earlier_one(
    tmp_path: Path, corpus: Corpus
) -> None:
    more = settings(
        write_root(tmp_path / "more", shop(("A",), items=40)), domains=("A",), held_out=()
    )
    uri = checkpoint_of(tmp_path, append(more, 0, corpus.uri, print), "A")
    require_known_items("cprec", uri, Corpus.open(corpus.uri, 0), "A")


def test_another_corpus_with_as_many_items_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    uri = checkpoint_of(tmp_path, corpus, "A")
    with pytest.raises(RunError, match="item embeddings are of corpus"):
        require_known_items("cprec", uri, build_corpus(tmp_path, 1), "A")


def test_a_copy_of_the_corpus_that_got_other_items_is_refused(
    tmp_path: Path, corpus: Corpus
) -> None:
    copy = shutil.copytree(corpus.uri, tmp_path / "copy")

    def append_items(uri: str, name: str) -> Corpus:
        """Appends items of A that are called by a name."""
        world = {"A": [(user, f"{name}{item}", time) for user, item, time in shop(("A",))["A"]]}
        root = write_root(tmp_path / name, world)
        return append(settings(root, domains=("A",), held_out=()), 0, uri, print)

    uri = checkpoint_of(tmp_path, append_items(corpus.uri, "x"), "A")
    other = append_items(str(copy), "y")
    assert other.fingerprint == corpus.fingerprint
    require_known_items("cprec", uri, Corpus.open(corpus.uri), "A")
    with pytest.raises(RunError, match="cprec: a hybrid model, whose embeddings are of other item"):
        require_known_items("cprec", uri, other, "A")
    with pytest.raises(RunError, match="were appended to differently"):
        require_known_items("cprec", uri, Corpus.open(other.uri, 0), "A")


def test_a_text_only_model_knows_all_titles(tmp_path: Path, corpus: Corpus) -> None:
    assert not is_hybrid(None)
    require_known_items("cprec", str(tmp_path), corpus, "B")
