"""What is listed is shown as columns that stay aligned, whatever the names are."""

from dataclasses import replace

from cprec.runs.control.liveness import Liveness
from cprec.runs.control.overview import RunGlance, build_overview
from cprec.runs.events import Failed
from cprec.workflows.list_storage import CorpusVersion, ModelVersion, format_lists
from tests.unit.cprec.runs.control.test_overview import glance


def test_rows_are_aligned_and_what_is_not_known_is_empty() -> None:
    done = build_overview(glance(Liveness.GONE, ended=True, state="ended", phase="done"))
    saved = replace(done, run="a", time=0.0, checkpoint="/s/a/checkpoints/000000064000-0")
    failed = RunGlance("[red]long-name", events=[Failed(samples=1, because="no\nroom")])
    assert format_lists({"runs": [saved, build_overview(failed)]}).splitlines() == [
        "RUN             STATE   PHASE  SAMPLES     OF    LOSS  CHECKPOINT      SEEN (UTC)  REMARK",
        "a               done    done       500  2,000  1.0000  000000064000-0",
        "[red]long-name  failed" + " " * 61 + "no room",
    ]


def test_each_part_that_was_asked_for_has_a_heading() -> None:
    versions = [CorpusVersion("/c", 0, "2026-11-27 07:00:00 UTC", "Garden, Office", 1_000)]
    models = [
        ModelVersion("cprec", 3, ("champion",), "/s/a", "/s/a/checkpoints/1-0", {"Games": 0.5})
    ]
    text = format_lists({"corpora": versions, "models": models})
    assert text.splitlines() == [
        "CORPUS  VERSION  MADE (UTC)        SAMPLES  ADDED",
        "/c            0  2026-11-27 07:00    1,000  Garden, Office",
        "",
        "MODEL  VERSION  ALIASES   RUN  HR@1",
        "cprec        3  champion  a    Games 0.5000",
    ]
    assert format_lists({"models": []}) == "MODEL  VERSION  ALIASES  RUN  HR@1"
