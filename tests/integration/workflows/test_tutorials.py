"""The tutorials, as they stand in their pages, one after the other in one folder."""

from pathlib import Path

import pytest

from tests.tutorial_page import ROOT, run_page
from tests.unit.cluster.kuberay.render import render
from tests.unit.cluster.kuberay.test_manifests import problems

TUTORIALS = ROOT / "docs" / "tutorials"
PAGES = (
    "your-own-data",
    "a-new-platform-joins",
    "from-candidate-to-champion",
    "on-kubernetes",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorials")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_it_stands(page: str, folder: Path) -> None:
    run_page(TUTORIALS / f"{page}.md", folder)


def test_every_tutorial_is_run() -> None:
    assert {path.stem for path in TUTORIALS.glob("*.md")} == {*PAGES, "README"}


def test_the_manifests_of_the_tutorial_are_valid(folder: Path) -> None:
    objects = render(str(folder / "deploy" / "overlays" / "ray-job"))
    job = next(found for found in objects if found["kind"] == "RayJob")
    assert job["spec"]["entrypoint"] == "python jobs/cpt.py /etc/cprec/recipe.yaml"
    assert "s3://shop-cprec/code/" in job["spec"]["runtimeEnvYAML"]
    assert {found["kind"]: problems(found) for found in objects if problems(found)} == {}
