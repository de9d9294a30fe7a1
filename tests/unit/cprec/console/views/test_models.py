"""Versions are a forest by lineage; whatever stands in a tag, they are shown."""

import json

from hypothesis import given
from hypothesis import strategies as st

from cprec.console.views.models import build_model
from cprec.tracking.registry import TRAINED_ON_TAG as TAG
from cprec.tracking.registry import Version


def version(number: int, run: str, parent: str = "", **tags: str) -> Version:
    lineage = {"run": f"/runs/{run}", "parent_checkpoint": parent, "base": "/bases/tiny"}
    uri = f"/runs/{run}/checkpoints/{number:012d}-0"
    return Version("cprec", number, uri, None, {**lineage, **tags})


def test_a_version_stands_below_the_one_it_goes_on_from() -> None:
    versions = [
        version(1, "trunk"),
        version(2, "trunk-anneal-5", "/runs/trunk/checkpoints/000000000005-0"),
        version(3, "next", "/runs/trunk/checkpoints/000000000001-0"),
        version(4, "tuned", kind="finetuned", start="/runs/next/checkpoints/000000000003-0"),
        version(5, "other"),
    ]
    view = build_model("cprec", versions, {"champion": 3, "previous": 1})
    shown = [(v.number, v.parent, v.depth, v.kind) for v in view.versions]
    assert shown == [
        (5, None, 0, "trunk"),
        (1, None, 0, "trunk"),
        (3, 1, 1, "trunk"),
        (4, 3, 2, "fine-tuned"),
        (2, 1, 1, "branch"),
    ]
    assert {v.number: list(v.aliases) for v in view.versions if v.aliases} == {
        3: ["champion"],
        1: ["previous"],
    }


def test_metrics_have_intervals_and_decisions_their_lines() -> None:
    evaluation = {"n": 100, "split": "test", "hr": {"1": 0.5, "5": 0.9}, "ndcg": {"5": 0.7}}
    line = {"key": "gate.alpha", "wanted": "w", "seen": "s", "passed": False}
    decision = {"promote": False, "reason": "worse", "lines": [line], "by": "console (Ada)"}
    tags = {
        "evaluation.Games": json.dumps(evaluation),
        "decision.20261127T071300.000000Z": json.dumps(decision),
        "decision.20261127T081300.000000Z": json.dumps({"promote": True, "reason": "better"}),
        "trained_on": json.dumps({"mixed": {"samples": 5, "versions": [0, 2]}}),
    }
    [view] = build_model("cprec", [version(1, "trunk", **tags)], {}).versions
    [games] = view.evaluations
    assert games.low is not None
    assert games.high is not None
    assert games.low < 0.5 < games.high
    assert [d.promoted for d in view.decisions] == [True, False]
    assert (view.decisions[1].by, view.decisions[1].lines) == ("console (Ada)", [line])
    assert view.decisions[1].time == 1795763580.0
    assert [(t.source, t.versions) for t in view.trained_on] == [("mixed", (0, 2))]


KEYS = st.sampled_from(["n", "hr", "ndcg", "1", "5", "chance", "lines", "samples", "versions", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@given(st.text() | VALUES.map(json.dumps), st.sampled_from(["evaluation.X", "decision.X", TAG]))
def test_no_tag_keeps_a_version_from_being_shown(text: str, tag: str) -> None:
    view = build_model("cprec", [version(1, "trunk", **{tag: text})], {})
    assert [v.number for v in view.versions] == [1]


def test_a_tag_that_somebody_else_wrote_hides_no_other() -> None:
    foreign: list[object] = [
        {"n": 10, "hr": 0.2},
        {"n": None},
        {"n": "many"},
        {"n": 9, "hr": {"1": 2}},
    ]
    tags = {f"evaluation.{i}": json.dumps(values) for i, values in enumerate(foreign)}
    tags["evaluation.Games"] = json.dumps({"n": 10, "split": "test", "hr": {"1": 0.5}})
    tags[TAG] = json.dumps(
        {"a": {"samples": 5, "versions": 2}, "b": {"samples": 5, "versions": [0, 2]}}
    )
    [view] = build_model("cprec", [version(1, "trunk", **tags)], {}).versions
    assert [entry.domain for entry in view.evaluations] == ["Games"]
    assert [entry.source for entry in view.trained_on] == ["b"]
