"""The graph of steps: digests follow inputs, and a kept step is never computed again."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprec.reproduction.graph import Graph, Step, compute_missing


class KilledError(Exception):
    """The process ends here."""


@dataclass
class Store:
    """Kept results by digest, and how often steps were started and kept."""

    graph: Graph
    kept: dict[str, str] = field(default_factory=dict)
    started: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)

    def find(self, step: Step) -> str | None:
        return self.kept.get(self.graph.digests[step.name])

    def run(self, kills: Iterator[str | None]) -> dict[str, str]:
        """Computes what is missing; a kill comes before or after a result is kept, or never."""

        def compute(step: Step, parents: Mapping[str, str]) -> str:
            assert set(parents) == set(step.parents)
            self.started[step.name] += 1
            kill = next(kills, None)
            if kill == "before":
                raise KilledError
            result = f"{step.inputs}{sorted(parents.items())}"
            self.kept[self.graph.digests[step.name]] = result
            self.stored[step.name] += 1
            if kill == "after":
                raise KilledError
            return result

        return compute_missing(self.graph, self.find, compute, lambda: True)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 8))):
        names = [step.name for step in steps]
        parents = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
        value = draw(st.integers(0, 3))
        steps.append(
            Step(f"step{number}", "kind", 1, {"number": number, "value": value}, tuple(parents))
        )
    return Graph(tuple(steps))


def descendants(graph: Graph, name: str) -> set[str]:
    """Returns a step and all that depend on it."""
    found = {name}
    for step in graph.steps:
        if found & set(step.parents):
            found.add(step.name)
    return found


def change(graph: Graph, name: str) -> Graph:
    """Returns the graph with another input of one step."""
    return Graph(
        tuple(
            replace(step, inputs={**step.inputs, "value": 99}) if step.name == name else step
            for step in graph.steps
        )
    )


@given(graphs())
def test_equal_inputs_have_equal_digests(graph: Graph) -> None:
    reordered = Graph(
        tuple(
            replace(step, inputs=dict(reversed(list(step.inputs.items())))) for step in graph.steps
        )
    )
    assert reordered.digests == graph.digests


@given(graphs(), st.data())
def test_a_changed_input_changes_exactly_the_descendants(graph: Graph, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([step.name for step in graph.steps]))
    before, after = graph.digests, change(graph, name).digests
    assert {step for step in before if before[step] != after[step]} == descendants(graph, name)


@given(graphs(), st.data())
def test_a_changed_input_recomputes_exactly_the_descendants(
    graph: Graph, data: st.DataObject
) -> None:
    store = Store(graph)
    store.run(iter(()))
    name = data.draw(st.sampled_from([step.name for step in graph.steps]))
    changed = Store(change(graph, name), store.kept)
    changed.run(iter(()))
    assert set(changed.started) == descendants(graph, name)


@given(graphs(), st.lists(st.sampled_from([None, "before", "after"]), max_size=12))
def test_a_kill_costs_one_step_and_nothing_is_computed_twice(
    graph: Graph, plan: list[str | None]
) -> None:
    undisturbed = Store(graph).run(iter(()))
    store, kills = Store(graph), iter(plan)
    results: dict[str, str] = {}
    for _ in range(len(plan) + 1):
        try:
            results = store.run(kills)
        except KilledError:
            continue
        break
    assert results == undisturbed
    assert set(store.stored.values()) == {1}
    lost = sum(store.started.values()) - len(graph.steps)
    assert lost == plan[: sum(store.started.values())].count("before")


@given(graphs(), st.integers(0, 10))
def test_a_budget_ends_between_steps(graph: Graph, budget: int) -> None:
    store = Store(graph)
    left = iter(range(budget))

    def compute(step: Step, parents: Mapping[str, str]) -> str:
        store.stored[step.name] += 1
        return step.name

    results = compute_missing(graph, store.find, compute, lambda: next(left, None) is not None)
    computed = [step.name for step in graph.steps][:budget]
    assert list(results) == computed
    assert dict(store.stored) == dict.fromkeys(computed, 1)


def test_equal_steps_count_once_and_others_are_refused() -> None:
    first = Step("first", "kind", 1, {"a": 1})
    assert Graph.of([first, first]).steps == (first,)
    with pytest.raises(ValueError, match="two steps are called first"):
        Graph.of([first, replace(first, version=2)])
    with pytest.raises(ValueError, match="first and again compute the same"):
        Graph.of([first, replace(first, name="again")])
    with pytest.raises(ValueError, match="comes before its parent"):
        Graph.of([replace(first, parents=("last",))])


def test_a_new_version_of_the_code_is_another_computation() -> None:
    step = Step("step", "kind", 1, {"a": 1})
    assert Graph((step,)).digests != Graph((replace(step, version=2),)).digests
