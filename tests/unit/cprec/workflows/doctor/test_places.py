"""Storage, corpus, base and MLflow on this machine: whole, damaged, full, read-only and away."""

import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.errors import CorpusError, RecipeError
from corpus.build import simulate_and_build
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import load_recipe
from cprec.encode.prompt import TABLE1
from cprec.model import tiny
from cprec.workflows.doctor.examination import plan_checks
from cprec.workflows.doctor.findings import Check, run_checks
from cprec.workflows.doctor.input_checks import check_base, check_corpus
from cprec.workflows.doctor.mlflow_check import check_mlflow
from cprec.workflows.doctor.storage_checks import check_commits, check_storage
from tests.integration import jobs
from tests.unit.failing_disk import FOREVER, FailingDisk


def statuses(check: Check) -> dict[str, str]:
    report = run_checks([check], lambda line: None)
    assert not report.faults
    return {finding.check: finding.status for finding in report.findings}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(str(jobs.recipe(tmp_path)))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a base."""
    place = tmp_path_factory.mktemp("built")
    recipe = load_recipe(str(jobs.recipe(place)))
    corpus = simulate_and_build(recipe.data, recipe.simulate, 0, recipe.corpus, lambda line: None)
    tiny.build(corpus.read_titles(), recipe.tiny, 0, place / "base", TABLE1)
    return place


@pytest.fixture
def inputs(built: Path, tmp_path: Path) -> Recipe:
    """A recipe with a copy of the corpus and the base, which a test may damage."""
    for name in ("corpus", "base"):
        shutil.copytree(built / name, tmp_path / name)
    return load_recipe(
        str(jobs.recipe(tmp_path, model={"base": f"{tmp_path}/base", "max_tokens": 512}))
    )


# -- storage


def test_a_folder_that_is_not_there_yet_is_well_and_still_not_there_afterwards(
    tmp_path: Path,
) -> None:
    (tmp_path / "kept").mkdir()
    uri = f"{tmp_path}/kept/a/b/runs"
    findings = list(check_storage(uri)) + list(check_commits(uri))
    assert [finding.check for finding in findings] == [
        "storage: rights",
        "storage: speed",
        "storage: conditions",
        "corpus: commits",
    ]
    assert findings[0].status == findings[2].status == findings[3].status == "ok"
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


@pytest.mark.parametrize(
    ("kind", "problem"), [("read-only", "no access"), ("full", "make room there")]
)
def test_a_disk_that_takes_no_file_fails_storage_and_only_warns_of_the_corpus(
    tmp_path: Path, kind: str, problem: str
) -> None:
    uri = f"{tmp_path}/runs"
    with FailingDisk(tmp_path, kind, 0, FOREVER).installed():
        report = run_checks(
            [
                Check("storage", lambda: check_storage(uri), 60),
                Check("corpus: commits", lambda: check_commits(uri), 60),
            ],
            lambda line: None,
        )
    assert [(f.check, f.status) for f in report.findings] == [
        ("storage", "fail"),
        ("corpus: commits", "warn"),
    ]
    assert problem in report.findings[0].seen
    assert not report.faults


# -- corpus and base


def test_whole_inputs_are_well(inputs: Recipe) -> None:
    corpus = list(check_corpus(inputs))
    assert [finding.check for finding in corpus] == ["corpus: version", "corpus: schema"]
    assert "version 0 of" in corpus[0].seen
    base = list(check_base(inputs))
    assert [finding.check for finding in base] == ["base: files", "base: tokenizer"]
    assert {finding.status for finding in corpus + base} == {"ok"}


def test_what_a_run_makes_first_is_well(recipe: Recipe) -> None:
    assert [f.status for f in (*check_corpus(recipe), *check_base(recipe))] == ["ok", "ok"]


def test_a_corpus_that_is_not_built_yet_is_a_warning_and_the_base_is_looked_at(
    inputs: Recipe,
) -> None:
    shutil.rmtree(inputs.corpus)
    read = inputs.model_copy(update={"data": inputs.data.model_copy(update={"format": "root"})})
    checks = {check.name: check for check in plan_checks(read)}
    assert statuses(checks["corpus"]) == {"corpus": "warn"}
    assert statuses(checks["base"]) == {"base: files": "ok", "base: tokenizer": "warn"}


def first_file(recipe: Recipe) -> Path:
    return Path(Corpus.open(recipe.corpus).streams("train")[0].files[0].uri)


def test_a_column_that_is_missing_in_a_file_is_named(inputs: Recipe) -> None:
    file = first_file(inputs)
    pq.write_table(pq.read_table(file).drop_columns(["target"]), file)
    with pytest.raises(CorpusError, match=rf"{file.name}: column target is missing"):
        list(check_corpus(inputs))


def test_a_file_that_was_cut_is_named(inputs: Recipe) -> None:
    file = first_file(inputs)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CorpusError, match=file.name):
        list(check_corpus(inputs))


def test_a_base_whose_weights_were_cut_is_named(inputs: Recipe) -> None:
    weights = Path(inputs.model.base) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(RecipeError, match=r"model\.safetensors"):
        list(check_base(inputs))


def test_samples_that_do_not_fit_into_the_context_are_refused(inputs: Recipe) -> None:
    model = inputs.model.model_copy(update={"max_tokens": 1 << 20})
    with pytest.raises(RecipeError, match=r"model\.max_tokens"):
        list(check_base(inputs.model_copy(update={"model": model})))


# -- MLflow


def test_sqlite_that_is_not_there_yet_is_not_made(recipe: Recipe, tmp_path: Path) -> None:
    [finding] = check_mlflow(recipe)
    assert (finding.status, "none yet" in finding.seen) == ("ok", True)
    assert not (tmp_path / "runs").exists()


def test_an_object_store_without_a_server_is_refused(recipe: Recipe) -> None:
    remote = recipe.model_copy(update={"storage": "s3://bucket/runs"})
    with pytest.raises(RecipeError, match=r"mlflow\.uri"):
        list(check_mlflow(remote))


def served_by(recipe: Recipe, port: int) -> Check:
    """Returns the check of an MLflow server on a port."""
    mlflow = recipe.mlflow.model_copy(update={"uri": f"http://127.0.0.1:{port}"})
    changed = recipe.model_copy(update={"mlflow": mlflow})
    [check] = [check for check in plan_checks(changed) if check.name == "mlflow: registry"]
    return check


class Broken(BaseHTTPRequestHandler):
    """A server that answers every request with 403."""

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(403)
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"not you!\n")

    do_GET = do_POST = do_PATCH = do_DELETE = _refuse  # noqa: N815  # names of the library

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def broken_server() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_server_that_refuses_is_a_failure(recipe: Recipe, broken_server: int) -> None:
    report = run_checks([served_by(recipe, broken_server)], lambda line: None)
    [finding] = report.findings
    assert finding.status == "fail"
    assert "403" in finding.seen
    assert not report.faults


def test_a_server_that_never_answers_is_a_failure_within_the_limit(recipe: Recipe) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        check = served_by(recipe, silent.getsockname()[1])
        limited = Check(check.name, check.look, 0.5)
        assert statuses(limited) == {"mlflow: registry": "fail"}
