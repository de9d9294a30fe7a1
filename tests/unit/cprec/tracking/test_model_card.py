"""Model cards: what they say, that they name no place, and that MLflow and hubs take them."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from corpus.sampling.source import Source
from cprec.config.recipe import Recipe
from cprec.config.sections.finetuning import FinetuneSettings
from cprec.downstream.llara import build_plan
from cprec.downstream.stored_model import Form
from cprec.schedule.ledger import Ledger
from cprec.tracking.lineage import find_license, trained_on
from cprec.tracking.model_card import MAX_DESCRIPTION, publish_card, render_card
from cprec.tracking.registry import Registry

METRICS = {
    "n": 1000,
    "hr": {"1": 0.25, "3": 0.5, "5": 1.0},
    "ndcg": {"3": 0.5, "5": None},
    "mode": "score",
}
TAGS = {
    "base": "HuggingFaceTB/SmolLM2-135M",
    "base_revision": "0123abc",
    "license": "apache-2.0",
    "corpus": "s3://secret-bucket/corpus",
    "corpus_fingerprint": "f00d",
    "trained_on": json.dumps(
        {
            "mixed": {"samples": 7, "versions": [0, 2]},
            "domain/Books": {"samples": 12345, "versions": [1, 1]},
        }
    ),
    "evaluation.Games": json.dumps(
        {**METRICS, "split": "test", "corpus_version": 2, "chance": 0.05}
    ),
}


def test_a_card_says_what_the_model_is_in_words_and_to_hubs() -> None:
    card = render_card("cprec version 3", Form.ADAPTER, TAGS, hybrid=False)
    metadata = {
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["recommendation", "cprec"],
    }
    assert {key: card.data.get(key) for key in metadata} == metadata
    for line in (
        "# cprec version 3",
        "| license of the base, under which its derivatives stand | apache-2.0 |",
        "| corpus | f00d |",
        "| domain | Books | 1 | 12,345 |",
        "| mixed | all of them | 0 to 2 | 7 |",
        # Wilson's interval of 250 of 1,000, as tables have it.
        "| Games | test | 2 | 1,000 | 0.2500 (0.2242 to 0.2778) | 0.5000 (0.4691 to 0.5309) "
        "| 1.0000 (0.9962 to 1.0000) | 0.5000 (0.4691 to 0.5309) | none | 0.05 |",
        "| domain | split | corpus version | samples | HR@1 | HR@3 | HR@5 | NDCG@3 | NDCG@5 "
        "| chance at 1 |",
        f"|{'---|' * 10}",
        "## Intended use",
        "model = PeftModel.from_pretrained(base, DIRECTORY)",
    ):
        assert line in card.text.splitlines()
    assert "secret" not in card.content


def test_what_is_not_known_is_said_and_no_place_is_named() -> None:
    card = render_card("given", Form.MERGED, {"base": "/data/of a team/llama-7b"}, hybrid=True)
    assert card.data.get("library_name") == "transformers"
    assert card.data.get("base_model") is None
    for words in (
        "| base | llama-7b, not on a hub |",
        "not recorded: see the card of the base",
        "What it was trained on is not recorded",
        "has not been evaluated",
        "`behaviour/README.md`",
    ):
        assert words in card.text
    assert "/data" not in card.content


def test_the_base_is_not_said_to_be_trained() -> None:
    text = render_card("base", Form.MERGED, {"base": "a/b", "trained_on": trained_on()}, False).text
    assert "this is the base" in text
    assert "It was pre-trained" not in text


def test_a_fine_tuned_model_names_its_domain() -> None:
    card = render_card("x", Form.ADAPTER, {**TAGS, "kind": "finetuned", "domain": "Games"}, False)
    assert "fine-tuned on Games (LLaRA" in card.text


@pytest.mark.parametrize("domains", [1, 300])
def test_mlflow_takes_every_card_as_a_description(tmp_path: Path, domains: int) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", "cprec", "cprec")
    sources = {f"domain/D{i}": {"samples": 1, "versions": [0, 0]} for i in range(domains)}
    number = registry.register(f"{tmp_path}/c", {**TAGS, "trained_on": json.dumps(sources)})
    publish_card(registry, number)
    description = registry.client.get_model_version("cprec", str(number)).description or ""
    assert description.startswith("# cprec version 1")
    assert len(description) <= MAX_DESCRIPTION
    assert ("the whole card is in every export" in description) is (domains == 300)


def test_the_stages_of_a_training_are_added_up(tmp_path: Path) -> None:
    places = []
    for name, source, version, samples in (
        ("a", "domain/Books", 0, 40),
        ("b", "domain/Books", 3, 10),
        ("c", "downstream/Games", 3, 25),
    ):
        plan = build_plan(Source.parse(source), version, 50, 1e-3, FinetuneSettings(), 0)
        place = tmp_path / name
        place.mkdir()
        (place / "ledger.json").write_text(json.dumps(Ledger(plan, samples).to_json()))
        places.append(str(place))
    assert json.loads(trained_on(*places)) == {
        "domain/Books": {"samples": 50, "versions": [0, 3]},
        "downstream/Games": {"samples": 25, "versions": [3, 3]},
    }


def test_the_license_is_that_of_the_recipe_else_that_of_the_card_of_the_base(
    tmp_path: Path,
) -> None:
    recipe = Recipe()
    base = str(tmp_path)
    assert find_license(recipe, base, None) == ""
    for text in ("no metadata", "---\n- a list\n---\n", "---\nlicense: [broken\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert find_license(recipe, base, None) == ""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    assert find_license(recipe, base, None) == "mit"
    own = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"license": "apache-2.0"})}
    )
    assert find_license(own, base, None) == "apache-2.0"
    assert ModelCard.load(tmp_path / "README.md").data.get("license") == "mit"
