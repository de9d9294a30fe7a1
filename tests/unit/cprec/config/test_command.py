"""How a job ends: its exit code, and one message."""

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.errors import (
    FAULT,
    INTERRUPTED,
    REFUSED,
    CprecError,
    GateRefusedError,
    PlatformFault,
    RecipeError,
    UserError,
)
from cprec.config import command
from cprec.config.cli import Job

ROOT = Path(__file__).resolve().parents[4]
STARTS_OVER = "the same command starts over"
JOBS = {
    path.stem: STARTS_OVER for path in (ROOT / "jobs").glob("*.py") if path.stem != "source_roots"
} | {
    "cpt": command.RESUMES,
    "anneal": command.RESUMES,
    "tune_lr": command.RESUMES,
    "evaluate": "the same command goes on with what is not scored yet",
    "batch_recommend": "the same command goes on with the blocks that are missing",
    "serve": "the same command starts the server again",
    "console": "the same command starts the console again",
    "reproduce": "the same command goes on with the steps that are missing",
}
"""What the command of each job does after an interruption."""


@pytest.fixture(autouse=True)
def _sigterm() -> Iterator[None]:
    """Restores the handler: `main` expects its process to end, and this one goes on."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _terminated() -> None:
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL, "this process would end here"
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def _refused() -> None:
    raise UserError("no such run")


def _refused_by_the_gate() -> None:
    raise GateRefusedError("version 2 was not promoted")


def _broken() -> None:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("action", "code", "message"),
    [
        (lambda: None, command.SUCCESS, ""),
        (_refused, command.USER_ERROR, "error: no such run\nsee docs/operations/README.md\n"),
        (
            _refused_by_the_gate,
            REFUSED,
            "refused: version 2 was not promoted\nsee docs/how-to/promote-and-use.md\n",
        ),
        (
            _terminated,
            INTERRUPTED,
            "interrupted; the same command starts over\n",
        ),
    ],
)
def test_exit_code_and_message(
    action: Callable[[], None],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py"])
    assert command.main(Job(lambda recipe, options: action(), "A job.", ())) == code
    assert capsys.readouterr().err == message


def test_every_dry_run_ends_with_the_same_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py", "--dry-run"])
    assert command.main(Job(lambda recipe, options: None, "A job.", ())) == command.SUCCESS
    assert capsys.readouterr().err == f"{command.DRY_RUN}\n"


@pytest.mark.parametrize("job", sorted(JOBS))
def test_an_interrupted_job_says_what_its_command_does_next(
    job: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only jobs that train have a checkpoint to go on from."""
    said: list[str] = []

    def note(job: Job) -> int:
        said.append(job.again)
        return 0

    monkeypatch.setattr(command, "main", note)
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    assert said == [JOBS[job]]


def test_what_nobody_expected_is_shown_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py"])
    assert command.main(Job(lambda recipe, options: _broken(), "A job.", ())) == FAULT
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.splitlines()[-1] == (
        "fault: OSError: the disk is gone; the same command starts over"
    )


ABANDONS_A_THREAD = """
import atexit, os, signal, threading, time
from cluster.processes.ray_threads import start_ray_thread
from cprec.config import command
from cprec.config.cli import Job

def work(recipe, options):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    start_ray_thread(lambda: time.sleep(60)).wait()

atexit.register(print, "an exit handler")
raise SystemExit(command.main(Job(work, "A job.", ())))
"""


def test_a_job_that_leaves_a_thread_which_uses_ray_ends_without_exit_handlers() -> None:
    """One of them is Ray's, which shuts it down beneath the thread."""
    job = subprocess.run(
        [sys.executable, "-c", ABANDONS_A_THREAD], cwd=ROOT, capture_output=True, text=True
    )
    assert (job.returncode, job.stdout) == (INTERRUPTED, "")
    assert job.stderr == "interrupted; the same command starts over\n"


def test_a_key_under_its_old_name_is_noted_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py", "--search.rates", "1e-3"])
    job = Job(lambda recipe, options: print(recipe.search.lrs), "A job.", ())
    assert command.main(job) == 0
    shown = capsys.readouterr()
    assert shown.out == "(0.001,)\n"
    assert shown.err == "--search.rates is now called --search.lrs\n"


def test_each_kind_of_error_names_a_page_that_is_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kinds(of: type[CprecError]) -> Iterator[type[CprecError]]:
        for kind in of.__subclasses__():
            yield kind
            yield from kinds(kind)

    monkeypatch.setattr(sys, "argv", ["job.py"])
    found = list(kinds(CprecError))
    assert {RecipeError, PlatformFault} <= set(found)
    for kind in found:
        assert (ROOT / kind.page).is_file(), kind

        def fail(recipe: object, options: object, kind: type[CprecError] = kind) -> None:
            raise kind("broken")

        command.main(Job(fail, "A job.", ()))
        assert capsys.readouterr().err.rstrip().endswith(f"see {kind.page}")
