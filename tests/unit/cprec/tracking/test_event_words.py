"""Events in words: the same in the terminal, the report and the console."""

from cprec.runs.events import Held, PreemptionNoticed, RunFinished, StorageFailed, WorkersFailed
from cprec.tracking.event_words import describe_event


def test_workers_of_which_nothing_was_heard_are_named() -> None:
    hung = WorkersFailed(samples=96, attempt=2, because="rank 0: timed out", silent=[1, 3])
    assert describe_event(hung).line() == (
        "workers failed (sample 96): rank 0: timed out; nothing was heard of rank 1, 3"
    )
    heard = hung.model_copy(update={"silent": []})
    assert describe_event(heard).text == "rank 0: timed out"
    many = hung.model_copy(update={"silent": list(range(1, 512))})
    assert describe_event(many).text.endswith("of rank 1, 2, 3, 4, 5, 6, 7, 8 ...")


def test_a_line_says_what_where_and_details_if_there_are_any() -> None:
    assert describe_event(PreemptionNoticed(samples=96, ranks=[0], deadline=None)).line() == (
        "nodes are taken away soon (sample 96): a checkpoint is saved before"
    )
    assert describe_event(StorageFailed(samples=1024, because="no answer")).line() == (
        "storage is away (sample 1,024): training goes on: no answer"
    )
    assert describe_event(RunFinished(samples=64, checkpoint="c")).line() == "finished (sample 64)"
    assert describe_event(Held(samples=64, by="anna")).by == "anna"
