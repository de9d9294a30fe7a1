"""Every kind of model ranks one history, and is merged, or is refused with what to do."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.errors import DataError, RecipeError, RunError
from cprec.config.recipe import Recipe
from cprec.downstream.domain import Domain
from cprec.downstream.hybrid import HybridModel
from cprec.downstream.scoring import load_model
from cprec.ranking.items import ItemLookup
from cprec.ranking.ranker import Ranker
from cprec.tracking.registry import Registry
from cprec.workflows.batch_recommend import _identify_retrieval
from cprec.workflows.evaluation.models import find_model
from cprec.workflows.merge import export, plan_export
from cprec.workflows.recommend import plan_request, rank
from tests.unit.cprec.ranking import stored_models
from tests.unit.cprec.ranking.stored_models import Place

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return stored_models.write(tmp_path_factory.mktemp("workflows"), 60)


@pytest.fixture(scope="module")
def registry(place: Place) -> Registry:
    return Registry(f"sqlite:///{place.folder}/mlflow.db", "cprec", "cprec")


@pytest.fixture
def ids(tmp_path: Path) -> str:
    # An editor's byte order mark, an empty line, an item twice.
    (tmp_path / "ids.txt").write_text("\ufeffA03\nA07\n\nA03\nA11\n", encoding="utf-8")
    return str(tmp_path / "ids.txt")


def test_a_user_a_history_of_ids_and_titles_are_one_request(
    place: Place, registry: Registry, ids: str, tmp_path: Path
) -> None:
    items = ItemLookup.from_corpus(place.corpus, "A")
    for uri in (place.text, place.hybrid):
        model = find_model(place.recipe, registry, uri)
        of_user = plan_request(place.recipe, model, [], ids, user="u007")
        assert len(of_user.history) == 4
        of_ids = plan_request(place.recipe, model, of_user.history, ids, are_ids=True)
        assert of_ids.history == of_user.history
        ranked = rank(place.recipe, model, of_user, print)
        assert ranked == rank(place.recipe, model, of_ids, print)
        assert {name.split("  ")[0] for name, _ in ranked} == {"A03", "A07", "A11"}
        assert sum(share for _, share in ranked) == pytest.approx(1)
    titles = items.titles(items.find(["A03", "A07", "A11"]))
    (tmp_path / "titles.txt").write_text("\n".join(titles))
    model = find_model(place.recipe, registry, place.text)
    history = items.titles(items.find(list(of_user.history)))
    request = plan_request(place.recipe, model, history, str(tmp_path / "titles.txt"))
    of_titles = rank(place.recipe, model, request, print)
    of_ids_again = rank(place.recipe, model, of_ids, print)
    for (title, share), (name, expected) in zip(of_titles, of_ids_again, strict=True):
        assert name.endswith(title)
        assert share == pytest.approx(expected, abs=1e-4)


def test_what_a_model_does_not_know_is_refused(
    place: Place, registry: Registry, ids: str, tmp_path: Path
) -> None:
    hybrid = find_model(place.recipe, registry, place.hybrid)
    (tmp_path / "b.txt").write_text("B03\nB07")
    with pytest.raises(RecipeError, match="a hybrid model, which ranks items of A by their ids"):
        plan_request(place.recipe, hybrid, ["oak lamp"], ids)
    elsewhere = place.recipe.model_copy(
        update={"recommend": place.recipe.recommend.model_copy(update={"domain": "B"})}
    )
    with pytest.raises(RunError, match=r"a hybrid model of domain A .*items of B"):
        plan_request(elsewhere, hybrid, ["B01"], str(tmp_path / "b.txt"), are_ids=True)
    with pytest.raises(DataError, match="'B03', 'B07': no item of A, which has 40"):
        plan_request(place.recipe, hybrid, [], str(tmp_path / "b.txt"), are_ids=True)
    with pytest.raises(DataError, match="user nobody: no user of A"):
        plan_request(place.recipe, hybrid, [], ids, user="nobody")
    (tmp_path / "latin.txt").write_bytes("Müller\nMeier".encode("latin-1"))
    text = find_model(place.recipe, registry, place.text)
    with pytest.raises(DataError, match=r"latin\.txt: no UTF-8 text"):
        plan_request(place.recipe, text, ["oak lamp"], str(tmp_path / "latin.txt"))
    with pytest.raises(RecipeError, match="give one of them"):
        plan_request(place.recipe, hybrid, ["A01"], ids, user="u007")


def test_every_kind_of_name_stands_for_a_model(
    place: Place, registry: Registry, tmp_path: Path
) -> None:
    recipe = place.recipe
    base = str(place.folder / "base")
    assert find_model(recipe, registry, "base").base == base
    shutil.copytree(Path(place.text) / "adapter", tmp_path / "given" / "adapter")
    adapter = find_model(recipe, registry, str(tmp_path / "given" / "adapter"))
    assert (adapter.base, adapter.label) == (base, "given-adapter")
    probe = torch.arange(20)[None]
    with torch.inference_mode():
        logits = [
            load_model(recipe, find_model(recipe, registry, uri))[0](input_ids=probe).logits
            for uri in (place.text, str(tmp_path / "given" / "adapter"), "base")
        ]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
    with pytest.raises(RunError, match=r"the adapter of a hybrid model.*name .*00000010-a"):
        find_model(recipe, registry, f"{place.hybrid}/adapter")
    with pytest.raises(RecipeError, match=r"no such model; give candidate .* base, or the URI"):
        find_model(recipe, registry, str(tmp_path / "nothing"))
    with pytest.raises(RecipeError, match="sasrec: a baseline"):
        find_model(recipe, registry, "sasrec")
    (tmp_path / "given" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(RunError, match=r"no adapter_model\.safetensors beside it"):
        find_model(recipe, registry, str(tmp_path / "given" / "adapter"))


def test_a_merged_hybrid_model_ranks_as_before(
    place: Place, registry: Registry, tmp_path: Path
) -> None:
    model = find_model(place.recipe, registry, place.hybrid)
    out = tmp_path / "merged" / "hybrid"
    export(plan_export(place.recipe, registry, model, str(out)))
    merged = find_model(place.recipe, registry, str(out))
    assert (merged.base, merged.label) == (str(out), "merged-hybrid")
    network = load_model(place.recipe, merged)[0]
    assert isinstance(network, HybridModel)
    domain = Domain.from_corpus(place.corpus, "A")
    items = domain.item_indices.tolist()
    rankings = []
    for found in (model, merged):
        ranker = Ranker.load(place.recipe, found, print, domain)
        rankings.append(ranker.rank([ranker.encode_items(items[:4], items[9:29])])[0])
    assert rankings[0].order.tolist() == rankings[1].order.tolist()
    assert abs(rankings[0].scores - rankings[1].scores).max() < 1e-2


def test_others_can_use_a_merged_hybrid_model_as_its_readme_says(
    place: Place, registry: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    model = find_model(place.recipe, registry, place.hybrid)
    export(plan_export(place.recipe, registry, model, str(out)))
    plain = AutoModelForCausalLM.from_pretrained(out)
    AutoTokenizer.from_pretrained(out)
    readme = (out / "behaviour" / "README.md").read_text()
    assert "items of A" in readme or "item of A" in readme
    table = pq.read_table(out / "behaviour" / "items.parquet").to_pylist()
    row = next(row for row in table if row["item_id"] == "A07")
    tensors = load_file(out / "behaviour" / "behaviour.safetensors")
    vector = tensors["items"][row["number"]]
    first = torch.nn.functional.gelu(vector @ tensors["0.weight"].T + tensors["0.bias"])
    embedding = first @ tensors["2.weight"].T + tensors["2.bias"]
    network = load_model(place.recipe, model)[0]
    token = torch.tensor([[network.vocab_size + row["number"]]])
    with torch.inference_mode():
        assert torch.allclose(network.embed(token)[0, 0], embedding, atol=1e-5)
        expected = network(input_ids=token).logits
        assert torch.allclose(
            plain(inputs_embeds=embedding[None, None]).logits, expected, atol=1e-2
        )
    with pytest.raises(RunError, match="something already"):
        export(plan_export(place.recipe, registry, model, str(out)))


def test_merging_a_hybrid_model_needs_its_corpus(
    place: Place, registry: Registry, tmp_path: Path
) -> None:
    other = stored_models.write(tmp_path / "other", 30)
    recipe: Recipe = place.recipe.model_copy(update={"corpus": other.corpus.uri})
    model = find_model(recipe, registry, place.hybrid)
    with pytest.raises(RunError, match="whose item embeddings are of corpus"):
        export(plan_export(recipe, registry, model, str(tmp_path / "merged")))
    assert not (tmp_path / "merged").exists()


def test_candidates_of_a_catalogue_depend_on_the_length_of_histories() -> None:
    recipe = Recipe()
    catalogue: Any = SimpleNamespace(recipe=recipe, sasrec=None, vector_identity={})
    short = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_history": 5})})
    assert _identify_retrieval(short, catalogue) != _identify_retrieval(recipe, catalogue)
