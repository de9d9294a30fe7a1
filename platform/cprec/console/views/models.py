"""The versions of a registered model as the console shows them. Pure."""

import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from cprec.evaluation.significance import wilson_interval
from cprec.runs.record_files import parse_json
from cprec.tracking.lineage_graph import (
    Aliases,
    LineageGraph,
    build_lineage_graph,
    find_kind,
    find_parent_run,
    find_parents,
)
from cprec.tracking.registry import DECISION_TAG, EVALUATION_TAG, TRAINED_ON_TAG, Version

_FOREIGN = (ValueError, TypeError, AttributeError, KeyError, OverflowError)
"""What is raised where the values of a tag are not as we write them."""


@dataclass(frozen=True)
class EvaluationView:
    """How well a version ranks on a domain.

    Attributes:
        domain: The domain.
        split: Split of the samples.
        n: Samples.
        hr1: HR@1; None where nothing was measured.
        low: Lower end of its interval (Wilson, 95 %).
        high: Upper end.
        hr5: HR@5.
        ndcg5: NDCG@5.
        chance: HR@1 of a random choice; None where it was not recorded.
    """

    domain: str
    split: str
    n: int
    hr1: float | None
    low: float | None
    high: float | None
    hr5: float | None
    ndcg5: float | None
    chance: float | None


@dataclass(frozen=True)
class DecisionView:
    """What the gate, or a rollback, decided about a version.

    Attributes:
        time: When (Unix seconds); None where the tag does not tell.
        promoted: Whether the version became the champion.
        reason: Why.
        by: Who asked; None: nobody said.
        lines: Lines of the gate: key, wanted, seen, passed.
    """

    time: float | None
    promoted: bool
    reason: str
    by: str | None
    lines: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TrainedOn:
    """A source that a version was trained on, with its samples and corpus versions."""

    source: str
    samples: int
    versions: tuple[int, int]


@dataclass(frozen=True)
class VersionView:
    """A registered version.

    Attributes:
        number: Its number.
        aliases: Its aliases.
        run: Name of its run.
        checkpoint: URI of its checkpoint.
        base: Its base.
        kind: What made it: `trunk`, `branch`, or `fine-tuned`.
        corpus_version: Newest corpus version in its plan; empty where it is not known.
        parent: Number of the version that it goes on from; None: from the base, or not known.
        depth: Versions above it in the lineage.
        parent_run: Name of the run whose checkpoint it goes on from; empty: from the base.
        trained_on: What it was trained on.
        evaluations: How well it ranks.
        decisions: What was decided about it, the newest first.
    """

    number: int
    aliases: Sequence[str]
    run: str
    checkpoint: str
    base: str
    kind: str
    corpus_version: str
    parent: int | None
    depth: int
    parent_run: str
    trained_on: Sequence[TrainedOn]
    evaluations: Sequence[EvaluationView]
    decisions: Sequence[DecisionView]


@dataclass(frozen=True)
class ModelView:
    """A registered model: its versions as a forest, each below the one that it goes on from."""

    model: str
    versions: Sequence[VersionView]


@dataclass(frozen=True)
class ModelsView:
    """All models of a recipe, and their lineage."""

    graph: LineageGraph
    models: Sequence[ModelView]


def build_models(versions: Mapping[str, Sequence[Version]], aliases: Aliases) -> ModelsView:
    """Builds the view of a model, and of those that were fine-tuned from it.

    Args:
        versions: The versions of each model, this one first.
        aliases: Numbers by alias, by model.
    """
    together = [version for of_model in versions.values() for version in of_model]
    models = [build_model(name, found, aliases[name]) for name, found in versions.items()]
    return ModelsView(build_lineage_graph(together, aliases), models)


def build_model(model: str, versions: Sequence[Version], aliases: Mapping[str, int]) -> ModelView:
    """Builds the view of a model.

    Args:
        model: Its name.
        versions: Its versions, the oldest first.
        aliases: Numbers by alias.
    """
    parents = find_parents(versions)

    def walk(i: int, depth: int) -> Iterator[VersionView]:
        parent = parents[i]
        number = None if parent is None else versions[parent].number
        yield _view(versions[i], number, depth, aliases)
        for child in reversed(range(len(versions))):
            if parents[child] == i:
                yield from walk(child, depth + 1)

    roots = [i for i in reversed(range(len(versions))) if parents[i] is None]
    return ModelView(model, [view for root in roots for view in walk(root, 0)])


def _view(
    version: Version, parent: int | None, depth: int, aliases: Mapping[str, int]
) -> VersionView:
    tags = version.tags
    return VersionView(
        number=version.number,
        aliases=[alias for alias, number in aliases.items() if number == version.number],
        run=posixpath.basename(version.run),
        checkpoint=version.checkpoint,
        base=posixpath.basename(tags.get("base", "").rstrip("/")),
        kind=find_kind(version),
        corpus_version=tags.get("corpus_version", ""),
        parent=parent,
        depth=depth,
        parent_run=posixpath.basename(find_parent_run(version)),
        trained_on=list(_iter_trained_on(tags.get(TRAINED_ON_TAG))),
        evaluations=list(_view_tags(tags, EVALUATION_TAG, _view_evaluation)),
        decisions=[*_view_tags(tags, DECISION_TAG, _view_decision)][::-1],
    )


View = TypeVar("View")


def _view_tags(
    tags: Mapping[str, str], prefix: str, view: Callable[[str, Mapping[str, Any]], View]
) -> Iterator[View]:
    """Yields the views of the tags with a prefix, by name, without what others wrote into them."""
    for tag, text in sorted(tags.items()):
        if tag.startswith(prefix) and (values := _parse(text)):
            with suppress(*_FOREIGN):
                yield view(tag.removeprefix(prefix), values)


def _iter_trained_on(text: str | None) -> Iterator[TrainedOn]:
    for source, entry in sorted(_parse(text or "{}").items()):
        with suppress(*_FOREIGN):
            first, last = entry["versions"]
            yield TrainedOn(source, int(entry["samples"]), (int(first), int(last)))


def _view_evaluation(domain: str, values: Mapping[str, Any]) -> EvaluationView:
    def rate(found: Any) -> float | None:
        if found is not None and not 0 <= float(found) <= 1:
            raise ValueError(found)
        return None if found is None else float(found)

    n, hr, ndcg = int(values.get("n", 0)), values.get("hr", {}), values.get("ndcg", {})
    hr1 = rate(hr.get("1"))
    low, high = wilson_interval(hr1, n) if hr1 is not None and n else (None, None)
    return EvaluationView(
        domain=domain,
        split=str(values.get("split", "")),
        n=n,
        hr1=hr1,
        low=low,
        high=high,
        hr5=rate(hr.get("5")),
        ndcg5=rate(ndcg.get("5")),
        chance=rate(values.get("chance")),
    )


def _view_decision(stamp: str, values: Mapping[str, Any]) -> DecisionView:
    try:
        time = datetime.strptime(stamp, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        time = None
    return DecisionView(
        time,
        bool(values.get("promote")),
        str(values.get("reason", "")),
        values.get("by"),
        [dict(line) for line in values.get("lines", ())],
    )


def _parse(text: str) -> dict[str, Any]:
    """Parses the JSON of a tag; empty where somebody else wrote something else into it."""
    try:
        values = parse_json(text.encode())
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
