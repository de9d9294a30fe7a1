"""Every comparison is kept by name and time; files of earlier releases are read beside them."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cprec.runs.comparisons import (
    comparison_name,
    newest_by_name,
    read_comparisons,
    write_comparison,
)


def comparison(
    name: str, time: float, domain: str = "Games", split: str = "test"
) -> dict[str, Any]:
    given = {"name": name, "time": time, "domain": domain, "split": split, "mode": "score"}
    return {**given, "measure": "HR@1", "days": "", "rows": []}


def test_a_later_comparison_leaves_the_earlier_ones(tmp_path: Path) -> None:
    made = [
        comparison("base_candidate", 100.5),
        comparison("1_2", 101.0),
        comparison("base_candidate", 102.25),
        comparison("base_candidate", 103.0, "Books"),
    ]
    places = {write_comparison(str(tmp_path), c["domain"], c) for c in reversed(made)}
    assert len(places) == 4
    assert places >= {
        f"{tmp_path}/evaluation/Games/comparisons/base_candidate/19700101T000140.500000Z.json"
    }
    assert read_comparisons(str(tmp_path)) == made
    assert newest_by_name(made) == made[1:]
    validated = comparison("base_candidate", 104.0, split="validation")
    assert newest_by_name([*made, validated]) == [*made[1:], validated]


def test_comparisons_of_earlier_releases_are_read_as_the_oldest(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation" / "Games"
    (folder / "version-1").mkdir(parents=True)

    def earlier(mode: str) -> dict[str, Any]:
        rows = [{"name": name, "metrics": {"mode": mode}} for name in ("base", "candidate")]
        return {"domain": "Games", "split": "test", "rows": rows}

    (folder / "comparison.json").write_text(json.dumps(earlier("score")))
    (folder / "comparison-generate.json").write_text(json.dumps(earlier("generate")))
    found = read_comparisons(str(tmp_path))
    assert [(c["name"], c["time"], c["mode"]) for c in found] == [
        ("base_candidate_generate", 0.0, "generate"),
        ("base_candidate", 0.0, "score"),
    ]
    write_comparison(str(tmp_path), "Games", comparison("base_candidate", 5.0))
    newest = newest_by_name(read_comparisons(str(tmp_path)))
    assert [(c["name"], c["time"]) for c in newest] == [
        ("base_candidate_generate", 0.0),
        ("base_candidate", 5.0),
    ]


def test_a_run_without_an_evaluation_has_none(tmp_path: Path) -> None:
    assert read_comparisons(str(tmp_path)) == []


words = st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=4).map(tuple)
modes = st.sampled_from(["score", "generate", "constrained"])


@given(st.tuples(words, modes), st.tuples(words, modes))
def test_names_are_safe_and_different(
    one: tuple[tuple[str, ...], str], other: tuple[tuple[str, ...], str]
) -> None:
    names = [comparison_name(*one), comparison_name(*other)]
    for name in names:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
        assert name.strip(".")
        assert len(name) < 120
    assert (names[0] == names[1]) is (one == other)


def test_names_say_what_was_compared() -> None:
    assert comparison_name(["base", "candidate"], "score") == "base_candidate"
    assert comparison_name(["1", "2"], "generate") == "1_2_generate"
    assert comparison_name(["models:/cprec/1"], "score").startswith("models-cprec-1-")
