"""What sharing tokens costs in quality and saves in work, on simulated shoppers.

The demo is trained in each inexact mode and compared with the exact one, on the same shoppers,
samples, base and seeds. Evaluation is always exact. `targets` and `both` read the corpus in the
order of users, and so does their reference; the effect of that order alone is measured too.
Trainings run in the bare loop, one after the other, in processes of their own with one thread.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus.build import simulate_and_build
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import load_recipe, to_yaml
from cprec.evaluation.significance import PairedTest, paired_t_test
from cprec.model import base_uri
from tests.integration import jobs

SEEDS = (0, 1)
ARMS: dict[str, tuple[str, dict[str, int]]] = {
    "exact": ("apart", {}),
    "exact, users together": ("together", {}),
    "targets": ("together", {"targets_per_pass": 8}),
    "candidates": ("apart", {"shared_candidates": 20}),
    "both": ("together", {"targets_per_pass": 8, "shared_candidates": 20}),
}
"""By arm: the corpus that is trained on, and keys of `train`.

In the corpus `together`, the samples of a user follow each other (data.users_together).
"""
REFERENCE = {
    "exact, users together": "exact",
    "targets": "exact, users together",
    "candidates": "exact",
    "both": "exact, users together",
}
"""The arm with which each other arm is compared."""
MARGIN = {"targets": 0.05, "candidates": 0.05, "both": 0.10}
"""HR@1 that an arm may lose against its reference, at most.

A mode that stays within 0.05 counts as good as the exact one. Both together do not; their margin
bounds the harm.
"""
SAVED = {"targets": 1.15, "candidates": 2.2, "both": 2.9}
"""Tokens of samples per computed token, at least."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The result of each training, by arm and in the order of SEEDS."""
    folder = tmp_path_factory.mktemp("sharing")
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in SEEDS:
        recipes = {}
        for order in ("apart", "together"):
            values = {
                "storage": f"{folder}/runs",
                "corpus": f"{folder}/{seed}-{order}",
                "data.root": f"{folder}/shoppers-{seed}",
                "seed": seed,
            }
            recipe = load_recipe(
                str(jobs.ROOT / "jobs" / "recipes" / "demo.yaml"),
                {**values, "data.users_together": order == "together"},
            )
            corpus = simulate_and_build(recipe.data, recipe.simulate, seed, recipe.corpus, print)
            recipes[order] = (recipe, corpus)
        base = base_uri.resolve_base(*recipes["apart"], print)
        for arm, (order, keys) in ARMS.items():
            recipe = recipes[order][0]
            changes = {
                "model": recipe.model.model_copy(update={"base": base}),
                "train": recipe.train.model_copy(update=keys),
            }
            recipe_file = folder / f"{seed}-{arm}.yaml"
            results[arm].append(run_training(recipe.model_copy(update=changes), recipe_file))
    return results


def run_training(recipe: Recipe, recipe_file: Path) -> dict[str, Any]:
    """Writes the recipe, trains it in a process of its own, and returns the worker's result."""
    recipe_file.write_text(to_yaml(recipe))
    out = jobs.run_python(
        "tests/experiments/sharing_worker.py",
        recipe_file,
        environment=jobs.worker_environment(),
        timeout_s=900,
    )
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def compare_with_reference(results: dict[str, list[dict[str, Any]]], arm: str) -> PairedTest:
    """Tests HR@1 of an arm against its reference, paired by seed and user.

    The lower end of the two-sided 90 % interval is a one-sided bound of the loss at 95 %.
    """
    reference_hits, arm_hits = (
        np.concatenate([result["hits"] for result in results[name]])
        for name in (REFERENCE[arm], arm)
    )
    return paired_t_test(reference_hits, arm_hits, confidence=0.9)


def test_the_modes_save_tokens_and_train_the_same_samples(
    results: dict[str, list[dict[str, Any]]],
) -> None:
    for arm, arm_results in results.items():
        reference = results[REFERENCE.get(arm, arm)]
        hr1 = ", ".join(f"{np.mean(result['hits']):.3f}" for result in arm_results)
        tokens = total(arm_results, "useful") / total(arm_results, "computed")
        seconds = total(reference, "seconds") / total(arm_results, "seconds")
        difference = ""
        if arm in REFERENCE:
            test = compare_with_reference(results, arm)
            bounds = f"({test.low:+.3f} .. {test.high:+.3f})"
            difference = f"; difference {test.difference:+.3f} {bounds}"
        print(
            f"{arm:<22} HR@1 {hr1}{difference}; {tokens:.2f} x fewer tokens,"
            f" {seconds:.2f} x fewer CPU seconds"
        )
        assert tokens >= SAVED.get(arm, 1.0)
        assert column(arm_results, "samples") == column(reference, "samples")
        assert (
            column(arm_results, "useful") == column(reference, "useful")
            or arm == "exact, users together"
        )


def total(results: list[dict[str, Any]], key: str) -> float:
    return float(sum(column(results, key)))


def column(results: list[dict[str, Any]], key: str) -> list[float]:
    return [result[key] for result in results]


@pytest.mark.parametrize("arm", MARGIN)
def test_a_mode_loses_no_more_than_its_margin(
    results: dict[str, list[dict[str, Any]]], arm: str
) -> None:
    test = compare_with_reference(results, arm)
    assert test.low is not None
    assert test.low > -MARGIN[arm], test
