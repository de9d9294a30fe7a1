"""A run's plan asks of its corpus what the recipe needs."""

from pathlib import Path

import pytest

from cluster.errors import CorpusError
from corpus.build import build
from cprec.resolve import validate
from cprec.train import trunk
from tests.unit.corpus.worlds import settings, shop, write_root


@pytest.mark.parametrize("together", [False, True])
def test_targets_of_one_user_need_a_corpus_in_the_order_of_users(tmp_path: Path, together: bool) -> None:
    root = write_root(tmp_path / "root", shop(("A", "B", "C")))
    corpus = build(settings(root, users_together=together), 0, str(tmp_path / "corpus"), print)
    recipe = validate({"train": {"targets_per_pass": 4}}, "test")
    if together:
        assert trunk.begin(recipe, corpus).plan.samples == sum(s.rows for s in corpus.streams() if s.source in ("domain/A", "domain/B", "mixed"))
    else:
        with pytest.raises(CorpusError, match=r"in no order of users.*data\.users_together true"):
            trunk.begin(recipe, corpus)
