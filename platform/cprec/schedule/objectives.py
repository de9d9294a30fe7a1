"""What a model is taught by each sample: the next item, or another text task of its history. Pure.

The objective of a sample is a function of its id, its source and the seed. So it depends on neither
the plan, the workers nor the batch, and a corpus is the same for all of them
(docs/decisions/044-objectives.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from corpus.sampling.hashing import Hashes, hash_integers
from corpus.sampling.source import Source, SourceKind

MIN_TITLES = 2
"""Titles that a history needs for another objective than the next item."""

_OBJECTIVE_DRAW, _TASK_DRAW = 0x0B1, 0x7A5
"""What is hashed beside seed and id, so that the two draws of a sample are unrelated."""


class Objective(StrEnum):
    """What the answer of a sample is."""

    NEXT_ITEM = "next_item"
    """The candidate that the user took next (paper Table 1)."""
    MASKED_ITEM = "masked_item"
    """An item of the history, which the prompt hides."""
    REPLACED_ITEM = "replaced_item"
    """The item of the history that stands in the place of another one."""
    NEXT_HISTORY = "next_history"
    """The items with which the history goes on, of which the prompt has the first part."""


@dataclass(frozen=True)
class Objectives:
    """The objectives of a run; its truth value is false if every sample has the next item.

    Attributes:
        seed: Seed of the run.
        weights: Weight of each objective, by source or by the kind of sources that are not named.
    """

    seed: int = 0
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.weights)

    def fractions(self, source: str) -> dict[Objective, float]:
        """Returns which fraction of a source's samples is to have each objective."""
        kind = source.partition("/")[0]
        weights = self.weights.get(source) or self.weights.get(kind) or {Objective.NEXT_ITEM: 1.0}
        total = sum(weights.values())
        return {o: weights[o] / total for o in Objective if weights.get(o, 0) > 0}

    def draw(
        self, sources: Sequence[str], sample_ids: Hashes, history_lengths: ArrayLike
    ) -> list[Objective]:
        """Returns the objective of each sample.

        Args:
            sources: Source of each sample.
            sample_ids: Id of each sample, uint64 [samples].
            history_lengths: Titles of each history, [samples]; with fewer than MIN_TITLES, the
                objective is the next item.
        """
        # 53 bits, as many as a float holds.
        draws = (self._hash(_OBJECTIVE_DRAW, sample_ids) >> np.uint64(11)) / 2.0**53
        names = np.array(sources)
        drawn = np.full(len(names), Objective.NEXT_ITEM, dtype=object)
        for source in set(sources):
            fractions = self.fractions(source)
            choices = np.array(list(fractions), dtype=object)
            bounds = np.cumsum(list(fractions.values()))[:-1]
            own = names == source
            drawn[own] = choices[np.searchsorted(bounds, draws[own], side="right")]
        drawn[np.asarray(history_lengths) < MIN_TITLES] = Objective.NEXT_ITEM
        return list(drawn)

    def task_draws(self, sample_ids: Hashes) -> list[int]:
        """Returns a number of 64 bits for each sample, which decides what its task is made of."""
        return [int(draw) for draw in self._hash(_TASK_DRAW, sample_ids)]

    def _hash(self, purpose: int, sample_ids: Hashes) -> NDArray[np.uint64]:
        return hash_integers(self.seed, purpose, sample_ids)


NEXT_ITEM_ONLY = Objectives()
"""Every sample has the next item."""


def describe_fractions(amounts: Mapping[Objective, float] | Mapping[str, float]) -> str:
    """Returns the fraction of each objective, for people, given amounts that need no sum of 1."""
    total = sum(amounts.values())
    return ", ".join(f"{name} {amount / total:.1%}" for name, amount in amounts.items())


def check_weights(weights: Mapping[str, Mapping[str, float]]) -> None:
    """Checks the weights of objectives that a recipe gives.

    Raises:
        ValueError: A name is of no source that has them or of no objective, a weight is negative,
            or all weights of a source are zero.
    """
    for source, by_objective in weights.items():
        if not _has_objectives(source):
            raise ValueError(
                f"{source!r} is no source of samples with a history; those are domain/NAME, mixed, "
                "and domain for all domains that are not named"
            )
        for name, weight in by_objective.items():
            if name not in set(Objective):
                raise ValueError(
                    f"{source}: {name!r} is no objective; those are {', '.join(Objective)}"
                )
            if weight < 0:
                raise ValueError(f"{source}: {name} has the weight {weight:g}; at least 0")
        if not any(by_objective.values()):
            raise ValueError(
                f"{source}: no objective has a weight above 0, so there would be nothing to train; "
                "give one, or leave the source out for the next item (schedule.weights leaves "
                "samples untrained)"
            )


def _has_objectives(name: str) -> bool:
    """Returns whether a name is of a source whose samples have a history, or of all domains."""
    if name == SourceKind.DOMAIN:
        return True
    try:
        return Source.parse(name).kind in (SourceKind.DOMAIN, SourceKind.MIXED)
    except ValueError:
        return False
