"""A graph of steps, each with a digest of everything that its result depends on. Pure.

A step is computed once for each digest: a changed input changes the digests of the step and of its
descendants, and of nothing else.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

DIGEST_LENGTH = 12
"""Hex digits of a digest, which stand in the names of folders."""

R = TypeVar("R")


@dataclass(frozen=True)
class Step:
    """One computation.

    Attributes:
        name: Its name, safe in URIs and unique in a graph.
        kind: What is computed.
        version: Version of the code that computes it; a higher one computes something else.
        inputs: What the result depends on besides the parents, as plain JSON data.
        parents: Names of the steps whose results it takes.
    """

    name: str
    kind: str
    version: int
    inputs: Mapping[str, Any]
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """Steps in an order in which they can be computed.

    Attributes:
        steps: The steps, parents before their children.

    Raises:
        ValueError: Two steps have one name or compute the same, or a parent does not come before.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        names: set[str] = set()
        for step in self.steps:
            if step.name in names:
                raise ValueError(f"two steps are called {step.name}")
            if unknown := [parent for parent in step.parents if parent not in names]:
                raise ValueError(f"{step.name} comes before its parent {unknown[0]}")
            names.add(step.name)
        by_digest: dict[str, str] = {}
        for name, digest in self.digests.items():
            if (other := by_digest.setdefault(digest, name)) != name:
                raise ValueError(f"{other} and {name} compute the same")

    @classmethod
    def of(cls, steps: Iterable[Step]) -> "Graph":
        """Returns the graph of steps, of which equal ones count once."""
        return cls(tuple({_canonical(step): step for step in steps}.values()))

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digest of each step by name."""
        digests: dict[str, str] = {}
        for step in self.steps:
            content = [
                step.kind,
                step.version,
                step.inputs,
                [digests[parent] for parent in step.parents],
            ]
            text = json.dumps(content, sort_keys=True, allow_nan=False)
            digests[step.name] = hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
        return digests


def compute_missing(
    graph: Graph,
    find: Callable[[Step], R | None],
    compute: Callable[[Step, Mapping[str, R]], R],
    may_start: Callable[[], bool],
) -> dict[str, R]:
    """Computes the steps of a graph that have no kept result.

    Args:
        graph: The steps.
        find: Returns the kept result of a step, or None.
        compute: Computes and keeps the result of a step, given those of its parents by name. What
            it raises ends the computation.
        may_start: Says before each missing step whether it may still be started.

    Returns:
        The results that there are, by name of the step; all, unless one might not be started.
    """
    results: dict[str, R] = {}
    is_open = True
    for step in graph.steps:
        result = find(step)
        if result is None and is_open and set(step.parents) <= results.keys():
            is_open = may_start()
            if is_open:
                result = compute(step, {parent: results[parent] for parent in step.parents})
        if result is not None:
            results[step.name] = result
    return results


def _canonical(step: Step) -> str:
    """Returns a text that is equal for equal steps."""
    content = [step.name, step.kind, step.version, step.inputs, step.parents]
    return json.dumps(content, sort_keys=True, allow_nan=False)
