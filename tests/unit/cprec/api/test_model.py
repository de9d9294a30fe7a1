"""A model in memory ranks titles and ids; it is what `Model.load` was told."""

from pathlib import Path

import pytest

import cprec
from tests.unit.cprec.ranking import stored_models
from tests.unit.cprec.ranking.stored_models import Place

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return stored_models.write(tmp_path_factory.mktemp("api"), 20)


def test_titles_and_ids_are_ranked_alike(place: Place) -> None:
    model = cprec.Model.load(place.text, place.recipe, domain="A")
    assert (model.checkpoint, model.domain, model.version) == (place.text, "A", None)
    assert place.text in repr(model)
    corpus = cprec.Corpus.open(place.corpus.uri)
    history = corpus.history(corpus.users("A")[0], "A")
    candidates = corpus.items("A").head(6)
    by_ids = model.rank(history["item_id"], candidates["item_id"], ids=True)
    by_titles = model.rank(history["title"], candidates["title"])
    assert by_ids.columns == ["candidate", "title", "share", "log_likelihood"]
    assert by_ids["title"].to_list() == by_titles["candidate"].to_list()
    assert by_ids["share"].sum() == pytest.approx(1)
    assert by_ids["share"].is_sorted(descending=True)
    assert set(by_ids["candidate"]) == set(candidates["item_id"])


def test_an_adapter_directory_and_a_base_are_models(place: Place) -> None:
    titles = ["oak lamp", "steel mug"]
    of_checkpoint = cprec.Model.load(place.text, place.recipe).rank([], titles)
    of_adapter = cprec.Model.load(f"{place.text}/adapter", place.recipe).rank([], titles)
    assert of_checkpoint.equals(of_adapter)
    base = cprec.Model.load("base", place.recipe)
    assert base.checkpoint is None
    assert base.base == str(place.folder / "base")
    assert len(base.rank([], titles)) == 2


def test_a_hybrid_model_takes_ids_of_the_domain_that_it_knows(place: Place) -> None:
    model = cprec.Model.load(place.hybrid, place.recipe)
    assert model.domain == "A"
    assert len(model.rank(["A01"], ["A03", "A07"], ids=True)) == 2
    with pytest.raises(cprec.UserError, match="titles do not suffice"):
        model.rank(["oak lamp"], ["steel mug", "old chair"])


def test_what_cannot_be_ranked_is_refused(place: Place, tmp_path: Path) -> None:
    model = cprec.Model.load("base", place.recipe)
    with pytest.raises(cprec.UserError, match=r"give Model.load a domain"):
        model.rank(["A01"], ["A03", "A07"], ids=True)
    with pytest.raises(cprec.UserError, match="a ranking takes 2"):
        model.rank([], ["oak lamp"])
    with pytest.raises(cprec.UserError, match="no such model"):
        cprec.Model.load(str(tmp_path / "none"), place.recipe)
    with pytest.raises(cprec.UserError, match="has no champion yet"):
        cprec.Model.load("models:/cprec@champion", place.recipe)
