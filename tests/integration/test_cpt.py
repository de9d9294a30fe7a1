"""jobs/cpt.py on real Ray, Ray Data, Ray Train, DeepSpeed and MLflow, on local disk and on S3.

Processes that are killed are in tests/faults.
"""

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file

from cluster.storage import join, list_names, read_bytes, read_text
from corpus.ingest.plain_text import read_plain_text
from corpus.store.tables import Corpus
from cprec.config.recipe_file import load_recipe
from cprec.evaluation.perplexity import compute_perplexity
from cprec.model import adapter, backbone
from cprec.runs import checkpoint
from cprec.runs.run_records import read_run_records
from cprec.schedule.objectives import Objective
from cprec.schedule.plan import Plan
from cprec.tracking.registry import Registry
from cprec.tracking.version_names import find_version
from tests.integration import jobs

pytestmark = [
    # PEFT uses a deprecated name of transformers.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # Ray Data copies its own deprecated settings.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]


def read_plan(folder: Path) -> Plan:
    return Plan.from_json(json.loads((folder / "plan.json").read_text())["plan"])


def test_every_step_has_the_lr_phase_and_sources_of_the_plan(whole: Path) -> None:
    trace = jobs.lines(whole / "trace.jsonl")
    plan = read_plan(whole)
    assert [row["samples"] for row in trace[1:]] == [
        row["samples"] + row["batch_samples"] for row in trace[:-1]
    ]
    assert [row["step"] for row in trace] == list(range(len(trace)))
    for row in trace:
        assert row["lr"] == plan.wsa.lr(row["samples"])
        assert row["phase"] == plan.wsa.phase(row["samples"])
        counts: dict[str, int] = {}
        stop = row["samples"] + row["batch_samples"]
        for (source, _), count in plan.count_by_stream(row["samples"], stop).items():
            counts[source] = counts.get(source, 0) + count
        assert row["sources"] == counts
        assert all(s == "mixed" for s in row["sources"]) == (row["phase"] == "annealing")


def test_the_audit_is_clean_and_the_events_are_complete(whole: Path) -> None:
    audit = json.loads((whole / "audit.json").read_text())
    assert (audit["missing"], audit["repeated"], audit["trained"]) == (0, 0, audit["planned"])
    events = jobs.lines(whole / "events.jsonl")
    changes = [(e["from"], e["to"]) for e in events if e["event"] == "phase_changed"]
    assert changes == [("warmup", "stable"), ("stable", "annealing"), ("annealing", "done")]
    assert next(e["samples"] for e in events if e["event"] == "perplexity_measured") == 0
    assert [events[0]["event"], events[1]["event"], events[-1]["event"]] == [
        "run_started",
        "corpus_version_adopted",
        "run_finished",
    ]
    assert "report.html" in {p.name for p in whole.iterdir()}


def test_text_is_replayed_up_to_s_and_audited(whole: Path) -> None:
    stable_end = read_plan(whole).wsa.stable_end
    text = json.loads((whole / "audit.json").read_text())["sources"]["text/days"]["1"]
    # replay_share is 0.1 of the samples up to S, of which 300 are domain-specific.
    assert text["planned"] == round(300 / 9) == stable_end - 300
    assert (text["trained"], text["missing"], text["repeated"]) == (text["planned"], 0, 0)
    trace = jobs.lines(whole / "trace.jsonl")
    assert sum(row["sources"].get("text/days", 0) for row in trace if row["phase"] == "stable") > 20
    assert "text/days" in (whole / "report.html").read_text()


def test_every_objective_is_trained_as_often_as_planned(whole: Path) -> None:
    counts = json.loads((whole / "audit.json").read_text())["objectives"]
    assert set(counts) == set(Objective)
    assert all(count["planned"] == count["trained"] for count in counts.values())
    trace = jobs.lines(whole / "trace.jsonl")
    for row in trace:
        prompts = sum(n for name, n in row["sources"].items() if not name.startswith("text/"))
        assert sum(row["objectives"].values()) == prompts
        assert set(row["objectives"]) <= {"next_item"} or row["phase"] != "annealing"
    # 300 domain-specific samples have a quarter of each, within four deviations.
    for objective in set(Objective) - {Objective.NEXT_ITEM}:
        assert abs(counts[objective]["trained"] - 75) < 4 * 75**0.5
    assert "<dt>Objectives</dt>" in (whole / "report.html").read_text()


def test_perplexity_is_measured_before_at_checkpoints_and_after(whole: Path, place: Path) -> None:
    measured = read_run_records(str(whole)).perplexities
    saved = [
        e["samples"] for e in jobs.lines(whole / "events.jsonl") if e["event"] == "checkpoint_saved"
    ]
    assert [samples for samples, _ in measured] == [0, *saved]
    assert len({value for _, value in measured}) == len(measured)
    recipe = load_recipe(str(place / "recipe.yaml"))
    base = str(next(Path(recipe.storage, "bases").iterdir()))
    network, tokenizer = backbone.load(base, None, "fp32")
    text = read_plain_text("jobs/recipes/demo.txt", "evaluate.text")
    assert compute_perplexity(network, tokenizer, text, recipe.model.max_tokens) == pytest.approx(
        measured[0][1], rel=1e-4
    )
    last = adapter.load(network, max((whole / "checkpoints").iterdir()) / "adapter")
    assert compute_perplexity(last, tokenizer, text, recipe.model.max_tokens) == pytest.approx(
        measured[-1][1], rel=1e-4
    )
    assert "Perplexity of the text" in (whole / "report.html").read_text()
    assert "perplexity of text" in (whole / "schedule.svg").read_text()
    registry = Registry.from_recipe(recipe)
    [run_id] = [v.run_id for v in registry.versions() if v.tags["run"] == str(whole)]
    logged = registry.client.get_metric_history(str(run_id), "perplexity")
    assert [(m.step, m.value) for m in sorted(logged, key=lambda m: m.step)] == measured


def test_the_adapter_loads_with_peft(whole: Path) -> None:
    model = AutoPeftModelForCausalLM.from_pretrained(
        max((whole / "checkpoints").iterdir()) / "adapter"
    )
    weights = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    assert weights
    assert any(bool(p.abs().max() > 0) for p in weights.values())


def test_the_registered_version_has_its_lineage(whole: Path, place: Path) -> None:
    registry = Registry.from_recipe(load_recipe(str(place / "recipe.yaml")))
    [version] = [v for v in registry.versions() if v.tags["run"] == str(whole)]
    newest = max((whole / "checkpoints").iterdir())
    assert version.tags["ledger_digest"] == checkpoint.read_ledger(str(newest)).fingerprint()
    assert version.tags["corpus_version"] == "1"
    assert {"base", "recipe_digest", "corpus_fingerprint"} <= set(version.tags)
    assert find_version(registry, "candidate", str(whole)) == version
    run = registry.client.get_run(str(version.run_id))
    assert run.info.status == "FINISHED"
    assert {"report.html", "schedule.svg", "audit.json"} <= {
        artifact.path for artifact in registry.client.list_artifacts(run.info.run_id)
    }
    assert "loss" in run.data.metrics


def test_a_finished_run_that_is_started_again_stays_as_it_is(whole: Path, place: Path) -> None:
    before = (whole / "trace.jsonl").read_bytes()
    ended = jobs.run_here("cpt", place / "recipe.yaml")
    assert "trained to the end already" in ended.stdout
    assert (whole / "trace.jsonl").read_bytes() == before


def test_another_recipe_or_corpus_for_the_same_run_is_refused(whole: Path, place: Path) -> None:
    changed = jobs.refused(
        "cpt",
        place / "recipe.yaml",
        "--schedule.lr_max",
        "2e-3",
    )
    assert "schedule.lr_max: 0.001 -> 0.002" in changed
    jobs.run_here(
        "build_corpus",
        place / "recipe.yaml",
        "--corpus",
        place / "other",
        "--data.root",
        place / "others",
        "--simulate.users",
        "80",
    )
    other = jobs.refused(
        "cpt",
        place / "recipe.yaml",
        "--corpus",
        place / "other",
    )
    assert "the run small is on" in other


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        ("cpt", ["--train.global_bach", "3"], "did you mean --train.global_batch?"),
        (
            "cpt",
            ["--data.format", "root", "--data.root", "nowhere", "--corpus", "PLACE/none"],
            "no corpus here",
        ),
        ("cpt", ["--corpus-version", "7", "--run", "new"], "no version 7"),
        (
            "cpt",
            ["--data.domains", "Garden,Zoo", "--run", "zoo"],
            "no training samples of domain Zoo",
        ),
        ("cpt", ["--model.base", "./nowhere", "--run", "base"], "no config.json in"),
        (
            "cpt",
            ["--evaluate.text", "nowhere.txt", "--run", "mute"],
            "evaluate.text: nothing at nowhere.txt",
        ),
        ("append_domain", ["--text", "nowhere.txt"], "--text: nothing at nowhere.txt"),
        ("cpt", ["--corpus-version", "0", "--run", "bare"], "jobs/append_domain.py --text"),
        ("cpt", ["--run", "../x"], "run: "),
        ("cpt", ["--train.collective_timeout_s", "9"], "train.collective_timeout_s"),
        ("cpt", ["--train.collective_timeout_s", "0"], "train.collective_timeout_s"),
        (
            "cpt",
            ["--run", "on", "--continue-from", "PLACE/runs/small/checkpoints/000000000001-0"],
            "never completed",
        ),
        (
            "build_corpus",
            ["--data.format", "root", "--data.root", "nowhere", "--corpus", "PLACE/none"],
            "nowhere",
        ),
        ("build_corpus", ["--data.k_core", "500", "--corpus", "PLACE/none"], "k_core"),
        ("control", ["hold"], "has finished"),
        ("control", ["--run", "nobody"], "no run nobody"),
        ("anneal", ["--from", "PLACE/runs/small"], "not a checkpoint"),
        ("evaluate", ["--evaluate.domain", "Zoo"], "Zoo"),
        ("promote", ["--rollback"], ""),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_1(
    whole: Path,
    place: Path,
    job: str,
    arguments: list[str],
    message: str,
) -> None:
    """Arguments in which PLACE is replaced by the folder of the small run."""
    options = [argument.replace("PLACE", str(place)) for argument in arguments]
    assert message in jobs.refused(job, place / "recipe.yaml", *options)


def test_corpus_and_storage_on_s3_where_samples_share_tokens(
    whole: Path, tmp_path: Path, s3: str
) -> None:
    """Under ZeRO 3, with both inexact modes: the audit still counts every sample.

    The trace has the tokens of the samples beside those that were computed. Samples of one domain
    are trained in two passes, and others not at all.
    """
    data = {
        "format": "simulated",
        "domains": ["Garden", "Office", "Sports"],
        "held_out": ["Games"],
        "users_together": True,
    }
    train = {
        "global_batch": 32,
        "zero_stage": 3,
        "targets_per_pass": 4,
        "shared_candidates": 8,
    }
    places = {
        "data.root": f"{s3}/shoppers",
        "corpus": f"{s3}/corpus",
        "storage": f"{s3}/runs",
        "mlflow.uri": f"sqlite:///{tmp_path}/s3.db",
    }
    weights = {"domain/Garden": 0.6, "domain/Office": 0, "domain/Sports": 0, "mixed": 0.05}
    schedule = {"lr_max": 1e-3, "epochs": 2, "weights": weights}
    recipe = jobs.recipe(tmp_path, data=data, train=train, schedule=schedule)
    options = [part for key, value in places.items() for part in (f"--{key}", value)]
    ended = jobs.run("cpt", recipe, *options, "--train.profile", "2", environment=dict(os.environ))
    assert re.search(r"audit: (\d[\d,]*) planned, 0 missing, 0 repeated", ended.stdout)
    run = f"{s3}/runs/small"
    sources = json.loads(read_text(join(run, "audit.json")))["sources"]
    [garden] = [s for s in Corpus.open(places["corpus"]).streams() if s.source == "domain/Garden"]
    assert sources.keys() == {"domain/Garden", "mixed"}
    assert sources["domain/Garden"]["0"]["trained"] == round(1.2 * garden.rows)
    newest = list_names(join(run, "checkpoints"))[-1]
    checkpoint.verify(join(run, "checkpoints", newest))
    assert "<html" in read_text(join(run, "report.html"))
    profile = json.loads(gzip.decompress(read_bytes(join(run, "profile", "0.json.gz"))))
    assert {event["name"] for event in profile["traceEvents"] if "name" in event} >= {"aten::mm"}
    trace = [json.loads(line) for line in read_text(join(run, "trace.jsonl")).splitlines()]
    computed = sum(row["computed_tokens"] for row in trace)
    assert computed < 0.7 * sum(row["tokens"] for row in trace)
    assert all(row["computed_tokens"] == row["tokens"] for row in jobs.lines(whole / "trace.jsonl"))
    [version] = Registry.from_recipe(load_recipe(str(recipe), places)).versions()
    assert version.tags["inexact"] == "train.targets_per_pass 4, train.shared_candidates 8"


def failures(folder: Path) -> list[str]:
    """Returns the reasons of a run's events `failed`."""
    return [e["because"] for e in jobs.lines(folder / "events.jsonl") if e["event"] == "failed"]


@pytest.mark.usefixtures("one_cluster")
def test_a_run_that_diverges_ends_at_once(place: Path) -> None:
    folder = place / "runs" / "wild"
    err = jobs.run_here(
        "cpt",
        place / "recipe.yaml",
        "--run",
        "wild",
        "--schedule.lr_max",
        "1e30",
        "--workers",
        "1",
        code=2,
    ).stderr
    [because] = failures(folder)
    assert "lower schedule.lr_max" in because
    assert (
        err.splitlines()[-1]
        == f"fault: DivergenceError: {because}; the same command goes on from the last checkpoint; "
        "see docs/operations/training-failures.md"
    )
    # A second group of workers would have measured it again.
    assert [
        e["samples"]
        for e in jobs.lines(folder / "events.jsonl")
        if e["event"] == "perplexity_measured"
    ] == [0]
    assert json.loads((folder / "status.json").read_text())["state"] == "ended"


@pytest.mark.usefixtures("one_cluster")
def test_a_base_that_a_worker_cannot_load_is_reported_once(whole: Path, place: Path) -> None:
    folder, base = place / "runs" / "weightless", place / "weightless"
    shutil.copytree(next((place / "runs" / "bases").iterdir()), base)
    weights = load_file(base / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    options = ("--run", "weightless", "--model.base", base, "--workers", "1")
    err = jobs.run_here("cpt", place / "recipe.yaml", *options, code=1).stderr
    [because] = failures(folder)
    assert because.startswith(f"model.base: {base} lacks 1 weights of the model: model.norm.weight")
    assert err == f"error: {because}\nsee docs/reference/recipe-keys.md\n"
