"""Where storage is, whoever asks, and what of its environment is refused."""

from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.storage import absolute_uri, filesystem, read_text, write_text
from cluster.storage_errors import MAX_ATTEMPTS, s3_config
from corpus.build import build
from cprec.config.recipe import Recipe
from tests.unit.corpus.worlds import settings, shop, write_root


def test_a_tilde_is_the_home_folder_for_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "own"))
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("~/runs") == absolute_uri("file://~/runs") == f"{tmp_path}/own/runs"
    assert absolute_uri("~/runs") == filesystem("~/runs")[1]
    assert absolute_uri("runs/~") == f"{tmp_path}/runs/~"
    assert absolute_uri("~no-such-user/runs") == f"{tmp_path}/~no-such-user/runs"
    write_text("~/note", "here")
    assert read_text(absolute_uri("~/note")) == "here"
    write_root(tmp_path / "own" / "root", shop(("A",)))
    data = settings("~/root", domains=("A",), held_out=())
    corpus = build(data, 0, absolute_uri(Recipe(corpus="~/corpus").corpus), print)
    assert (tmp_path / "own" / "corpus" / "samples").is_dir()
    assert corpus.uri == f"{tmp_path}/own/corpus"
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize("given", ["many", "0", "-1", "1.5", "²"])
def test_a_number_of_attempts_that_is_none_is_refused_by_name(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", given)
    with pytest.raises(UserError, match=f"AWS_MAX_ATTEMPTS '{given}': how often"):
        s3_config()


@pytest.mark.parametrize(("given", "attempts"), [("", MAX_ATTEMPTS), ("3", 3)])
def test_attempts_are_those_of_the_environment(
    given: str, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", given)
    assert s3_config()["retries"]["total_max_attempts"] == attempts
