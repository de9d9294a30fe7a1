"""Whatever lies among the requests, each request is served, in order, and the rest moved aside."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprec.runs.control import request_queue
from cprec.runs.control.request_queue import Action, BadRequest, Request, RequestQueue
from cprec.runs.events import RequestRefused

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of requests of a run; no time is left to writers that are not done."""
    monkeypatch.setattr(request_queue, "GRACE_S", 0.0)
    folder = tmp_path / "requests"
    folder.mkdir()
    return folder


def write(folder: Path, name: str, content: bytes, age_s: float) -> None:
    """Writes a request that arrived some time ago."""
    (folder / f"{name}.json").write_bytes(content)
    then = time.time() - age_s
    os.utime(folder / f"{name}.json", (then, then))


def test_requests_are_taken_in_the_order_of_their_arrival(folder: Path) -> None:
    for name, action, age in (("a", "hold", 1), ("b", "anneal", 3), ("c", "release", 2)):
        write(folder, name, json.dumps({"do": action, "by": "somebody"}).encode(), age)
    queue = RequestQueue(str(folder.parent))
    asked: list[tuple[str, Action]] = [("b", "anneal"), ("c", "release"), ("a", "hold")]
    expected = [Request(name, action, "somebody") for name, action in asked]
    assert queue.take(()) == expected
    assert queue.take({"b"}) == expected[1:]
    assert queue.remove({"a", "b", "gone"}) == set()
    assert queue.take(()) == expected[1:2]


@pytest.mark.parametrize(
    "sender",
    [
        *("Ada\n  L.", ["Ada"], {"x": 1}, 7, "x" * 10_000),
        *("\ud800", "\ud800" * 80, "\x1b[31mred", "\u202eright to left"),
    ],
)
def test_whatever_a_sender_is_called_is_one_short_line(folder: Path, sender: object) -> None:
    write(folder, "a", json.dumps({"do": "hold", "by": sender}).encode(), 0)
    [request] = RequestQueue(str(folder.parent)).take(())
    assert isinstance(request, Request)
    assert request.by
    assert request.by.isprintable()  # so any page, terminal and UTF-8 file can hold it
    assert len(request.by) <= request_queue.MAX_SENDER


@given(content=st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_no_content_keeps_the_other_requests_from_being_served(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run") / "requests"
    folder.mkdir()
    write(folder, "any", content, 1)
    write(folder, "good", b'{"do": "hold"}', 0)
    queue = RequestQueue(str(folder.parent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_queue, "GRACE_S", 0.0)
        bad, good = queue.take(())
        assert good == Request("good", "hold")
        assert isinstance(bad, BadRequest)
        moved = Path(queue.move_aside(bad))
        assert moved.read_bytes() == content
        assert queue.take(()) == [good]


def test_what_is_no_readable_file_is_moved_aside(folder: Path) -> None:
    (folder / "folder.json").mkdir()
    (folder / "folder.json" / "inside.json").write_text('{"do": "hold"}')
    (folder / "dangling.json").symlink_to(folder / "nowhere")
    (folder / "circle.json").symlink_to(folder / "circle.json")
    os.mkfifo(folder / "pipe.json")  # a reader would wait for ever
    (folder / "huge.json").write_bytes(b" " * (request_queue.MAX_REQUEST_BYTES + 1))
    (folder / "deep.json").write_text("[" * 60_000)
    odd = ["odd \n name", "*", "a::b", "ä" * 120, "\udcff"]
    for name in odd:
        (folder / f"{name}.json").write_text("7")
    (folder / ".hold.json.1.partial").write_text("{")
    (folder / "notes.txt").write_text("hold")
    queue = RequestQueue(str(folder.parent))
    taken = queue.take(())
    unreadable = ["folder", "dangling", "circle", "pipe", "huge", "deep"]
    assert {bad.name for bad in taken if isinstance(bad, BadRequest)} == {
        f"{name}.json" for name in unreadable + odd
    }
    for bad in taken:
        assert isinstance(bad, BadRequest)
        RequestRefused(samples=0, request=bad.id, because=queue.move_aside(bad))
    assert queue.take(()) == []
    assert sorted(path.name for path in folder.iterdir()) == [".hold.json.1.partial", "notes.txt"]
    assert len(list((folder.parent / "requests-refused").iterdir())) == len(taken)


def test_a_request_that_is_still_being_written_is_taken_when_it_is_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_queue, "GRACE_S", 60.0)
    queue = RequestQueue(str(folder.parent))
    (folder / "slow.json").write_text('{"do": "ho')
    assert queue.take(()) == []
    (folder / "slow.json").write_text('{"do": "hold"}')
    assert queue.take(()) == [Request("slow", "hold")]


def test_what_cannot_be_moved_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "bad", b"7", 0)
    queue = RequestQueue(str(folder.parent))
    [bad] = queue.take(())
    assert isinstance(bad, BadRequest)

    def refuse(source: str, target: str) -> None:
        raise PermissionError(13, "not yours", source)

    monkeypatch.setattr(request_queue, "move", refuse)
    assert queue.move_aside(bad) == str(folder / "bad.json")
    assert queue.take(()) == []
    name = b"caf\xe9.json".decode("utf-8", "surrogateescape")
    (folder / name).write_bytes(b"7")
    [bad] = queue.take(())
    assert isinstance(bad, BadRequest)
    assert queue.move_aside(bad).isprintable()
