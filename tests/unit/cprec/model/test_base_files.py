"""A base is known by its content: one that was replaced is noticed, and copies are checked."""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import torch

from cluster import storage
from cluster.errors import RecipeError, RunError
from cluster.storage import upload
from cprec.model import backbone, base_files
from cprec.model.base_files import ensure_local, identify
from tests.unit.cprec.model.bases import edit_json, write_base

URI = "memory://bases/mine"


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each test a temporary folder and an empty store of its own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def retrain(base: Path) -> None:
    """Puts other weights of the same sizes into a base."""
    other = write_base(base.parent / "other", num_hidden_layers=2)
    model, _ = backbone.load(str(other), None, "fp32")
    for parameter in model.parameters():
        parameter.data += 1
    model.save_pretrained(other)
    shutil.copy(other / "model.safetensors", base / "model.safetensors")


def copies() -> list[Path]:
    return sorted(Path(tempfile.gettempdir()).glob("cprec-base-*/*"))


def weight(model: torch.nn.Module) -> torch.Tensor:
    return model.get_parameter("model.norm.weight").detach()


def test_weights_replaced_in_a_directory_are_noticed(base: Path) -> None:
    identity = identify(str(base), None)
    assert identity.revision is not None
    backbone.load(str(base), identity.revision, "fp32")
    assert identify(str(base), None) == identity
    content = bytearray((base / "model.safetensors").read_bytes())
    content[-3] ^= 1  # one bit, in the same size and at the same name
    (base / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(RunError, match=r"is not the base that this was trained on.*put the files"):
        backbone.load(str(base), identity.revision, "fp32")


@pytest.mark.parametrize("remote", [False, True])
def test_a_replaced_tokenizer_is_noticed_without_the_weights(base: Path, remote: bool) -> None:
    place = URI if remote else str(base)
    upload(base, URI)
    identity = identify(place, None)
    backbone.load_tokenizer(place, identity.revision)
    backbone.load_tokenizer.cache_clear()
    edit_json(base / "tokenizer_config.json", model_max_length=7)
    upload(base, URI)
    with pytest.raises(RunError, match="is not the base"):
        backbone.load_tokenizer(place, identity.revision)


def test_files_that_no_library_reads_may_change(base: Path) -> None:
    identity = identify(str(base), None)
    (base / "README.md").write_text("news")
    (base / ".cache.json").write_text("{}")
    (base / "onnx").mkdir()
    assert identify(str(base), None) == identity


def test_a_base_replaced_at_its_uri_is_fetched_again(base: Path) -> None:
    upload(base, URI)
    before = identify(URI, None)
    first, _ = backbone.load(URI, None, "fp32")
    retrain(base)
    upload(base, URI)
    second, _ = backbone.load(URI, None, "fp32")
    torch.testing.assert_close(weight(second), weight(first) + 1)
    with pytest.raises(RunError, match="is not the base"):
        backbone.load(URI, before.revision, "fp32")
    backbone.load(URI, identify(URI, None).revision, "fp32")


def test_a_tokenizer_is_copied_without_the_weights(base: Path) -> None:
    upload(base, URI)
    backbone.load_tokenizer(URI, None)
    assert not [path for copy in copies() for path in copy.glob("*.safetensors")]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "added", "manifest"])
def test_a_damaged_copy_is_fetched_again(
    base: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(base, URI)
    backbone.load_tokenizer.cache_clear()
    first, _ = backbone.load(URI, None, "fp32")
    copy = next(path for path in copies() if (path / "model.safetensors").exists())
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()  # the loaded model may still be mapped from the file
    if damage == "cut":
        weights.write_bytes(content[:-100])
    elif damage == "changed":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "added":
        weights.write_bytes(content)
        (copy / "special_tokens_map.json").write_text("{}")
    elif damage == "manifest":
        weights.write_bytes(content)
        (copy / base_files.COPY_MANIFEST).unlink()
    second, _ = backbone.load(URI, None, "fp32")
    assert "is fetched again" in capsys.readouterr().out
    assert torch.equal(weight(first), weight(second))
    backbone.load(URI, None, "fp32")
    assert "is fetched again" not in capsys.readouterr().out


def test_processes_of_a_machine_may_copy_at_once(base: Path) -> None:
    upload(base, URI)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ensure_local(URI, None, True).path, range(16)))
    assert len(set(found)) == 1
    assert [str(path) for path in copies()] == found[:1]


def test_a_base_that_changes_while_it_is_copied_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(base, URI)
    download = storage.download_files

    def change(uri: str, names: list[str], directory: Path) -> None:
        download(uri, names, directory)
        edit_json(base / "config.json", rms_norm_eps=0.1)
        upload(base, uri)

    monkeypatch.setattr(base_files, "download_files", change)
    with pytest.raises(RecipeError, match="changed while it was copied"):
        backbone.load(URI, None, "fp32")
    assert not copies()


def test_a_place_without_a_base_is_named(tmp_path: Path) -> None:
    for place in ("memory://bases/none", str(tmp_path / "none"), "./none", "a/b/c"):
        with pytest.raises(RecipeError, match=r"no config\.json"):
            identify(place, None)
