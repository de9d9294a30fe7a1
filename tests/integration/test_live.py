"""A run that keeps learning.

A domain joins during the stable phase, the driver is killed, the number of workers changes; then a
branch anneals and a new trunk continues.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RunError
from corpus.ingest import simulation
from corpus.store.tables import Corpus
from cprec.config.recipe_file import load_recipe
from cprec.runs import checkpoint
from cprec.runs.control.lease import claim
from cprec.schedule.ledger import Ledger
from cprec.schedule.plan import Plan
from cprec.tracking.registry import Registry
from tests.integration import jobs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with interactions of five domains, a corpus of three, and a recipe for those three.

    Games is held out; Sports and Music are not in the corpus yet.
    """
    place = tmp_path_factory.mktemp("live")
    recipe = jobs.recipe(
        place,
        data={
            "root": f"{place}/shoppers",
            "format": "simulated",
            "domains": ["Garden", "Office", "Sports", "Music"],
            "held_out": ["Games"],
        },
        simulate={"users": 40, "items_per_domain": 40},
    )
    everything = load_recipe(str(recipe))
    simulation.write_data_root(everything.data, everything.simulate, everything.seed)
    jobs.recipe(
        place,
        run="trunk",
        data={"root": f"{place}/shoppers", "domains": ["Garden", "Office"], "held_out": ["Games"]},
        schedule={"lr_max": 1e-3, "segment_samples": 512, "poll_samples": 64},
        train={"global_batch": 32, "zero_stage": 1},
        checkpoint={"every_samples": 64, "keep": 50},
        model={"max_tokens": 512, "lora_dropout": 0.0},
    )
    jobs.run_here("build_corpus", recipe)
    return place


def read_status(folder: Path) -> dict[str, Any]:
    """Returns the status of a run, or one with the state `none` before there is any."""
    file = folder / "status.json"
    if not file.exists():
        return {"state": "none", "samples": 0, "time": 0}
    status: dict[str, Any] = json.loads(file.read_text())
    return status


def checkpoint_positions(folder: Path) -> list[int]:
    """Returns the samples that had been trained at each complete checkpoint, ascending."""
    return sorted(
        int(p.parent.name.split("-")[0]) for p in folder.glob("checkpoints/*/manifest.json")
    )


def largest_lora_weight(folder: Path) -> float:
    """Returns the largest weight of LoRA, which begins at zero, at a run's first checkpoint."""
    first = str(min((folder / "checkpoints").iterdir()))
    weights = checkpoint.load_training_state(first).weights
    return max(float(tensor.abs().max()) for name, tensor in weights.items() if "lora_B" in name)


@pytest.fixture(scope="module")
def trunk(place: Path) -> Path:
    """The folder of a run that was held open, killed, and released.

    Two workers train to the end of the stable phase and wait. Sports is appended, and the driver is
    killed. One worker continues, and the stable phase is released.
    """
    recipe = place / "recipe.yaml"
    folder = place / "runs" / "trunk"
    first = jobs.start("cpt", recipe, "--schedule.hold_open", "true")
    jobs.wait_for(first, lambda: read_status(folder)["state"] == "waiting")
    appended = jobs.run_here("append_domain", recipe, "--data.domains", "Sports")
    assert "trunk takes up corpus version 1 at sample" in appended.stdout
    # Until a checkpoint holds samples of the era that Sports began.
    first_era = json.loads((folder / "plan.json").read_text())["plan"]["eras"][0]
    jobs.kill_when(first, lambda: any(p > first_era["stop"] for p in checkpoint_positions(folder)))

    second = jobs.start("cpt", recipe, "--schedule.hold_open", "true", "--workers", "1")
    jobs.wait_for(
        second,
        lambda: (
            read_status(folder)["state"] in ("training", "waiting")
            and read_status(folder)["owner"]["pid"] == second.pid
        ),
    )
    with (
        pytest.raises(RunError, match=f"is being trained by process {second.pid}"),
        claim(str(folder), "trunk", "", print),
    ):
        pass
    (folder / "requests" / "poison.json").write_text("{garbage")
    (folder / "requests" / "typo.json").write_text('{"do": "relaese"}')
    released = jobs.run_here("control", recipe, "release")
    assert "anneals when its stable phase is trained" in released.stdout
    _, err = second.communicate(timeout=jobs.LIMIT_S)
    assert second.returncode == 0, err
    return folder


