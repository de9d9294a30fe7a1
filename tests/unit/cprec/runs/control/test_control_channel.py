"""Requests reach a run from its start on; those that nobody waits for are not carried out."""

import json
import time
from pathlib import Path

import pytest

from cluster.errors import RunError
from cprec.runs.control import control_channel
from cprec.runs.control.control_channel import ControlChannel
from cprec.runs.control.lease import claim
from cprec.runs.control.request_queue import Request
from cprec.runs.control.status import read_status
from cprec.runs.records import Status
from cprec.schedule.wsa import Phase


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "trunk")


def test_a_request_whose_asker_is_interrupted_is_taken_back(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claim(run, "trunk", "c", print) as held:
        channel = ControlChannel(held.lease)
        actions: list[str] = []

        def interrupt(seconds: float) -> None:
            actions.extend(r.action for r in channel.take_requests() if isinstance(r, Request))
            raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            control_channel.send_request(run, "trunk", "anneal", 60.0)
        assert actions == ["anneal"]
        assert channel.take_requests() == []


def test_a_request_to_a_run_that_has_ended_is_refused_at_once(run: str) -> None:
    with claim(run, "trunk", "c", print):
        pass
    with pytest.raises(RunError, match="the run trunk is not under way"):
        control_channel.send_request(run, "trunk", "hold", 60.0)


def test_a_finished_run_is_called_finished(run: str) -> None:
    with claim(run, "trunk", "c", print) as held:
        owner = held.lease.owner
        done = Status(run="trunk", owner=owner, state="ended", phase=Phase.DONE, samples=96)
        ControlChannel(held.lease).publish(done)
    with pytest.raises(RunError, match=r"has finished .* after 96 samples"):
        control_channel.send_request(run, "trunk", "hold", 60.0)


def test_a_run_that_starts_is_told_of_a_new_version_before_it_has_a_status(run: str) -> None:
    storage = str(Path(run).parent)
    with claim(run, "trunk", "c", print) as held:
        assert control_channel.notify_runs(storage, "another corpus", 1.0) == []
        assert control_channel.notify_runs(storage, "c", 1.0) == [
            "trunk is starting, and looks at the corpus before its first segment"
        ]
        ended = Status(run="trunk", owner=held.lease.owner, state="ended", samples=96)
        ControlChannel(held.lease).publish(ended)
        assert control_channel.notify_runs(storage, "c", 1.0) == []
    assert control_channel.notify_runs(storage, "c", 1.0) == []


def test_a_burst_leaves_nobody_without_an_answer(run: str) -> None:
    requests = Path(run) / "requests"
    requests.mkdir(parents=True)
    asked = [f"{number:05d}" for number in range(10_000)]
    for request_id in asked:
        (requests / f"{request_id}.json").write_text('{"do": "look"}')
    with claim(run, "trunk", "c", print) as held:
        channel = ControlChannel(held.lease)
        status = Status(run="trunk", owner=held.lease.owner, state="training")
        answered: list[str] = []
        while taken := channel.take_requests():
            for request in taken:
                channel.answer(request.id, "yes")
            channel.publish(status)
            written = read_status(run)
            assert written is not None
            answered += [r.id for r in taken if written.answers[r.id] == "yes"]
        assert sorted(answered) == asked
        assert list(requests.iterdir()) == []
        assert written is not None
        assert len(written.answers) == len(asked)  # also the first ones can still be read


def test_old_answers_are_forgotten(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(run, "trunk", "c", print) as held:
        channel = ControlChannel(held.lease)
        status = Status(run="trunk", owner=held.lease.owner, state="training")
        channel.answer("early", "no", refused=True)
        channel.publish(status)
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 1 + control_channel.ANSWER_KEPT_S)
        channel.answer("late", "yes")
        channel.publish(status)
        written = read_status(run)
        assert written is not None
        assert (written.answers, written.refused) == ({"late": "yes"}, [])


def test_an_answer_survives_the_controller_that_gave_it(run: str) -> None:
    with claim(run, "trunk", "c", print) as held:
        status = Status(run="trunk", owner=held.lease.owner, state="training")
        first = ControlChannel(held.lease)
        first.answer("asked", "is annealing", refused=True)
        first.publish(status)
        ControlChannel(held.lease).publish(status)
        written = read_status(run)
        assert written is not None
        assert (written.answers, written.refused) == ({"asked": "is annealing"}, ["asked"])


@pytest.mark.parametrize("request_id", ["{victim}", "../plan", "../../victim", "", "."])
def test_a_status_that_somebody_wrote_removes_no_file_elsewhere(run: str, request_id: str) -> None:
    victim = Path(run).parent / "victim.json"
    victim.write_text("{}")
    with claim(run, "trunk", "c", print) as held:
        (Path(run) / "requests").mkdir()
        plan = Path(run) / "plan.json"
        plan.write_text("{}")
        answers = {request_id.format(victim=str(victim).removesuffix(".json")): "yes", "asked": "b"}
        status = Status(run="trunk", owner=held.lease.owner, state="training", answers=answers)
        (Path(run) / "status.json").write_text(json.dumps(status.to_json()))
        ControlChannel(held.lease).publish(status)
        written = read_status(run)
        assert written is not None
        assert written.answers == {"asked": "b"}
        assert plan.exists()
        assert victim.exists()


def test_damaged_files_of_another_run_keep_no_run_from_hearing_of_a_version(run: str) -> None:
    storage = Path(run).parent
    (storage / "another" / "leases").mkdir(parents=True)
    (storage / "another" / "leases" / "000001.json").write_text("{")
    with claim(run, "trunk", "c", print):
        another, trunk = control_channel.notify_runs(str(storage), "c", 1.0)
    assert "another was not told of it" in another
    assert "leases/000001.json: damaged" in another
    assert trunk.startswith("trunk is starting")


def test_a_request_whose_answer_was_not_written_is_asked_again(run: str) -> None:
    with claim(run, "trunk", "c", print) as held:
        requests = Path(run) / "requests"
        requests.mkdir()
        (requests / "asked.json").write_text('{"do": "hold"}')
        died = ControlChannel(held.lease)
        [request] = died.take_requests()
        died.answer(request.id, "yes")
        assert ControlChannel(held.lease).take_requests() == [request]


def test_a_refusal_is_an_error_of_whoever_asked(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(run, "trunk", "c", print) as held:
        channel = ControlChannel(held.lease)

        def refuse(seconds: float) -> None:
            for request in channel.take_requests():
                channel.answer(request.id, "is annealing, and finishes as planned", refused=True)
            channel.publish(Status(run="trunk", owner=held.lease.owner, state="training"))

        monkeypatch.setattr(time, "sleep", refuse)
        with pytest.raises(RunError, match="the run trunk is annealing, and finishes as planned"):
            control_channel.send_request(run, "trunk", "anneal", 60.0)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"7", b'{"run": 7}', b"[" * 10**5])
def test_a_damaged_status_is_named_and_replaced(run: str, content: bytes) -> None:
    with claim(run, "trunk", "c", print) as held:
        (Path(run) / "status.json").write_bytes(content)
        with pytest.raises(RunError, match=r"status\.json: damaged, it holds no Status"):
            read_status(run)
        ControlChannel(held.lease).publish(
            Status(run="trunk", owner=held.lease.owner, state="training")
        )
        assert read_status(run) is not None
