"""What is listed is shown as columns that stay aligned, whatever the names are."""

from cprec.runs.control.listing import RunOverview
from cprec.workflows.list_storage import CorpusVersion, ModelVersion, format_lists


def test_rows_are_aligned_and_what_is_not_known_is_empty() -> None:
    runs = [
        RunOverview("a", "ended", "done", 64_000, 64_000, 1.25, "/s/a/checkpoints/000000064000-0"),
        RunOverview("[red]long-name", "starting", seen=0.0),
    ]
    assert format_lists({"runs": runs}).splitlines() == [
        "RUN             STATE     PHASE  SAMPLES      OF    LOSS  CHECKPOINT      SEEN (UTC)",
        "a               ended     done    64,000  64,000  1.2500  000000064000-0",
        "[red]long-name  starting" + " " * 50 + "1970-01-01 00:00",
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
