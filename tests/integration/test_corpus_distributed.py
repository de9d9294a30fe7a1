"""The build on Ray Data against the build in one process."""

from pathlib import Path

import pytest

from cluster.session import session
from corpus import kept, table
from corpus.build import build
from tests.unit.corpus.worlds import settings, shop, write_root


# Ray Data copies its own deprecated settings whenever it makes a dataset.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_both_ways_write_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_root(tmp_path / "root", shop(("A", "B", "C"), users=60))
    monkeypatch.setattr(kept, "FILE_ROWS", 400)
    one = build(settings(root), 0, str(tmp_path / "one"), print)
    with session("local", 2):
        many = build(settings(root, distribute_above=0), 0, str(tmp_path / "many"), print)
    files = [[(file.part.path.removeprefix(corpus.uri), file.part.rows) for file in corpus.commits[0].files] for corpus in (one, many)]
    assert files[0] == files[1]
    assert one.statistics() == many.statistics()
    assert one.commits[0].metadata["interactions"] == many.commits[0].metadata["interactions"]
    assert len(one.commits[0].metadata["interactions"]) == 4
    assert one.samples("mixed", "train").equals(many.samples("mixed", "train"))
    assert table.read_rows(one.streams()[0], 0, 5).num_rows == 5
