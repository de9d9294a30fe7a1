"""A push to a hub on the loopback interface, and what keeps it from being made."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from cluster.errors import RecipeError, RunError
from cprec.tracking.hub import push, require_hub
from tests.unit.cprec.tracking.hub_server import TOKEN, Hub, serve_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    (folder / "behaviour").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 50)
    (folder / "behaviour" / "items.json").write_text("{}")
    return folder


def test_a_directory_is_pushed_whole_to_a_repository_that_is_created_private(
    hub: Hub, directory: Path
) -> None:
    require_hub("shop/ranker")
    assert hub.repositories == {}
    assert push(directory, "shop/ranker") == f"{hub.url}/shop/ranker/commit/1"
    assert hub.repositories == {"shop/ranker": True}
    assert hub.files == {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_repository_that_is_there_keeps_its_visibility(hub: Hub, directory: Path) -> None:
    hub.repositories["shop/open"] = False
    push(directory, "shop/open")
    assert hub.repositories == {"shop/open": False}


@pytest.mark.parametrize("name", ["ranker", "shop/models/ranker", "shop/..", "-shop/ranker"])
def test_a_name_that_no_repository_can_have_is_refused(hub: Hub, name: str) -> None:
    with pytest.raises(RecipeError, match="give OWNER/NAME"):
        require_hub(name)


def test_a_push_needs_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RunError, match=r"no token for http://127.*set HF_TOKEN"):
        require_hub("shop/ranker")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(RunError, match=r"refused \(.*Invalid user token"):
        require_hub("shop/ranker")


def test_a_push_without_the_right_to_write_is_refused(hub: Hub, directory: Path) -> None:
    hub.writable = False
    with pytest.raises(RunError, match="see whether the token may write there"):
        push(directory, "shop/ranker")
    assert hub.files == {}


def test_a_push_needs_a_network(hub: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(RunError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        require_hub("shop/ranker")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        require_hub("shop/ranker")
