"""The registry on a real MLflow on SQLite, and with an MLflow that cannot be reached."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import RecipeError, RunError
from cluster.storage import read_text
from corpus.store.commits import Commit
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream.search_plan import SearchPlan, lock_identity
from cprec.encode.prompt import TABLE1
from cprec.tracking.registry import Registry
from cprec.tracking.tracker import Tracker
from cprec.tracking.version_names import find_version
from cprec.workflows.doctor.mlflow_check import check_mlflow
from cprec.workflows.finetune import _require_unregistered
from cprec.workflows.pretraining.prepare import require_unregistered


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("it's storage")


def registry(storage: Path, model: str) -> Registry:
    """Returns the registry of a model with the name, which each test has for itself."""
    return Registry.from_recipe(
        Recipe.model_validate({"storage": str(storage), "mlflow": {"model": model}})
    )


def test_a_checkpoint_is_registered_once(storage: Path) -> None:
    models = registry(storage, "once")
    first = models.register(
        f"{storage}/run/checkpoints/100-1", {"base": "tiny", "corpus_version": "0"}
    )
    again = registry(storage, "once").register(
        f"{storage}/run/checkpoints/100-1", {"base": "other"}
    )
    assert first == again == 1
    assert [v.tags for v in models.versions()] == [
        {"base": "tiny", "corpus_version": "0", "checkpoint": f"{storage}/run/checkpoints/100-1"}
    ]


REGISTER = """
import sys, time
from cprec.config.recipe import Recipe
from cprec.tracking.registry import Registry

