"""Requests to a run whose storage is an object store."""

import json
import time

import pytest

from cluster.storage import join, list_names, write_text
from cprec.runs.control import request_queue
from cprec.runs.control.request_queue import BadRequest, Request, RequestQueue


def test_requests_on_s3_are_served_in_order_and_others_moved_aside(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_queue, "GRACE_S", 0.0)
    run_uri = join(s3, "runs", "trunk")
    queue = RequestQueue(run_uri)
    assert queue.take(()) == []
    # The second is sent a second later, from a machine whose clock is behind.
    for name, action in (("2", "hold"), ("1", "release")):
        write_text(join(run_uri, "requests", f"{name}.json"), json.dumps({"do": action}))
        time.sleep(1.1)
    write_text(join(run_uri, "requests", "bad.json"), "{garbage")
    write_text(join(run_uri, "requests", "folder.json", "inside.json"), "{}")
    taken = queue.take(())
    assert [r for r in taken if isinstance(r, Request)] == [
        Request("2", "hold"),
        Request("1", "release"),
    ]
    bad = [r for r in taken if isinstance(r, BadRequest)]
    assert {b.id for b in bad} == {"bad", "folder"}
    for b in bad:
        queue.move_aside(b)
    assert len(list_names(join(run_uri, "requests-refused"))) == 2
    assert queue.remove({"1", "2"}) == set()
    assert queue.take(()) == []
