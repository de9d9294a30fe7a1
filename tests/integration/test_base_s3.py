"""A base in an object store is known by the ETags of its files, in every process."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster.errors import RunError
from cluster.storage import upload
from cprec.model import backbone
from cprec.model.base_files import identify
from tests.integration import jobs
from tests.unit.cprec.model.bases import write_base

NORM = """
import sys
from cprec.model import backbone
model, _ = backbone.load(sys.argv[1], None, "fp32")
print(float(model.get_parameter("model.norm.weight").detach()[0]))
"""


def norm_in_a_new_process(uri: str) -> float:
    command = [sys.executable, "-c", NORM, uri]
    done = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def test_a_base_replaced_at_its_uri_is_noticed_everywhere(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("PYTHONPATH", f"{jobs.ROOT}:{jobs.ROOT / 'platform'}")
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
