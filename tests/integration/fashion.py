"""Simulated shoppers with one planted taste: whatever they bought first in a domain, then all of them buy a few brands and nothing else.

So what is to be learned is a preference for some words at the start of an answer. A small model learns it within a few dozen steps: a learning rate
that is neither next to nothing nor absurd shows itself in HR@1, by far more than chance moves it.
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

USERS, FIRST, THEN = 60, 3, 5
"""Shoppers, and how many items each buys in every domain before and after the fashion reached them."""
FASHION = 6
"""Brands in fashion, of 24."""


def write(root: Path, domains: Sequence[str]) -> None:
    """Make a data root of these domains."""
    for name, content in data_root_files(world(domains)).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def world(domains: Sequence[str]) -> SimulatedWorld:
    """The shelves of the simulation; what is bought is planted."""
    shelves = simulate_shoppers(domains, SimulateSettings(users=10, items_per_domain=40), 0).shelves
    rng = np.random.default_rng(0)
    wanted = [shelf.attributes[:, ATTRIBUTE_VALUES.index(BRANDS)] < FASHION for shelf in shelves]
    bought = [
        (
            user,
            domain,
            item,
            START_TIMESTAMP + place * SECONDS_PER_HOUR,
            np.zeros(len(ATTRIBUTE_VALUES), dtype=int),
        )
        for user in range(USERS)
        for domain, here in enumerate(wanted)
        for place, item in enumerate(
            [
                *rng.permutation(np.flatnonzero(~here))[:FIRST],
                *rng.permutation(np.flatnonzero(here))[:THEN],
            ]
        )
    ]
    return SimulatedWorld(
        tuple(domains),
        shelves,
        Purchases(*(np.array(column) for column in zip(*bought, strict=True))),
    )
