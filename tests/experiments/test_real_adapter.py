"""An adapter that was pre-trained on real data ranks on real data as it did where it was trained.

It needs what the project does not ship: a base (`make base`), the adapter, a data root with the
domain that the adapter has never seen, and the HR@1 that was found there with its number of users.
`REAL_USERS` takes another number of users here, such as 20 for a try; on two cores, each takes a
second or two with either model.

    REAL_BASE=out/bases/smollm2 REAL_ADAPTER=... REAL_DATA=... REAL_HR1=0.1613 REAL_N=4000 \\
        python -m pytest -n 0 tests/experiments/test_real_adapter.py
"""

import os
from pathlib import Path

import pytest

from corpus.build import build
from cprec.config.recipe_file import validate_recipe
from cprec.evaluation.significance import wilson_interval
from cprec.tracking.registry import Registry
from cprec.workflows.evaluate import compare_models

NAMES = ("REAL_BASE", "REAL_ADAPTER", "REAL_DATA", "REAL_HR1", "REAL_N")
GIVEN = [os.environ.get(name) for name in NAMES]
USERS = int(os.environ.get("REAL_USERS", "400"))


@pytest.mark.skipif(None in GIVEN, reason=f"{', '.join(NAMES)} not given")
def test_a_pre_trained_adapter_is_as_good_as_where_it_was_trained(tmp_path: Path) -> None:
    base, adapter, root = map(str, GIVEN[:3])
    there, users_there = float(str(GIVEN[3])), int(str(GIVEN[4]))
    domain = os.environ.get("REAL_DOMAIN", "Video_Games")
    other = os.environ.get("REAL_OTHER", "Electronics")  # a corpus has one to pre-train on
    recipe = validate_recipe(
        {
            "storage": f"{tmp_path}/runs",
            "corpus": f"{tmp_path}/corpus",
            "workers": 2,
            "data": {"root": root, "domains": [other], "held_out": [domain]},
            # Without instructions for bf16, a CPU is tens of times slower in it.
            "model": {"base": base, "max_tokens": 1024, "precision": "fp32"},
            "evaluate": {"max_users": USERS, "batch": 4},
            "cluster": {"address": "local"},
        },
        "the experiment",
    )
    build(recipe.data, recipe.seed, recipe.corpus, print)
    registry = Registry.from_recipe(recipe)
    reference, row = compare_models(recipe, registry, ["base", adapter], print).rows
    measured = row.metrics["hr"]["1"]
    assert measured is not None
    low, high = wilson_interval(measured, USERS)
    print(f"HR@1 {measured:.4f} ({low:.4f} to {high:.4f}), base {reference.metrics['hr']['1']:.4f}")
    # Both are of a sample of users.
    pooled = (measured * USERS + there * users_there) / (USERS + users_there)
    deviation = (pooled * (1 - pooled) * (1 / USERS + 1 / users_there)) ** 0.5
    assert abs(measured - there) <= 1.96 * deviation
    if USERS >= 400:  # with fewer, a true difference need not show
        assert row.against is not None
        assert row.against.difference > 0
        assert row.against.p < 0.05
