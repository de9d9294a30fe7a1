"""The search of the learning rate for real: Tune, the engine, the registry. It finds a planted best rate; what a kill, early stopping and absurd
rates do to it."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM

from cprec.runs import checkpoint
from cprec.tracking.registry import Registry
from tests.integration import fashion, jobs

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning"
)  # PEFT asks transformers under a name of the past

NOTHING, PLANTED, WILD, ABSURD = 1e-6, 1e-2, 10.0, 1e30
"""Rates, one of them planted as the best. No weight moves by more than 1e-4 in all steps at the first; at the third, every one jumps by some thousand
times its size, and still is a number; at the last it is none."""
USERS, CANDIDATES = fashion.USERS, 5
"""Validation samples, and what each is a choice of: few and short, so that a rate shows what it is worth in seconds."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def recipe(place: Path) -> Path:
    """A recipe, and its corpus."""
    domains, held_out = ["Garden", "Office", "Sports"], ["Games"]
    fashion.write(place / "shoppers", [*domains, *held_out])
    path = jobs.recipe(
        place,
        workers=1,
        data={
            "root": f"{place}/shoppers",
            "domains": domains,
            "held_out": held_out,
            "num_candidates": CANDIDATES,
        },
        tiny={"hidden": 32, "layers": 1, "heads": 2, "vocabulary": 600, "language_steps": 40},
        finetune={"start": "fresh", "epochs": 3, "global_batch": 8, "validation_users": USERS},
        search={"lrs": [NOTHING, PLANTED, WILD, ABSURD], "winner_seeds": 1},
        baseline={"max_epochs": 1, "size": 16},
    )
    jobs.run("build_corpus", path)
    return path


@pytest.fixture(scope="module")
def search(recipe: Path, place: Path) -> Path:
    """A search from fresh weights. Returns its folder."""
    assert "registered cprec-Games version 1" in jobs.run("tune_lr", recipe).stdout
    return place / "runs" / "small" / "finetune" / "Games" / "llara"


def ended(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "search.json").read_text())
    return found


def outcome(folder: Path) -> list[tuple[float, int, list[float], bool, bool]]:
    return [
        (t["rate"], t["seed"], t["history"], t["stopped"], t["diverged"])
        for t in ended(folder)["trials"]
    ]


def test_the_planted_rate_is_found_and_registered(search: Path, place: Path) -> None:
    found = ended(search)
    of = {trial["rate"]: trial for trial in found["trials"]}
    assert set(of) == {NOTHING, PLANTED, WILD, ABSURD}
    assert len(set(of[NOTHING]["history"])) == 1
    best = of[PLANTED]["hr1"]
    for rate in (NOTHING, WILD, ABSURD):
        noise = ((best * (1 - best) + of[rate]["hr1"] * (1 - of[rate]["hr1"])) / USERS) ** 0.5
        assert best - of[rate]["hr1"] > 3 * noise, {
            rate: trial["history"] for rate, trial in of.items()
        }
    assert found["winner"]["rate"] == PLANTED
    version = Registry(f"sqlite:///{place}/runs/mlflow.db", "cprec", "cprec-Games").versions()[0]
    assert (version.tags["rate"], version.checkpoint) == (
        f"{PLANTED:g}",
        found["winner"]["best"]["checkpoint"],
    )


def test_every_trial_is_told_of(search: Path, place: Path) -> None:
    found = ended(search)
    of = {trial["rate"]: trial for trial in found["trials"]}
    assert (of[ABSURD]["diverged"], of[ABSURD]["history"], of[ABSURD]["checkpoint"]) == (
        True,
        [],
        "",
    )
    assert [len(of[rate]["history"]) for rate in (NOTHING, PLANTED, WILD)] == [3, 3, 3]
    assert [seed["seed"] for seed in found["winner"]["seeds"]] == [0]
    names = {f"{rate:g}-0" for rate in of}
    assert {path.parent.name for path in search.glob("trials/*/tuned.json")} == names
    assert "<svg" in (search / "trials.svg").read_text()
    client = Registry(f"sqlite:///{place}/runs/mlflow.db", "cprec", "cprec").client
    experiment = client.get_experiment_by_name("cprec")
    assert experiment
    parents = {
        run.info.run_name: run.data.tags.get("mlflow.parentRunId")
        for run in client.search_runs([experiment.experiment_id])
    }
    assert set(parents) == {"small-Games-llara", *names}
    assert len({parents[name] for name in names} - {None}) == 1