def test_every_sample_of_every_version_is_trained_once(trunk: Path, place: Path) -> None:
    audit = json.loads((trunk / "audit.json").read_text())
    assert (audit["missing"], audit["repeated"]) == (0, 0)
    rows = {(str(s.source), s.version): s.rows for s in Corpus.open(f"{place}/corpus", 1).streams()}
    assert audit["sources"]["domain/Sports"]["1"]["trained"] == rows["domain/Sports", 1]
    for source in ("domain/Garden", "domain/Office"):
        assert audit["sources"][source]["0"]["trained"] == rows[source, 0]
    mixed = {int(v): entry["trained"] for v, entry in audit["sources"]["mixed"].items()}
    assert mixed == {v: n for (source, v), n in rows.items() if source == "mixed"}


def test_the_trace_follows_the_plan_whichever_workers_trained_it(trunk: Path) -> None:
    plan = Plan.from_json(json.loads((trunk / "plan.json").read_text())["plan"])
    trace = jobs.lines(trunk / "trace.jsonl")
    positions = [
        position
        for row in trace
        for position in range(row["samples"], row["samples"] + row["batch_samples"])
    ]
    assert positions == list(range(plan.total_samples))
    assert [row["lr"] for row in trace] == [plan.wsa.lr(row["samples"]) for row in trace]
    assert [row["phase"] for row in trace] == [plan.wsa.phase(row["samples"]) for row in trace]
    joined_at = plan.eras[1].start
    assert all(
        row["lr"] == plan.wsa.lr_max
        for row in trace
        if joined_at <= row["samples"] < plan.wsa.stable_end
    )
    assert {
        e["workers"] for e in jobs.lines(trunk / "events.jsonl") if e["event"] == "resumed"
    } == {1}


def test_what_is_no_request_is_named_and_moved_aside(trunk: Path) -> None:
    refused = {
        e["request"]: e["because"]
        for e in jobs.lines(trunk / "events.jsonl")
        if e["event"] == "request_refused"
    }
    assert refused.keys() == {"poison", "typo"}
    assert len(list((trunk / "requests-refused").iterdir())) == 2


def test_an_adopted_version_is_an_event_with_its_changes(trunk: Path) -> None:
    first, second = (
        e for e in jobs.lines(trunk / "events.jsonl") if e["event"] == "corpus_version_adopted"
    )
    assert (first["version"], second["version"]) == (0, 1)
    assert second["S"] > first["S"] == second["S_before"]
    assert "domain/Sports" in second["sources"]


@pytest.mark.usefixtures("one_cluster")
# Ray Data copies its own deprecated settings.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_a_domain_appended_after_annealing_is_for_the_next_trunk(trunk: Path, place: Path) -> None:
    """A branch anneals a stable checkpoint, and a new trunk continues from it with what is new.

    Neither warms up again.
    """
    recipe = place / "recipe.yaml"
    checkpoints = sorted((trunk / "checkpoints").iterdir())
    ledger = Ledger.from_json(json.loads((checkpoints[-1] / "ledger.json").read_text()))
    stable_end = ledger.plan.wsa.stable_end
    source = next(c for c in checkpoints if int(c.name.split("-")[0]) == stable_end)
    jobs.run_here("append_domain", recipe, "--data.domains", "Music")

    jobs.run_here(
        "cpt",
        recipe,
        "--run",
        "next",
        "--continue-from",
        source,
        "--workers",
        "1",
        "--data.domains",
        "Garden,Office",
    )
    folder = place / "runs" / "next"
    audit = json.loads((folder / "audit.json").read_text())
    assert set(audit["sources"]) == {"domain/Music", "mixed"}
    assert (audit["missing"], audit["repeated"]) == (0, 0)
    trace = jobs.lines(folder / "trace.jsonl")
    assert trace[0]["lr"] == 1e-3
    # Two steps from fresh weights, as the trunk took them, move none so far.
    assert largest_lora_weight(folder) > 5 * largest_lora_weight(trunk)

    jobs.run_here("anneal", recipe, "--from", source, "--workers", "1")
    branch = place / "runs" / f"trunk-anneal-{stable_end}"
    phases = [row["phase"] for row in jobs.lines(branch / "trace.jsonl")]
    assert set(phases) == {"annealing"}
    [version] = [
        v
        for v in Registry.from_recipe(load_recipe(str(recipe))).versions()
        if v.tags["run"] == str(branch)
    ]
    assert version.tags["parent_checkpoint"] == str(source)
    final = checkpoint.read_ledger(str(max((branch / "checkpoints").iterdir())))
    assert {p.source for p in final.plan.consumed_portions(final.samples)} >= {
        "domain/Garden",
        "domain/Office",
        "domain/Sports",
        "mixed",
    }


def test_a_run_cannot_continue_from_an_annealed_checkpoint(trunk: Path, place: Path) -> None:
    annealed = max((trunk / "checkpoints").iterdir())
    options = ["--run", "wrong", "--continue-from", str(annealed)]
    assert "only stable checkpoints can be continued" in jobs.refused(
        "cpt", place / "recipe.yaml", *options
    )
