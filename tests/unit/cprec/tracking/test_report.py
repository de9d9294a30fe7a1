"""The report: renders whatever records there are, escapes all of them, and is one offline page."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cprec.config.sections.services import CostSettings
from cprec.runs.comparisons import write_comparison
from cprec.runs.control.lease import current_owner
from cprec.runs.records import Attempt
from cprec.runs.run_records import RunRecords, read_run_records
from cprec.schedule.wsa import WSA
from cprec.tracking import figures
from cprec.tracking.registry import Version
from cprec.tracking.report import page as report
from cprec.tracking.report.content import Registered
from tests.records import trace_row

STEPS, BATCH = 600, 128
EVIL = "<script>alert(1)</script>"


def trace() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for step in range(STEPS):
        phase = "warmup" if step < 30 else "stable" if step < 450 else "annealing"
        names = (
            ["mixed"]
            if phase == "annealing"
            else ["domain/Books", "domain/Games", *(["domain/Music"] if step >= 250 else [])]
        )
        counts = rng.multinomial(BATCH, np.full(len(names), 1 / len(names)))
        lr = 5e-4 * (
            step / 30
            if step < 30
            else 1
            if step < 450
            else (1 + np.cos(np.pi * (step - 450) / 150)) / 2
        )
        rows.append(
            {
                "step": step,
                "samples": step * BATCH,
                "batch_samples": BATCH,
                "phase": phase,
                "lr": lr,
                "loss": 0.3 + 2 * np.exp(-step / 80),
                "supervised_tokens": 900,
                "tokens": 30_000,
                "dropped_titles": 2,
                "step_s": rng.uniform(0.9, 1.3),
                "data_wait_s": 0.01,
                "sources": dict(zip(names, counts.tolist(), strict=True)),
                "objectives": {"next_item": 3, "masked_item": 1},
                "ids_digest": "0" * 16,
            }
        )
    return rows


def events() -> list[dict[str, Any]]:
    return [
        {"time": 1_700_000_000.0, "event": "run_started", "samples": 0, "because": EVIL},
        {
            "time": 1_700_000_300.5,
            "event": "corpus_version_adopted",
            "samples": 250 * BATCH,
            "version": 1,
            "sources": {"domain/Music": 5},
            "S": 1,
            "A": 2,
        },
        {"time": 1_700_000_600.0, "event": "run_finished", "samples": STEPS * BATCH},
    ]


def audit() -> dict[str, Any]:
    four = {"planned": 1200, "trained": 1200, "missing": 0, "repeated": 0}
    return {**four, "sources": {"domain/Books": {"0": four}, EVIL: {"1": {**four, "missing": 7}}}}


def comparison() -> dict[str, Any]:
    measured = {"n": 1500, "hr": {"1": 0.05, "3": 0.15, "5": 0.25}, "ndcg": {"3": 0.1, "5": 0.2}}
    against = {
        "n": 1500,
        "difference": 0.21,
        "low": 0.18,
        "high": 0.24,
        "p": 1e-12,
        "confidence": 0.95,
    }
    return {
        "domain": EVIL,
        "split": "test",
        "rows": [
            {"name": "base", "model": "base", "metrics": measured, "against": None},
            {"name": "candidate", "model": "version-3", "metrics": measured, "against": against},
        ],
    }


PRICED = CostSettings(price_per_worker_hour=2.0, currency="EUR")


def write(run: Path, registered: Registered | None = None) -> dict[str, str]:
    return report.write(read_run_records(str(run)), PRICED, registered)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    (folder / "evaluation" / "Stationery").mkdir(parents=True)
    (folder / "trace.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in trace()) + '{"step": 600, "sam'
    )
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events()))
    (folder / "audit.json").write_text(json.dumps(audit()))
    (folder / "resolved.yaml").write_text(f"run: {EVIL}\n")
    (folder / "evaluation" / "Stationery" / "comparison.json").write_text(json.dumps(comparison()))
    return folder


def test_everything_is_on_one_offline_page(run: Path) -> None:
    page = write(run)["report.html"]
    assert page.count("<figure>") == 3
    assert (run / "report.html").read_text() == page
    for shown in (
        "pre-trained on 76,800 samples of Books, Games, Music",
        "<dt>Steps</dt><dd>600</dd>",
        "<dt>Objectives</dt><dd>next_item 75.0%, masked_item 25.0%</dd>",
        "<dt>Titles that did not fit</dt><dd>1,200</dd>",
        "domain/Music",
        "version 1",
        "annealing",
        "+0.2100",
        "candidate (version-3)",
        "2023-11-14 22:13:20 UTC",
    ):
        assert shown in page
    assert not re.search(r"(src|href)=\"(http|//)", page)
    assert len(page) < 1_000_000


def test_the_schedule_picture_marks_what_joined_restarts_and_the_plan(run: Path) -> None:
    resumed = {
        "time": 1_700_000_400.0,
        "event": "resumed",
        "samples": 300 * BATCH,
        "from": "x",
        "attempt": 1,
        "workers": 2,
    }
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps(resumed) + "\n")
    pages = write(run)
    picture = pages["schedule.svg"]
    assert (run / "schedule.svg").read_text() == picture
    # Events are told in words, without JSON.
    assert "2 workers, attempt 1" in pages["report.html"]
    for shown in (
        "version 1: Music",
        "restart",
        "warmup",
        "stable",
        "annealing",
        "domain/Books",
        "trained",
    ):
        assert shown in picture
    assert "planned" not in picture
    records = read_run_records(str(run))
    assert "planned" in figures.plot_schedule(records, WSA(1e-5, 5e-4, 10, 20, 2 * STEPS * BATCH))


def test_the_perplexity_of_the_text_is_drawn_where_it_was_measured(run: Path) -> None:
    before = write(run)["report.html"]
    assert "What it forgot" not in before
    measured = [(0, 12.5), (300 * BATCH, 13.0), (300 * BATCH, 13.0), (STEPS * BATCH, 15.75)]
    with (run / "events.jsonl").open("a") as file:
        for samples, value in measured:
            file.write(
                json.dumps(
                    {
                        "time": 1_700_000_500.0,
                        "event": "perplexity_measured",
                        "samples": samples,
                        "perplexity": value,
                    }
                )
                + "\n"
            )
    pages = write(run)
    assert "12.5 → 15.75" in pages["report.html"]
    assert "+26.0%" in pages["report.html"]
    assert "perplexity of text" in pages["schedule.svg"]
    assert read_run_records(str(run)).perplexities == sorted(set(measured))


@pytest.mark.parametrize(("samples", "anchor"), [(10 * BATCH, "start"), (590 * BATCH, "end")])
def test_the_label_of_a_join_stands_on_the_side_with_more_room(
    run: Path, samples: int, anchor: str
) -> None:
    joined = {
        "time": 1_700_000_400.0,
        "event": "corpus_version_adopted",
        "version": 7,
        "samples": samples,
        "sources": {"domain/Automotive": 64},
        "S": 500 * BATCH,
        "A": STEPS * BATCH,
    }
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps(joined) + "\n")
    picture = write(run)["schedule.svg"]
    (label,) = re.findall(r"<text [^>]*>version 7: Automotive</text>", picture)
    assert (f"text-anchor: {anchor}" in label) or (anchor == "start" and "anchor" not in label)


def test_what_came_from_outside_is_escaped(run: Path) -> None:
    page = write(run)["report.html"]
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_equal_records_give_an_equal_page(run: Path) -> None:
    assert write(run)["report.html"] == write(run)["report.html"]


def test_sources_and_phases_are_text_in_the_plots() -> None:
    row = trace_row(sources={EVIL: 64, "domain/A$B$C": 64})
    records = RunRecords(EVIL, trace=[row])
    page = report.render_html(records, PRICED, figures.draw_all(records))
    assert "<script" not in page
    assert "domain/A$B$C" in page


def test_a_run_without_records_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    page = write(tmp_path / "new")["report.html"]
    assert "No step was trained yet." in page


def test_of_a_step_that_was_trained_again_the_last_counts() -> None:
    first, again = trace_row(), trace_row(tokens=77)
    records = RunRecords("r", trace=[first, again])
    assert "<dt>Tokens</dt><dd>77</dd>" in report.render_html(records, PRICED, {})


def test_the_newest_comparison_of_each_name_is_shown(run: Path) -> None:
    """The file of an earlier release has no time, so it is the oldest of its name."""
    first = {"name": "1_2", "time": 1_700_000_000.0, "mode": "generate", **comparison()}
    again = {**comparison(), "name": "1_2", "time": 1_700_000_600.0, "mode": "generate"}
    for made in (first, again):
        write_comparison(str(run), "Stationery", made)
    page = write(run)["report.html"]
    assert "base_candidate, time unknown" in page
    assert "1_2, 2023-11-14 22:23:20 UTC" in page
    assert "1_2, 2023-11-14 22:13:20 UTC" not in page
    assert "generated answers" in page
    earlier = page[page.index("Made before those above") :]
    assert "2023-11-14 22:13:20 UTC" in earlier


def test_the_number_at_the_top_is_of_the_whole_test_split(run: Path) -> None:
    for time, changes in enumerate(
        [{"split": "test"}, {"split": "validation"}, {"split": "test", "days": "2026-11-27"}]
    ):
        made = {**comparison(), "mode": "score", "time": 1_700_000_000.0 + time, **changes}
        made["rows"][-1]["metrics"]["hr"] = {"1": 0.11 * (time + 1)}
        write_comparison(str(run), "Stationery", {**made, "name": f"base_{time}"})
    [top] = re.findall(r"<dt>HR@1 of [^<]*</dt><dd>([^<]*)</dd>", write(run)["report.html"])
    assert top == "0.1100"


def versions(run: Path) -> Registered:
    """Returns a version of the run, one of a trunk before it, one tuned from it, a stranger."""

    def version(model: str, number: int, folder: str, parent: str = "", **tags: str) -> Version:
        uri = f"{folder}/checkpoints/{number}"
        lineage = {
            "base": "/bases/tiny",
            "corpus_version": str(number),
            "parent_checkpoint": parent,
        }
        return Version(model, number, uri, None, {"run": folder, **lineage, **tags})

    decision = {"promote": True, "reason": f"better {EVIL}", "by": "Ada"}
    gate = {"decision.20261127T110000.000000Z": json.dumps(decision)}
    own = str(run)
    found = [
        version("cprec", 1, "/runs/before"),
        version("cprec", 2, own, "/runs/before/checkpoints/1", **gate),
        version("cprec", 3, "/runs/stranger"),
        version("cprec-Books", 1, "/runs/t", f"{own}/checkpoints/2", kind="finetuned"),
    ]
    return Registered(found, {"cprec": {"champion": 2}, "cprec-Books": {}})


def test_where_versions_come_from_is_drawn_and_told(run: Path) -> None:
    page = write(run, versions(run))["report.html"]
    assert "Lineage of the versions" in page
    for shown in ("cprec-Books 1", "before", "champion", "promoted: better", "asked by Ada"):
        assert shown in page
    assert "stranger" not in page
    assert "models:/cprec/2" not in page  # there is no checkpoint that could be loaded
    assert "<script" not in page


def test_cost_is_of_all_workers_and_of_steps_trained_again() -> None:
    owner = current_owner()
    starts = [
        Attempt(number=i, lease=1, owner=owner, samples=samples, workers=workers)
        for i, (samples, workers) in enumerate([(0, 4), (64, 2)])
    ]
    trace = [
        trace_row(
            step=step, samples=64 * step, step_s=900.0, data_wait_s=0.0, planned_memory_gb=1.0
        )
        for step in (0, 1, 1)
    ]
    records = RunRecords("r", trace=trace, attempts=starts)
    page = report.render_html(records, PRICED, {})
    assert "2.00 GPU-hours" in page
    assert "4.00 EUR, at 2 an hour" in page


def test_what_a_reader_points_at_is_told(run: Path) -> None:
    page = write(run)["report.html"]
    assert page.count('class="hover"') > 300
    assert "<title>sample 0: loss 2.3" in page


def test_the_same_is_told_as_markdown(run: Path) -> None:
    text = report.render_markdown(read_run_records(str(run)), PRICED, versions(run))
    for shown in ("# demo", "## How well it ranks", "| candidate (version-3) |", "## Lineage"):
        assert shown in text
    assert "<script" not in text.partition("## Events")[0].replace("\\<", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.rstrip().endswith("|") for line in rows)
