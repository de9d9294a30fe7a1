"""The cells of tables: means over seeds and users, with intervals and tests. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cprec.evaluation.significance import (
    compare_seeds,
    holm_correction,
    paired_t_test,
    wilson_interval,
)

Contributions = NDArray[np.float64]
"""What each user contributes to a measure, 0 to 1, under each seed of a model [seeds, users]."""


@dataclass(frozen=True)
class Cell:
    """One number of a table or figure: a row of results.parquet.

    Attributes:
        artefact: Name of the table or figure.
        domain: Domain, as in the recipe.
        model: Name of the model; empty where the number is of the data.
        label: How the table calls its row.
        measure: Name of the column.
        value: The number: for scores, the mean over users and seeds. None where there is none, as
            of a slice without users.
        n: Users. None for what is no score, as for all that follow but `paper`.
        seeds: Seeds.
        deviation: Standard deviation over seeds (n - 1); None with one seed.
        low: Lower end of the 95 % interval over users (Wilson).
        high: Upper end of that interval.
        reference: Model that this one is tested against; None for itself.
        difference: Value minus that of the reference.
        p_users: p of a paired t-test over users, on the mean over seeds of each.
        p_users_holm: The same, by Holm, for all tests of the table or figure.
        p_seeds: p of a paired t-test over seeds; a model with one is compared with each seed of the
            other. None where neither has several, they have different numbers of them, or all
            pairs differ by the same.
        p_seeds_holm: The same, by Holm, for all tests of the table or figure.
        paper: The paper's number, where the data is the paper's.
    """

    artefact: str
    domain: str
    model: str
    label: str
    measure: str
    value: float | None
    n: int | None = None
    seeds: int | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    reference: str | None = None
    difference: float | None = None
    p_users: float | None = None
    p_users_holm: float | None = None
    p_seeds: float | None = None
    p_seeds_holm: float | None = None
    paper: float | None = None


def describe(cell: Cell, values: Contributions) -> Cell:
    """Returns a cell with the mean of its contributions, its deviation and its interval."""
    seeds, n = values.shape
    if not n:
        return replace(cell, n=0, seeds=seeds)
    mean = float(values.mean())
    low, high = wilson_interval(mean, n)
    return replace(
        cell,
        value=mean,
        n=n,
        seeds=seeds,
        deviation=float(values.mean(axis=1).std(ddof=1)) if seeds > 1 else None,
        low=low,
        high=high,
    )


def compare(cell: Cell, values: Contributions, reference: str, against: Contributions) -> Cell:
    """Returns a cell with its tests against a reference, uncorrected.

    Args:
        cell: The cell.
        values: Its contributions.
        reference: Name of the reference.
        against: Contributions of the same users under the reference.
    """
    if not values.size:
        return cell
    over_users = paired_t_test(against.mean(axis=0), values.mean(axis=0))
    # Whichever of them has a single seed, such as the base, is compared with each of the other's.
    over_seeds = compare_seeds(against, values) or compare_seeds(values, against)
    # Seeds that all differ by the same would give p = 0, and are no evidence of anything.
    has_spread = over_seeds is not None and over_seeds.low != over_seeds.high
    return replace(
        cell,
        reference=reference,
        difference=over_users.difference,
        p_users=over_users.p,
        p_seeds=over_seeds.p if over_seeds and has_spread else None,
    )


def correct(cells: Sequence[Cell]) -> list[Cell]:
    """Returns cells with p corrected by Holm for all of them: those of one table or figure."""
    users = _holm([cell.p_users for cell in cells])
    seeds = _holm([cell.p_seeds for cell in cells])
    return [
        replace(cell, p_users_holm=of_users, p_seeds_holm=of_seeds)
        for cell, of_users, of_seeds in zip(cells, users, seeds, strict=True)
    ]


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns corrected p-values; None stays None, and is no test."""
    corrected = iter(holm_correction([p for p in p_values if p is not None]))
    return [None if p is None else next(corrected) for p in p_values]
