"""The demo's text, whose perplexity is measured, is of the tiny base's language but new to it."""

from pathlib import Path

import numpy as np

from corpus.ingest.simulation import simulate_shoppers
from cprec.config.recipe_file import load_recipe
from cprec.model.tiny import generate_passages

RECIPES = Path(__file__).resolve().parents[4] / "jobs" / "recipes"
LISTS = 30


def demo_text() -> str:
    """Lists of similar items of the demo's shelves, from random draws that no training uses."""
    recipe = load_recipe(str(RECIPES / "demo.yaml"))
    shelves = simulate_shoppers(
        (*recipe.data.domains, *recipe.data.held_out),
        recipe.simulate.model_copy(update={"users": 10}),
        recipe.seed,
    ).shelves
    stream = generate_passages(
        [title for shelf in shelves for title in shelf.titles], np.random.default_rng([0, 0x7E57])
    )
    return "".join(f"{next(stream)}\n" for _ in range(LISTS))


def test_the_demos_text_is_product_text_of_another_stream() -> None:
    assert (RECIPES / "demo.txt").read_text() == demo_text()
