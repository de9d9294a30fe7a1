"""A base in an object store is known by the ETags of its files, one of a hub by its commit."""

import shutil
import tempfile
from pathlib import Path

import pytest

from cluster.errors import RunError
from cluster.storage import upload
from cprec.model import backbone
from cprec.model.base_files import identify
from tests.integration import jobs
from tests.unit.cprec.model.bases import write_base

HUB = """
import sys
from cprec.model import backbone, base_files
revision = base_files.identify(sys.argv[1], None).revision
print(revision, type(backbone.load(sys.argv[1], revision, "fp32")[0]).__name__)
"""

NORM = """
import sys
from cprec.model import backbone
model, _ = backbone.load(sys.argv[1], None, "fp32")
print(float(model.get_parameter("model.norm.weight").detach()[0]))
"""


def norm_in_a_new_process(uri: str) -> float:
    out = jobs.run_python("-c", NORM, uri, environment=jobs.worker_environment(), timeout_s=120)
    return float(out.split()[-1])


def test_a_hub_id_is_pinned_to_the_commit_of_the_local_cache(tmp_path: Path) -> None:
    commit = "a" * 40
    repository = tmp_path / "hub" / "models--org--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    write_base(repository / "snapshots" / commit)
    out = jobs.run_python(
        "-c",
        HUB,
        "org/small",
        environment={
            **jobs.worker_environment(),
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
        },
        timeout_s=120,
    )
    assert out.split()[-2:] == [commit, "LlamaForCausalLM"]


def test_a_base_replaced_at_its_uri_is_noticed_everywhere(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    uri = f"{s3}/base"
    base = write_base(tmp_path / "base")
    upload(base, uri)
    before = identify(uri, None)
    model, _ = backbone.load(uri, before.revision, "fp32")
    upload(base, uri)  # the same content again is the same base
    assert identify(uri, None) == before
    assert norm_in_a_new_process(uri) == 1.0
    model.get_parameter("model.norm.weight").data.fill_(3.0)
    model.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", base / "model.safetensors")
    upload(base, uri)
    assert norm_in_a_new_process(uri) == 3.0
    model, _ = backbone.load(uri, None, "fp32")
    assert float(model.get_parameter("model.norm.weight").detach()[0]) == 3.0
    with pytest.raises(RunError, match="is not the base that this was trained on"):
        backbone.load(uri, before.revision, "fp32")
