"""The paper's tables by one command, on real Ray: killed, resumed, and nothing done twice."""

import io
import json
from pathlib import Path
from typing import Any

import polars as pl

from tests.integration import jobs

ONLY = ("--only", "table2,table3,table4")
BASELINES = ("popularity", "gru4rec", "sasrec", "cl4srec", "tedrec", "morec")
LANGUAGE_MODELS = ("base", "chatrec", "llara", "pretrained", "cprec")
MODELS = BASELINES + LANGUAGE_MODELS


def small_recipe(place: Path) -> Path:
    """Returns a recipe whose steps take a second or two, besides the start of their processes."""
    return jobs.recipe(
        place,
        workers=1,
        data={
            "root": f"{place}/shoppers",
            "format": "simulated",
            "domains": ["Garden", "Office"],
            "held_out": ["Games"],
        },
        train={"global_batch": 32, "zero_stage": 0, "max_samples": 64},
        finetune={"epochs": 1, "global_batch": 16, "max_samples": 32, "validation_users": 8},
        search={"lrs": [1e-3], "winner_seeds": 1},
        baseline={"max_epochs": 1, "size": 8, "seeds": 2},
        evaluate={"max_users": 20},
        reproduce={"generated_users": 4},
    )


def read_results(folder: Path) -> dict[str, Any]:
    """Returns the kept results by name of the step, as they are on disk."""
    files = (folder / "steps").glob("*/result.json")
    results = [json.loads(file.read_text()) for file in files]
    return {result["name"]: result for result in results}


def test_a_killed_reproduction_goes_on_and_computes_nothing_twice(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    folder = tmp_path / "runs" / "reproduction"
    killed = jobs.start("reproduce", recipe, *ONLY)
    jobs.kill_when(killed, lambda: "corpus" in read_results(folder))
    before = read_results(folder)

    finished = jobs.run("reproduce", recipe, *ONLY).stdout
    results = read_results(folder)
    assert before.items() <= results.items()
    assert {f"score-{model}-Games" for model in MODELS} <= set(results)
    assert {f"generate-{model}-Games" for model in LANGUAGE_MODELS if model != "chatrec"} <= set(
        results
    )
    assert f"page: {folder}/index.html" in finished

    frame = pl.read_parquet(io.BytesIO((folder / "results.parquet").read_bytes()))
    scores = frame.filter(artefact="table3", measure="HR@1")
    assert scores["model"].to_list() == list(MODELS)
    assert scores["n"].to_list() == [20] * len(MODELS)
    assert scores.filter(model="sasrec")["seeds"].to_list() == [2]
    assert scores["value"].is_between(0, 1).all()
    ratios = frame.filter(artefact="table3", measure="Valid Ratio")
    assert ratios["n"].to_list() == [4, 20, 4, 4, 4]
    untrained = frame.filter(artefact="table4", model="llara-untuned")
    assert untrained.select("n", "seeds").rows() == [(20, 1)]
    assert results["tune-cprec-Games"]["content"]["seeds"][0]["cost"]["tokens"] > 0

    again = jobs.run_here("reproduce", recipe, *ONLY).stdout
    assert "step " not in again
    assert read_results(folder) == results
    dry = jobs.run_here("reproduce", recipe, *ONLY, "--dry-run").stdout
    assert f"{len(results)} of {len(results)} steps are done" in dry