def test_a_checkpoint_is_a_peft_directory_with_the_projector_beside_it(search: Path) -> None:
    uri = ended(search)["winner"]["best"]["checkpoint"]
    checkpoint.verify(uri)
    assert (Path(uri) / "behaviour" / "behaviour.safetensors").is_file()
    AutoPeftModelForCausalLM.from_pretrained(Path(uri) / "adapter")


def test_a_search_that_was_interrupted_and_killed_ends_as_it_would_have(
    search: Path, recipe: Path, place: Path
) -> None:
    killed = place / "runs" / "killed" / "finetune" / "Games" / "llara"
    options = ("--run", "killed", "--search.lrs", f"{NOTHING},{PLANTED},{ABSURD}")
    process = jobs.start("tune_lr", recipe, *options)
    jobs.wait_for(process, lambda: any(killed.glob("trials/*/checkpoints/*/manifest.json")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to everybody in the foreground
    out, err = process.communicate(timeout=jobs.LIMIT_S)
    assert process.returncode == 130, err
    assert "the same command goes on" in err
    assert "Traceback" not in out + err
    assert not [*killed.glob("trials/*/tuned.json")]
    process = jobs.start("tune_lr", recipe, *options)
    second = killed / "trials" / f"{PLANTED:g}-0"
    jobs.kill_when(
        process,
        lambda: (
            any(second.glob("checkpoints/*/manifest.json")) and not (second / "tuned.json").exists()
        ),
    )
    first = killed / "trials" / f"{NOTHING:g}-0" / "tuned.json"
    before = first.stat().st_mtime_ns
    assert not (killed / "search.json").exists()
    shown = jobs.run("tune_lr", recipe, *options).stdout
    assert "2 of 3 trials to train" in shown
    assert first.stat().st_mtime_ns == before
    assert outcome(killed) == [trial for trial in outcome(search) if trial[0] != WILD]
    assert ended(killed)["winner"]["rate"] == ended(search)["winner"]["rate"]
    # It went on from its first epoch: the second one's checkpoint is of another attempt.
    assert {Path(path).name.partition("-")[2] for path in second.glob("checkpoints/*")} >= {"1"}


def test_trials_of_two_workers_from_another_domains_fine_tuning_are_cut_short(
    search: Path, recipe: Path, place: Path
) -> None:
    """As CD-LLaRA: LoRA starts from what was tuned on Games."""
    start = ended(search)["winner"]["best"]["checkpoint"]
    pair = place / "runs" / "pair" / "finetune" / "Garden" / "cross"
    options = {
        "run": "pair",
        "workers": 2,
        "finetune.domain": "Garden",
        "finetune.name": "cross",
        "finetune.start": start,
    }
    options |= {"search.stopper": "asha", "search.lrs": f"{PLANTED},1.0", "search.concurrent": 1}
    shown = jobs.run(
        "tune_lr",
        recipe,
        *(part for key, value in options.items() for part in (f"--{key}", str(value))),
    ).stdout
    assert "registered cprec-Garden version 1" in shown
    good, bad = ended(pair)["trials"]
    assert (len(good["history"]), good["stopped"]) == (3, False)
    assert (len(bad["history"]) < 3, bad["stopped"]) == (True, True)
    assert ended(pair)["start"] == start
    assert ended(pair)["winner"]["rate"] == PLANTED
    shutil.rmtree(pair)
