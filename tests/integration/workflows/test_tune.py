"""A search of the learning rate with real Tune, engine and registry.

It finds a planted best lr, and survives a kill, early stopping and absurd learning rates.
"""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM

from cprec.downstream.known_items import read_known_items
from cprec.runs import checkpoint
from cprec.tracking.registry import Registry
from tests.integration import fashion, jobs

pytestmark = [
    pytest.mark.usefixtures("one_cluster"),
    # PEFT calls transformers by a deprecated name.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

NOTHING, PLANTED, WILD, ABSURD = 1e-6, 1e-2, 10.0, 1e30
"""Learning rates, the second of which is planted as the best.

At the first, no weight moves by more than 1e-4 in all steps. At the third, weights jump by some
thousand times their size, but stay finite. At the last they do not.
"""
USERS = fashion.USERS
"""Validation samples."""
CANDIDATES = 5
"""Candidates of a sample; few, so that an lr shows its worth in seconds."""


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
    jobs.run_here("build_corpus", path)
    return path


@pytest.fixture(scope="module")
def search(recipe: Path, place: Path, one_cluster: None) -> Path:
    """A search from fresh weights, by relative paths as in a shell. Returns its folder."""
    corpus, storage = os.path.relpath(place / "corpus"), os.path.relpath(place / "runs")
    output = jobs.run_here("tune_lr", recipe, "--corpus", corpus, "--storage", storage).stdout
    assert "registered cprec-Games version 1" in output
    return place / "runs" / "small" / "finetune" / "Games" / "llara"


def read_search(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "search.json").read_text())
    return summary


def trial_outcomes(folder: Path) -> list[tuple[float, int, list[float], bool, bool]]:
    return [
        (t["lr"], t["seed"], t["history"], t["stopped"], t["diverged"])
        for t in read_search(folder)["trials"]
    ]


def test_the_planted_lr_is_found_and_registered(search: Path, place: Path) -> None:
    summary = read_search(search)
    trials = {trial["lr"]: trial for trial in summary["trials"]}
    assert set(trials) == {NOTHING, PLANTED, WILD, ABSURD}
    assert len(set(trials[NOTHING]["history"])) == 1
    best = trials[PLANTED]["hr1"]
    for lr in (NOTHING, WILD, ABSURD):
        hr1 = trials[lr]["hr1"]
        noise = ((best * (1 - best) + hr1 * (1 - hr1)) / USERS) ** 0.5
        assert best - hr1 > 3 * noise, {lr: trial["history"] for lr, trial in trials.items()}
    assert summary["winner"]["lr"] == PLANTED
    version = Registry(f"sqlite:///{place}/runs/mlflow.db", "cprec", "cprec-Games").versions()[0]
    assert (version.tags["lr"], version.checkpoint) == (
        f"{PLANTED:g}",
        summary["winner"]["best"]["checkpoint"],
    )


def test_every_trial_is_recorded(search: Path, place: Path) -> None:
    summary = read_search(search)
    trials = {trial["lr"]: trial for trial in summary["trials"]}
    absurd = trials[ABSURD]
    assert (absurd["diverged"], absurd["history"], absurd["checkpoint"]) == (True, [], "")
    assert [len(trials[lr]["history"]) for lr in (NOTHING, PLANTED, WILD)] == [3, 3, 3]
    assert [seed["seed"] for seed in summary["winner"]["seeds"]] == [0]
    names = {f"{lr:g}-0" for lr in trials}
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
    uri = read_search(search)["winner"]["best"]["checkpoint"]
    checkpoint.verify(uri)
    assert (Path(uri) / "behaviour" / "behaviour.safetensors").is_file()
    known = read_known_items(uri)
    assert (known.domain, known.corpus_version) == ("Games", 0)
    assert known.corpus_fingerprint
    AutoPeftModelForCausalLM.from_pretrained(Path(uri) / "adapter")


def test_an_interrupted_and_killed_search_ends_as_an_undisturbed_one(
    search: Path, recipe: Path, place: Path
) -> None:
    killed = place / "runs" / "killed" / "finetune" / "Games" / "llara"
    options = ("--run", "killed", "--search.lrs", f"{NOTHING},{PLANTED}")
    process = jobs.start("tune_lr", recipe, *options)
    jobs.wait_for(process, lambda: any(killed.glob("trials/*/checkpoints/*/manifest.json")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all in the foreground
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
    output = jobs.run_here("tune_lr", recipe, *options).stdout
    assert "1 of 2 trials to train" in output
    assert first.stat().st_mtime_ns == before
    assert trial_outcomes(killed) == [t for t in trial_outcomes(search) if t[0] <= PLANTED]
    assert read_search(killed)["winner"]["lr"] == read_search(search)["winner"]["lr"]
    # It continued from its first epoch: the second one's checkpoint is of another attempt.
    assert {Path(path).name.partition("-")[2] for path in second.glob("checkpoints/*")} >= {"1"}


def test_trials_of_two_workers_from_another_domains_checkpoint_are_stopped_early(
    search: Path, recipe: Path, place: Path
) -> None:
    """As in CD-LLaRA, LoRA starts from a checkpoint that was fine-tuned on Games."""
    start = read_search(search)["winner"]["best"]["checkpoint"]
    pair = place / "runs" / "pair" / "finetune" / "Garden" / "cross"
    options = {
        "run": "pair",
        "workers": 2,
        "finetune.domain": "Garden",
        "finetune.name": "cross",
        "finetune.start": start,
        "finetune.epochs": 4,  # workers train on until they hear that the search stopped them
    }
    options |= {"search.stopper": "asha", "search.lrs": f"{PLANTED},1.0", "search.concurrent": 1}
    output = jobs.run_here(
        "tune_lr",
        recipe,
        *(part for key, value in options.items() for part in (f"--{key}", str(value))),
    ).stdout
    assert "registered cprec-Garden version 1" in output
    good, bad = read_search(pair)["trials"]
    assert (len(good["history"]), good["stopped"]) == (4, False)
    assert (len(bad["history"]) < 4, bad["stopped"]) == (True, True)
    assert read_search(pair)["start"] == start
    assert read_search(pair)["winner"]["lr"] == PLANTED
    shutil.rmtree(pair)
