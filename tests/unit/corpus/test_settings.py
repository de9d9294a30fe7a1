"""Settings that would make a wrong corpus are refused in words."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from corpus.sampling.candidates import InteractedItems, draw_candidates
from corpus.sampling.hashing import hash_integers
from corpus.settings import MAX_CANDIDATES, DataSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_candidates": MAX_CANDIDATES + 1}, "less than or equal to 128"),
        ({"domains": ("A", "B", "A")}, r"\['A'\] more than once in data.domains"),
        ({"held_out": ("H", "H")}, r"\['H'\] more than once in data.held_out"),
        ({"domains": ("A",), "held_out": ("A",)}, "in both data.domains and data.held_out"),
    ],
)
def test_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSettings.model_validate(values)


def test_the_most_candidates_have_a_position_that_the_column_can_hold() -> None:
    user, item = np.zeros(2_000, np.int64), np.arange(2_000)
    drawn, position = draw_candidates(
        hash_integers(0, user, item),
        user,
        item,
        InteractedItems.from_interactions(user[:5], item[:5], 3_000),
        DataSettings(num_candidates=MAX_CANDIDATES).num_candidates,
    )
    assert set(position) == set(range(MAX_CANDIDATES))
    assert np.array_equal(drawn[item, position], item)
