"""Simulated shoppers with one planted taste: at some time all begin to buy a few brands only.

A model has to learn a preference for some words at the start of an answer. A small model learns it
within a few dozen steps. So a learning rate that is neither far too low nor far too high shows in
HR@1, by far more than chance.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from corpus.ingest.simulation import (
    ATTRIBUTE_VALUES,
    BRANDS,
    SECONDS_PER_HOUR,
    START_TIMESTAMP,
    Purchases,
    SimulatedWorld,
    data_root_files,
    simulate_shoppers,
)
from corpus.settings import SimulateSettings

USERS = 60
"""Number of shoppers."""
ITEMS_BEFORE = 3
"""Items that a shopper buys in every domain before the fashion."""
ITEMS_AFTER = 5
"""Items that a shopper buys in every domain once the fashion has begun, all of them in fashion."""
BRANDS_IN_FASHION = 6
"""Number of brands in fashion, of 24."""


def write(root: Path, domains: Sequence[str]) -> None:
    """Writes a data root of some domains."""
    for name, content in data_root_files(world(domains)).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def world(domains: Sequence[str]) -> SimulatedWorld:
    """Returns the simulation's shelves with planted purchases."""
    shelves = simulate_shoppers(domains, SimulateSettings(users=10, items_per_domain=40), 0).shelves
    rng = np.random.default_rng(0)
    brand = ATTRIBUTE_VALUES.index(BRANDS)
    in_fashion = [shelf.attributes[:, brand] < BRANDS_IN_FASHION for shelf in shelves]
    purchases = [
        (
            user,
            domain,
            item,
            START_TIMESTAMP + number * SECONDS_PER_HOUR,
            np.zeros(len(ATTRIBUTE_VALUES), dtype=int),
        )
        for user in range(USERS)
        for domain, mask in enumerate(in_fashion)
        for number, item in enumerate(
            [
                *rng.permutation(np.flatnonzero(~mask))[:ITEMS_BEFORE],
                *rng.permutation(np.flatnonzero(mask))[:ITEMS_AFTER],
            ]
        )
    ]
    return SimulatedWorld(
        tuple(domains),
        shelves,
        Purchases(*(np.array(column) for column in zip(*purchases, strict=True))),
    )
