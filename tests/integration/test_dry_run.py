"""--dry-run of every job: nothing is written anywhere, and what the run refuses is refused."""

import hashlib
import json
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from corpus.build import simulate_and_build
from cprec.config.command import DRY_RUN
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import load_recipe
from cprec.encode.prompt import TABLE1
from cprec.model import tiny
from cprec.tracking.registry import Registry
from tests.integration import jobs
from tests.integration.workflows.test_evaluate_and_promote import register

# PEFT uses a deprecated name of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


class Place:
    """A folder that holds all that a job could write to, temporary files included."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.recipe = jobs.recipe(folder)
        self._monkeypatch = monkeypatch
        monkeypatch.chdir(jobs.ROOT)
        monkeypatch.syspath_prepend(str(jobs.ROOT / "jobs"))
        (folder / "tmp").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))

    def snapshot(self) -> dict[str, str]:
        """Digest of every file by path; folders too, and the names in the working directory."""
        files = {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in self.folder.rglob("*")
        }
        return files | {path.name: "" for path in jobs.ROOT.iterdir()}

    def dry_run(self, job: str, *arguments: str) -> int:
        """Runs a job with --dry-run in this process; returns its exit code."""
        before = self.snapshot()
        argv = [f"jobs/{job}.py", str(self.recipe), "--dry-run", *arguments]
        self._monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(jobs.ROOT / "jobs" / f"{job}.py"), run_name="__main__")
        assert self.snapshot() == before
        assert isinstance(ended.value.code, int)
        return ended.value.code


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_where_nothing_is_yet(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(code: int, job: str, *arguments: str) -> str:
        assert place.dry_run(job, *arguments) == code, capsys.readouterr().err
        output = capsys.readouterr()
        assert output.err.endswith(f"{DRY_RUN}\n") == (code == 0)
        return output.out + output.err

    assert "Garden" in shown(0, "build_corpus")
    assert "plan: W = " in shown(0, "cpt")
    for job in ("evaluate", "promote", "tune_lr", "append_domain"):
        assert "error: " in shown(1, job)
    assert "not under way" in shown(1, "control", "hold")
    assert "(nothing is there yet), the models cprec" in shown(0, "console")
    assert "the data root" in shown(1, "build_corpus", "--corpus", f"{place.folder}/shoppers")
    assert "data.num_candidates to" in shown(1, "cpt", "--data.num_candidates", "39")
    # Interactions of somebody else, where the simulation would write.
    (place.folder / "shoppers" / "items").mkdir(parents=True)
    (place.folder / "shoppers" / "items" / "Garden.parquet").write_text("mine")
    for job in ("build_corpus", "cpt"):
        assert "not overwritten" in shown(1, job)


def test_where_a_version_is_registered(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Recipe = load_recipe(str(place.recipe))
    corpus = simulate_and_build(recipe.data, recipe.simulate, 0, recipe.corpus, print)
    tiny.build(corpus.read_titles(), recipe.tiny, 0, place.folder / "base", TABLE1)
    (place.folder / "runs" / "cpt").mkdir(parents=True)
    registry = Registry.from_recipe(recipe)
    assert register(registry, recipe, place.folder, 1, 0.05) == 1
    (place.folder / "titles.txt").write_text("oak lamp\nsteel mug\n")
    text_only = ("--candidates", f"{place.folder}/titles.txt", "--history", "red mug")
    checkpoint = f"{place.folder}/runs/cpt/checkpoints/000000000100-0"
    capsys.readouterr()

    def shown(code: int, job: str, *arguments: str) -> str:
        assert place.dry_run(job, *arguments) == code, capsys.readouterr().err
        output = capsys.readouterr()
        return output.out + output.err

    candidate = "version 1 of cprec"
    assert candidate in shown(0, "evaluate", "--evaluate.models", "base,candidate", "--run", "cpt")
    assert candidate in shown(0, "evaluate", "--evaluate.models", checkpoint)
    assert candidate in shown(0, "promote", "--run", "cpt")
    assert candidate in shown(0, "promote", "--model", "models:/cprec/1")
    assert candidate in shown(0, "tune_lr", "--run", "cpt")
    assert candidate in shown(0, "tune_lr", "--finetune.start", "models:/cprec/1")
    assert "fresh weights" in shown(0, "tune_lr", "--finetune.start", "fresh")
    assert "version-1" in shown(0, "recommend", "--model", "1", *text_only)
    assert "version-1" in shown(0, "merge", "--model", "1", "--out", f"{place.folder}/merged")
    assert "would rank" in shown(0, "batch_recommend", "--model", "1")
    assert "CPREC_SERVE_TOKEN: none given" in shown(1, "serve", "--model", "1")
    token_file = place.folder / "token"
    token_file.write_text("a-token-of-this-test")
    monkeypatch.setenv("CPREC_SERVE_TOKEN_FILE", str(token_file))
    assert "20 retrieved items, by version-1" in shown(0, "serve", "--model", "1")
    assert "plan: W = " in shown(0, "cpt")
    assert "exists already" in shown(0, "build_corpus")
    assert "page: " not in shown(0, "build_corpus", "--inspect")
    listed = json.loads(shown(0, "list", "--json").removesuffix(f"{DRY_RUN}\n"))
    assert listed["runs"] == []
    assert [row["version"] for row in listed["corpora"]] == [0]
    assert [(row["model"], row["checkpoint"]) for row in listed["models"]] == [
        ("cprec", checkpoint)
    ]
    other = ("--data.root", f"{place.folder}/more", "--data.domains", "Music")
    assert "would make version 1" in shown(0, "append_domain", *other)
    assert "negatives are wanted" in shown(
        1, "append_domain", *other, "--simulate.interactions_per_domain", "35"
    )

    for job, model in (("promote", "--model"), ("tune_lr", "--finetune.start")):
        assert "no candidate of run small" in shown(1, job)
        assert "no candidate of run small" in shown(1, job, model, "candidate")
        assert "give " in shown(1, job, model, "nonsense")
        assert "no version 9" in shown(1, job, model, "9")
    assert "no champion before" in shown(1, "promote", "--rollback")
    forgetting = ("--model", "1", "--gate.max_forgetting", "1.0")
    assert "evaluate.text" in shown(1, "promote", *forgetting)
    assert "something already" in shown(1, "merge", "--model", "1", "--out", str(place.folder))
    assert "zero_stage" in shown(1, "tune_lr", "--finetune.start", "1", "--train.zero_stage", "3")
    for name in ("base", "llara-untuned"):
        command = ("tune_lr", "--finetune.start", "1", "--finetune.name", name)
        assert "another name" in shown(1, *command)
    nowhere = ("--model.base", f"{place.folder}/nowhere")
    assert "model.base" in shown(1, "cpt", *nowhere)
    assert "model.base" in shown(1, "tune_lr", "--finetune.start", "fresh", *nowhere)
    assert "model.base" in shown(1, "evaluate", "--evaluate.models", "base", *nowhere)
    known = {"domain": "Books", "corpus_fingerprint": None, "corpus_version": 0, "count": 40}
    Path(checkpoint, "behaviour").mkdir()
    Path(checkpoint, "behaviour", "items.json").write_text(json.dumps(known))
    assert "hybrid model of domain Books" in shown(1, "evaluate", "--evaluate.models", "1")
    assert "hybrid model of domain Books" in shown(1, "promote", "--model", "1")
    assert "items of Books by their ids" in shown(1, "recommend", "--model", "1", *text_only)
    assert "domain Books has no" in shown(1, "batch_recommend", "--model", "1")
    assert "domain Books has no" in shown(1, "serve", "--model", "1")
    assert "domain Books has no" in shown(
        1, "merge", "--model", "1", "--out", f"{place.folder}/merged"
    )
    assert "its projector and items are not" in shown(0, "tune_lr", "--finetune.start", "1")
    shutil.rmtree(Path(checkpoint, "behaviour"))
    Path(checkpoint, "manifest.json").unlink()
    for models in ("1", checkpoint):
        assert "never completed" in shown(1, "evaluate", "--evaluate.models", models)
    for job, model in (("promote", "--model"), ("tune_lr", "--finetune.start")):
        assert "never completed" in shown(1, job, model, "1")
    assert "never completed" in shown(1, "recommend", "--model", "1", *text_only)
    shutil.rmtree(corpus.uri)
    assert "error: " in shown(1, "evaluate", "--evaluate.models", "base")
