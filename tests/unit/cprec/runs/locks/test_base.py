"""A run goes on with the base that it started on, or is refused with the files that changed."""

from pathlib import Path

import pytest

from cluster.errors import RunError
from cprec.model.base_files import BaseIdentity, content_revision
from cprec.runs.locks.base import lock_base, read_base


def identity(base: str = "s3://b/base", suffix: str = ":9", **changes: str) -> BaseIdentity:
    tags = {"config.json": "c", "tokenizer.json": "t", "model.safetensors": "w"}
    files = {
        name: f"{tag}{suffix}"
        for name, tag in {**tags, **{k.replace("__", "."): v for k, v in changes.items()}}.items()
    }
    return BaseIdentity(base, content_revision(files), files)


def test_the_first_start_writes_what_later_ones_are_compared_with(tmp_path: Path) -> None:
    said: list[str] = []
    run = str(tmp_path / "run")
    lock_base(identity(), run, None, said.append)
    lock_base(identity(), run, None, said.append)
    kept = read_base(run)
    assert kept is not None
    assert kept.revision == identity().revision
    assert not said
    with pytest.raises(RunError, match=r"changed: model\.safetensors; put them back"):
        lock_base(identity(model__safetensors="other"), run, None, said.append)
    with pytest.raises(RunError, match=r"new: added_tokens\.json"):
        lock_base(identity(added_tokens__json="x"), run, None, said.append)
    assert read_base(run) == kept


def test_a_run_of_an_earlier_release_goes_on_and_says_so_once(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "run" / "checkpoints" / "000000000010-0").mkdir(parents=True)
    for _ in range(2):
        lock_base(identity(), str(tmp_path / "run"), None, said.append)
    assert len(said) == 1
    assert "before the files of its base were recorded" in said[0]


def test_a_branch_starts_on_the_base_of_its_trunk(tmp_path: Path) -> None:
    trunk = tmp_path / "trunk"
    lock_base(identity(), str(trunk), None, print)
    parent = str(trunk / "checkpoints" / "000000000010-0")
    lock_base(identity(), str(tmp_path / "branch"), parent, print)
    with pytest.raises(RunError, match=r"trunk/base\.json says .* changed: tokenizer\.json"):
        lock_base(identity(tokenizer__json="x"), str(tmp_path / "other"), parent, print)
    assert read_base(str(tmp_path / "other")) is None


def test_a_base_that_moved_is_compared_where_it_can_be(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    lock_base(identity("/a/base", ""), run, None, print)
    lock_base(identity("/b/base", ""), run, None, print)
    with pytest.raises(RunError, match=r"/c/base \(then at /b/base\)"):
        lock_base(identity("/c/base", "", model__safetensors="x"), run, None, print)
    lock_base(identity(), run, None, print)  # a SHA-256 tells nothing of an ETag
    assert read_base(run) is not None


def test_another_commit_of_a_hub_id_is_refused(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    lock_base(BaseIdentity("org/base", "a" * 40), run, None, print)
    with pytest.raises(RunError, match=f"set model.revision to {'a' * 40}"):
        lock_base(BaseIdentity("org/base", "b" * 40), run, None, print)
