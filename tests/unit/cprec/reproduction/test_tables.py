"""From predictions on storage to cells, pages and files."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from cluster.errors import PlatformFault, RunError
from cluster.storage import write_bytes
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.evaluation import predictions
from cprec.reproduction.cells import Cell
from cprec.reproduction.rendering import describe_order
from cprec.reproduction.results import (
    CorpusContent,
    Cost,
    DomainCounts,
    PretrainContent,
    ScoreContent,
    TuneContent,
    TunedSeed,
)
from cprec.reproduction.workflow import Reproduction, describe, plan_reproduction, write_pages
from cprec.workflows.build_corpus import build_corpus

USERS, CANDIDATES = 60, 20
EVIL = "<script>alert(1)</script>"
HISTORY = [3, 4, 6, 8, 9, 10]


CORPUS = CorpusContent(uri="u", fingerprint="f", version=0, domains={}, mixed_samples=0)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return validate_recipe(
        {
            "storage": f"{tmp_path}/runs",
            "run": "mine",
            "data": {"domains": ["Books", "Music"], "held_out": ["Games"]},
        },
        "the test",
    )


def scored(rng: np.random.Generator, strength: float, users: int = USERS) -> pa.Table:
    """Returns predictions whose true item has this much more than the others."""
    scores = rng.random((users, CANDIDATES))
    targets = rng.integers(CANDIDATES, size=users)
    scores[np.arange(users), targets] += strength
    samples = pa.table(
        {
            "sample_id": pa.array(range(users), pa.int64()),
            "user_id": [str(user) for user in range(users)],
            "history": [list(range(HISTORY[user % len(HISTORY)])) for user in range(users)],
            "candidates": [list(range(CANDIDATES))] * users,
            "target": pa.array(targets, pa.int8()),
        }
    )
    return predictions.from_scores(samples, scores, ["title"] * CANDIDATES)


STRENGTHS = {"cprec": 0.9, "llara": 0.4, "sasrec": 0.2}


def keep_all(
    plan: Reproduction,
    tmp_path: Path,
    users: dict[str, int] | None = None,
    strengths: dict[str, float] = STRENGTHS,
) -> None:
    """Keeps a result for each step of a plan that is no generation."""
    rng = np.random.default_rng(1)
    for step in plan.graph.steps:
        task = plan.tasks[step.name]
        content: Any = None
        cost = Cost(samples=100, tokens=6_000, seconds=30.0, epochs=2, memory_gb=1.5)
        match step.kind:
            case "corpus":
                # As many as the paper's Game has.
                games = DomainCounts(
                    users=4_564, items=3_058, interactions=30_302, sparsity=0.9978, held_out=True
                )
                books = games.model_copy(update={"users": 9, "held_out": False})
                domains = {"Books": books, "Games": games}
                content = CorpusContent(
                    uri=EVIL, fingerprint="f", version=0, domains=domains, mixed_samples=1
                )
            case "pretrain":
                content = PretrainContent(run="r", checkpoint="c", cost=cost)
            case "tune":
                seeds = [TunedSeed(seed=0, checkpoint="c", epoch=1, hr1=0.3, cost=cost)]
                content = TuneContent(search="s", lr=1e-3, hr1_by_lr={"0.001": 0.3}, seeds=seeds)
            case "score":
                assert task.model is not None
                name = task.model.name
                uris = [f"{tmp_path}/{step.name}-{seed}.parquet" for seed in range(3)]
                for uri in uris:
                    table = scored(rng, strengths.get(name, 0.1), (users or {}).get(name, USERS))
                    write_bytes(uri, predictions.to_bytes(table))
                content = ScoreContent(predictions=uris, generated=False)
        if content is not None:
            plan.kept.keep(step, content, 1.0, 2.0)


def test_pages_and_files_say_what_is_known(recipe: Recipe, tmp_path: Path) -> None:
    plan = plan_reproduction(recipe, [])
    keep_all(plan, tmp_path)
    page = Path(str(write_pages(plan)))
    folder = page.parent
    html = page.read_text()
    assert EVIL not in html
    assert html.count("<svg") == 3
    for name in ("table3", "figure4"):
        text = (folder / "tables" / f"{name}.md").read_text()
        assert "| Games | CPRec |" in text
        assert "Not computed yet: generate-base-Games" in text or name == "figure4"
        assert r"\toprule" in (folder / "tables" / f"{name}.tex").read_text()
    assert (folder / "figures" / "figure5.svg").exists()
    frame = pl.read_parquet(io.BytesIO((folder / "results.parquet").read_bytes()))
    cells = {
        (row["artefact"], row["model"], row["measure"]): row for row in frame.iter_rows(named=True)
    }
    cprec, llara = cells["table3", "cprec", "HR@1"], cells["table3", "llara", "HR@1"]
    assert (cprec["n"], cprec["seeds"], cprec["paper"]) == (USERS, 3, 0.4764)
    assert cprec["reference"] is None
    assert cprec["low"] < cprec["value"] < cprec["high"]
    assert llara["reference"] == "cprec"
    assert llara["p_users"] <= llara["p_users_holm"] < 0.05
    assert llara["value"] - cprec["value"] == pytest.approx(llara["difference"])
    order = f"CPRec is above LLaRA (Games, HR@1 {-llara['difference']:+.4f}, p = "
    assert f"As in the paper, {order}" in html
    assert f"As in the paper, {order}" in (folder / "tables" / "table3.md").read_text()
    assert "* (paper 0.4411)" in html or "*† (paper 0.4411)" in html
    slices = [cells["table5", "cprec", name]["n"] for name in ("Sparse", "Medium", "Dense", "All")]
    assert slices == [20, 20, 20, 60]
    assert cells["table2", "", "Users"]["paper"] == 4_564
    assert cells["table7", "cprec", "Minutes"]["value"] == pytest.approx(0.25)
    assert cells["table7", "cprec", "Tokens/s"]["value"] == pytest.approx(200)
    assert cells["table6", "cprec", "HR@3"]["value"] >= cells["table6", "cprec", "HR@1"]["value"]


def test_an_order_that_is_not_the_papers_is_said(recipe: Recipe, tmp_path: Path) -> None:
    plan = plan_reproduction(recipe, ["table3"])
    keep_all(plan, tmp_path, strengths={"cprec": 0.2, "llara": 0.4, "sasrec": 0.9})
    table = (Path(str(write_pages(plan))).parent / "tables" / "table3.md").read_text()
    for higher, lower in (("CPRec", "LLaRA"), ("LLaRA", "SASRec")):
        said = (
            rf"Unlike in the paper, {higher} is not above {lower} \(Games, HR@1 -0\.\d{{4}}, p = "
        )
        assert re.search(said, table)


@pytest.mark.parametrize(
    ("difference", "p", "said"),
    [
        (0.1, 0.04, "As in the paper, A is above B (Games, HR@1 +0.1000, p = 0.04 over seeds"),
        (0.1, 0.06, "Unlike in the paper, A is not clearly above B (Games, HR@1 +0.1000, p = 0.06"),
        (0.1, None, "Unlike in the paper, A is not clearly above B (Games, HR@1 +0.1000, not test"),
        (-0.1, 0.01, "Unlike in the paper, A is not above B (Games, HR@1 -0.1000, p = 0.01"),
    ],
)
def test_a_row_is_above_another_one_if_it_is_so_over_seeds(
    difference: float, p: float | None, said: str
) -> None:
    cell = Cell(
        *("table3", "Games", "a", "A", "HR@1", 0.5),
        reference="B",
        difference=difference,
        p_seeds_holm=p,
    )
    assert describe_order(cell).startswith(said)


def test_what_is_computed_is_shown_before_the_rest_is(recipe: Recipe) -> None:
    plan = plan_reproduction(recipe, ["figure4"])
    assert write_pages(plan) is None
    plan.kept.keep(plan.graph.steps[0], CORPUS, 1.0, 2.0)
    tables = Path(str(write_pages(plan))).parent / "tables"
    text = (tables / "figure4.md").read_text()
    assert "Not computed yet: tune-llara-Games, " in text
    assert "| domain" not in text
    # Table 2 is complete, and nobody asked for Table 3.
    assert {file.stem for file in tables.glob("*.md")} == {"table2", "figure4"}


def test_scores_of_different_users_are_never_compared(recipe: Recipe, tmp_path: Path) -> None:
    plan = plan_reproduction(recipe, ["figure4"])
    keep_all(plan, tmp_path, users={"llara": USERS - 1})
    with pytest.raises(PlatformFault, match="different samples"):
        write_pages(plan)


def test_a_dry_run_checks_the_data_and_says_what_is_done(tmp_path: Path) -> None:
    data = {"root": f"{tmp_path}/shoppers", "format": "simulated"}
    recipe = validate_recipe(
        {
            "storage": f"{tmp_path}/runs",
            "corpus": f"{tmp_path}/corpus",
            "data": {**data, "domains": ["Books"], "held_out": ["Games"]},
            "simulate": {"users": 60, "items_per_domain": 40},
        },
        "the test",
    )
    plan = plan_reproduction(recipe, ["table4"])
    lines: list[str] = []
    describe(plan, lines.append)
    steps = [plan.kept.run_name(step) for step in plan.graph.steps]
    assert lines[-len(steps) - 1 : -1] == [f"  {step}: to do" for step in steps]
    assert lines[-1].startswith(f"0 of {len(steps)} steps are done")
    assert not list(tmp_path.iterdir())

    corpus = build_corpus(recipe, lines.append)
    content = CORPUS.model_copy(update={"uri": corpus.uri, "fingerprint": corpus.fingerprint})
    plan.kept.keep(plan.graph.steps[0], content, 1.0, 65.0)
    describe(plan, lines.append)
    assert f"  {steps[0]}: done in 1:05" in lines

    plan.kept.keep(plan.graph.steps[0], CORPUS.model_copy(update={"uri": corpus.uri}), 1.0, 65.0)
    with pytest.raises(RunError, match="the results that are kept are from f"):
        describe(plan, lines.append)