storage, model = sys.argv[1:]
recipe = Recipe.model_validate({"storage": storage, "mlflow": {"model": model}})
registry = Registry.from_recipe(recipe)
registry.versions()
print("ready", flush=True)
sys.stdin.readline()
print([registry.register(f"{storage}/run/checkpoints/{i}-0", {"base": "tiny"}) for i in range(8)])
"""


def test_processes_that_register_one_checkpoint_together_make_one_version(storage: Path) -> None:
    registry(storage, "before").register("/checkpoints/a", {})  # there is a store
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REGISTER, str(storage), "together"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    first, second = (process.communicate(timeout=120)[0] for process in processes)
    versions = registry(storage, "together").versions()
    assert [v.checkpoint for v in versions] == [
        f"{storage}/run/checkpoints/{i}-0" for i in range(8)
    ]
    assert json.loads(first) == json.loads(second) == [v.number for v in versions]


def test_a_version_that_a_process_left_when_it_died_is_removed_unless_it_is_in_use(
    storage: Path,
) -> None:
    models, checkpoint = registry(storage, "left"), f"{storage}/run/checkpoints/100-0"
    assert models.register(checkpoint, {}) == 1
    for _ in range(2):
        models._create_version(checkpoint, {}, None)
    models.set_alias("champion", 3)
    assert models.register(checkpoint, {}) == 1
    assert [v.number for v in models.versions()] == [1, 3]
    models._delete_version(2)  # as another process finds it


def test_a_run_whose_folder_is_gone_and_whose_version_is_not_does_not_start_over(
    storage: Path,
) -> None:
    models, run = registry(storage, "gone"), f"{storage}/gone"
    require_unregistered(models, run)
    models.register(f"{run}/checkpoints/000000000100-1", {})
    with pytest.raises(RunError, match="gone version 1 is one of this run"):
        require_unregistered(models, run)
    require_unregistered(models, f"{run}-2")
    Path(run, "checkpoints", "000000000100-1").mkdir(parents=True)
    require_unregistered(models, run)


def test_a_search_whose_folder_is_gone_and_whose_version_is_not_does_not_start_over(
    storage: Path,
) -> None:
    models, uri = registry(storage, "gone-Games"), f"{storage}/gone/finetune/Games/cprec"
    corpus = Corpus("corpus", 0, (Commit(0, {"fingerprint": "f"}, (), frozenset(), "", 0),))
    plan = SearchPlan(
        Recipe(), corpus, "Games", "cprec", uri, "base", "start", None, (0.1,), TABLE1
    )
    _require_unregistered(plan, models)
    models.register(f"{uri}/trials/a/checkpoints/000000000100-1", {})
    with pytest.raises(RunError, match="gone-Games version 1 is one of this search"):
        _require_unregistered(plan, models)
    _require_unregistered(replace(plan, uri=f"{uri}2"), models)
    lock_identity(plan)
    _require_unregistered(plan, models)


def test_a_run_starts_while_nobody_knows_its_versions(storage: Path) -> None:
    away = Registry("http://127.0.0.1:9", "cprec", "away")
    require_unregistered(away, f"{storage}/away")


@pytest.mark.parametrize(
    "checkpoint", ["s3://bucket/runs/cpt/checkpoints/100-1", "/somewhere/checkpoints/100-1"]
)
def test_the_version_points_at_the_weights_and_copies_nothing(
    storage: Path, checkpoint: str
) -> None:
    models = registry(storage, f"pointer-{len(checkpoint)}")
    models.register(checkpoint, {})
    assert models.version(1).checkpoint == checkpoint


def test_the_candidate_of_a_run_is_its_own_newest_version(storage: Path) -> None:
    """Versions of earlier releases have no tag `run`, and one alias `candidate` for all runs."""
    models = registry(storage, "candidate")
    trunk, other = f"{storage}/trunk", f"{storage}/trunk-2"
    with pytest.raises(RunError, match=r"no candidate of run trunk \(.*versions: none yet"):
        find_version(models, "candidate", trunk)
    models.register(f"{trunk}/checkpoints/100-0", {})
    models.client.set_registered_model_alias("candidate", "candidate", "1")
    models.register(f"{trunk}/checkpoints/200-0", {"run": trunk})
    models.register(f"{other}/checkpoints/100-0", {"run": other})
    models.register(f"{trunk}/checkpoints/100-0", {})
    registry(storage, "other").register(f"{trunk}/finetune/checkpoints/5-0", {"run": trunk})

    def number(name: str, run: str) -> tuple[str, int]:
        version = find_version(models, name, run)
        assert version is not None
        return version.model, version.number

    assert number("candidate", trunk) == ("candidate", 2)
    assert number("candidate", other) == ("candidate", 3)
    assert number("models:/candidate@candidate", trunk) == ("candidate", 2)
    assert number("models:/other@candidate", trunk) == ("other", 1)
    assert number("1", other) == number("models:/candidate/1", other) == ("candidate", 1)
    assert number(f"{trunk}/checkpoints/200-0", other) == ("candidate", 2)
    with pytest.raises(RunError, match=rf"no candidate of run new .*3 \(run {other}\)"):
        number("candidate", f"{storage}/new")
    with pytest.raises(RunError, match=r"no champion yet; run jobs/promote\.py"):
        number("champion", trunk)
    models.set_alias("champion", 3)
    assert number("champion", trunk) == number("models:/candidate@champion", trunk)
    assert find_version(models, "best", trunk) is find_version(models, "-1", trunk) is None
    for name in ("models:/candidate", "models:/candidate@best", "models:/../1"):
        with pytest.raises(RecipeError, match="give candidate"):
            number(name, trunk)
    # The alias of earlier releases would go on naming one version for all runs.
    assert set(models.client.get_registered_model("candidate").aliases) == {"champion"}


def test_reading_creates_nothing(tmp_path: Path) -> None:
    models = registry(tmp_path / "runs", "nothing")
    assert (models.versions(), models.version_by_alias("champion")) == ([], None)
    with pytest.raises(RunError, match="versions: none yet"):
        models.version(1)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_version_is_named_with_those_that_exist(storage: Path) -> None:
    models = registry(storage, "unknown")
    with pytest.raises(RunError, match="no version 7; versions: none yet"):
        models.version(7)
    models.register("/checkpoints/a", {})
    with pytest.raises(RunError, match="no version 7; versions: 1"):
        models.version(7)


def test_a_run_is_tracked_once_over_restarts(storage: Path) -> None:
    models = registry(storage, "tracked")
    run = f"{storage}/cpt"
    for attempt, loss in enumerate((2.0, 1.0)):
        tracker = Tracker(models, run, "cpt")
        tracker.log_params({"train.global_batch": 128, "attempt": attempt})
        tracker.log_metrics({"loss": loss}, step=attempt)
        tracker.log_text("note.txt", "<b>")
        assert tracker.finish("FINISHED") is None
    runs = models.client.search_runs(
        [models._find_or_create_experiment()], filter_string="attributes.run_name = 'cpt'"
    )
    assert [r.data.params for r in runs] == [{"train.global_batch": "128", "attempt": "0"}]
    assert [m.value for m in models.client.get_metric_history(runs[0].info.run_id, "loss")] == [
        2.0,
        1.0,
    ]
    assert (runs[0].info.status, runs[0].data.metrics["loss"]) == ("FINISHED", 1.0)


def test_runs_of_one_name_in_two_places_stay_apart(storage: Path) -> None:
    models = registry(storage, "apart")
    assert models.start_run("/a/same", "same") != models.start_run("/b/same", "same")
    assert models.start_run("/a/same", "same") == models.start_run("/a/same", "same")


def test_records_that_mlflow_did_not_take_are_sent_later(storage: Path) -> None:
    unreachable = Registry("http://127.0.0.1:9", "cprec", "away")
    tracker = Tracker(unreachable, "/runs/late", "late")
    tracker.log_metrics({f"m{i}": i / 7 for i in range(1500)}, step=1)
    assert not tracker.flush()
    assert tracker.last_error is not None
    assert "Connection refused" in tracker.last_error
    message = tracker.finish("FAILED")
    assert message is not None
    assert "1500 record(s)" in message
    tracker._registry = registry(storage, "away")  # MLflow can be reached again
    assert tracker.finish("FAILED") is None
    run = tracker._registry.client.get_run(str(tracker.run_id))
    assert run.info.status == "FAILED"
    assert len(run.data.metrics) == 1500
    assert math.isclose(run.data.metrics["m3"], 3 / 7)


def test_object_storage_needs_a_tracking_server() -> None:
    with pytest.raises(RecipeError, match=r"mlflow\.uri"):
        Registry.from_recipe(Recipe.model_validate({"storage": "s3://bucket/runs"}))


@pytest.mark.parametrize("uri", ["out/mlruns", "/mlruns", "file:///mlruns", "foo://host"])
def test_a_folder_or_an_unknown_store_is_no_registry(uri: str) -> None:
    with pytest.raises(RecipeError, match=f"mlflow.uri: {uri} is neither .*http.*sqlite"):
        Registry.from_recipe(Recipe.model_validate({"mlflow": {"uri": uri}}))


def test_artifacts_of_a_run_on_an_object_store_are_stored_there(s3: str, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"storage": f"{s3}/runs", "mlflow": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    )
    tracker = Tracker(Registry.from_recipe(recipe), f"{s3}/runs/cpt", "cpt")
    tracker.log_text("report.html", "<p>")
    assert tracker.finish("FINISHED") is None
    assert read_text(f"{s3}/runs/mlflow/{tracker.run_id}/artifacts/report.html") == "<p>"


def test_the_doctor_leaves_a_registry_as_it_was(storage: Path) -> None:
    recipe = Recipe.model_validate({"storage": str(storage), "mlflow": {"model": "examined"}})
    models = registry(storage, "examined")
    number = models.register(f"{storage}/run/checkpoints/100-1", {"base": "tiny"})
    before = [model.name for model in models.client.search_registered_models()]
    [finding] = check_mlflow(recipe)
    assert finding.status == "ok", finding
    assert [version.number for version in models.versions()] == [number]
    assert [model.name for model in models.client.search_registered_models()] == before
