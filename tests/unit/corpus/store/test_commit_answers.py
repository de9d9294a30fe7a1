"""Commits whose answer is lost, or that do not reach the table, land exactly once."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import CommitConflictError, PlatformFault
from corpus.store import delta

ROWS = pa.table({"n": [1, 2, 3]})


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "COMMIT_PAUSE_S", 0.0)


def commit(table: str, parent: int | None) -> int:
    file = delta.write_file(table, f"part-{parent}", ROWS, {})
    return delta.commit(table, ROWS.schema, [file], parent_version=parent, metadata={})


def disturb(patch: pytest.MonkeyPatch, times: int, lands: bool) -> None:
    """Lets the next attempts to commit raise, whether or not they reach the table."""
    write, left = delta._write_commit, [None] * times

    def attempt(*arguments: Any) -> None:
        if lands or not left:
            write(*arguments)
        if left:
            left.pop()
            raise OSError("Generic S3 error: connection reset")

    patch.setattr(delta, "_write_commit", attempt)


@pytest.mark.parametrize("parent", [None, 0])
@pytest.mark.parametrize("lands", [True, False])
def test_a_commit_without_an_answer_lands_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: int | None, lands: bool
) -> None:
    table = str(tmp_path / "table")
    if parent is not None:
        commit(table, None)
    disturb(monkeypatch, 2, lands)
    version = 0 if parent is None else parent + 1
    assert commit(table, parent) == version
    commits = delta.read_commits(table)
    assert [c.version for c in commits] == list(range(version + 1))
    assert sum(f.rows for f in delta.live_files(commits)) == 3 * (version + 1)


def test_a_commit_of_somebody_else_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = str(tmp_path / "table")
    commit(table, None)
    write = delta._write_commit

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(delta, "_write_commit", write)
        commit(table, 0)
        raise OSError("connection reset")

    monkeypatch.setattr(delta, "_write_commit", overtaken)
    with pytest.raises(CommitConflictError):
        commit(table, 0)
    assert len(delta.read_commits(table)) == 2


def test_a_store_that_stays_away_is_a_fault_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = str(tmp_path / "table")
    commit(table, None)
    disturb(monkeypatch, 1000, lands=False)
    with pytest.raises(PlatformFault, match=f"{table}: the commit did not reach the table"):
        commit(table, 0)
    assert len(delta.read_commits(table)) == 1
