"""Runs jobs as a person does: a script, a recipe, and the output."""

import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 400
"""Seconds that a job, or a wait for one, may take."""
CONSOLE_TOKEN = "the-token-of-this-test"
STARTED: list["subprocess.Popen[str]"] = []


def recipe(place: Path, **changes: Mapping[str, Any] | str | int) -> Path:
    """Writes a small recipe of simulated shoppers below a folder, and returns its path.

    It has three domains, one that is held out, a model of 0.05M weights, and a few dozen steps.

    Args:
        place: The folder.
        changes: Keys and sections of the recipe to replace.
    """
    values: dict[str, Any] = {
        "run": "small",
        "storage": f"{place}/runs",
        "corpus": f"{place}/corpus",
        "data": {
            "root": f"{place}/shoppers",
            "format": "simulated",
            "domains": ["Garden", "Office", "Sports"],
            "held_out": ["Games"],
        },
        "simulate": {"users": 60, "items_per_domain": 40},
        "model": {"lora_dropout": 0.1, "max_tokens": 512},
        "tiny": {"hidden": 32, "layers": 1, "heads": 2, "vocabulary": 600, "language_steps": 5},
        "schedule": {"lr_max": 1e-3, "segment_samples": 512},
        "train": {"global_batch": 32, "zero_stage": 0, "max_samples": 300},
        "checkpoint": {"every_samples": 64},
        **changes,
    }
    path = place / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def start(
    job: str, *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Starts a job in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, f"jobs/{job}.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


@contextmanager
def console(recipe: str | Path, *arguments: str) -> "Iterator[tuple[str, subprocess.Popen[str]]]":
    """Runs the console beside the `with` block; yields its address and its process."""
    process = start(
        "console", recipe, "--console.port", "0", *arguments,
        environment={"CPREC_CONSOLE_TOKEN": CONSOLE_TOKEN},
    )  # fmt: skip
    printed: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: printed.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        wait_for(process, lambda: any("console: http" in line for line in printed))
        found = re.search(r"console: (http://\S+)/\n", "".join(printed))
        assert found, "the token that was given is printed"
        yield found[1], process
    finally:
        process.terminate()
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, err
    assert CONSOLE_TOKEN not in "".join(printed) + err


def end_all() -> None:
    """Kills the jobs that failed tests left running."""
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()


def run(
    job: str, *arguments: str | Path, code: int = 0, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Runs a job to its end.

    Args:
        job: Name of the script.
        arguments: Its arguments.
        code: The exit code that it must have.
        environment: Variables to add to the environment.
    """
    with start(job, *arguments, environment=environment) as process:
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, (
        f"exit code {process.returncode}\n{out[-3000:]}\n{err[-3000:]}"
    )
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_python(*arguments: str | Path, environment: Mapping[str, str], timeout_s: float) -> str:
    """Runs a Python process in the root of the project to its end, and returns its stdout.

    Args:
        arguments: Arguments of the interpreter.
        environment: The whole environment of the process.
        timeout_s: Time that it may take (seconds).
    """
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def worker_environment() -> dict[str, str]:
    """Returns the environment of a process that imports cprec and computes on one core."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
    }


def run_here(job: str, *arguments: str | Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
    """Runs a job in this process, which saves the time of its imports.

    Args:
        job: Name of the script.
        arguments: Its arguments.
        code: The exit code that it must have.
    """
    argv = [f"jobs/{job}.py", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        patch.chdir(ROOT)
        patch.syspath_prepend(str(ROOT / "jobs"))
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    assert ended.value.code == code, err.getvalue()
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def refused(job: str, *arguments: str | Path) -> str:
    """Returns the message of a job that must refuse its arguments with exit code 1."""
    ended = run_here(job, *arguments, code=1)
    assert "Traceback" not in ended.stderr + ended.stdout
    assert ended.stderr.startswith("error: ")
    return ended.stderr


def wait_for(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    """Waits until a condition holds; fails if the job ends before."""
    end = time.monotonic() + LIMIT_S
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.05)


def below(driver: int, *names: str) -> list[psutil.Process]:
    """Returns the descendants of a driver whose titles start with one of the names.

    Args:
        driver: Process id of the driver.
        names: Beginnings of titles; without any, all descendants are returned.
    """
    processes = []
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
            if (process.cmdline() or [""])[0].startswith(names or ("",)):
                processes.append(process)
    return processes


def names_below(driver: int) -> dict[psutil.Process, str]:
    """Returns the descendants of a driver, and the name of each one's program."""
    names = {}
    for process in below(driver):
        with suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
            names[process] = process.name()
    return names


def kill_when(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    """Kills the driver of a running job with SIGKILL once a condition holds.

    Waits until its workers, which outlive it a little, have ended.

    Args:
        process: The driver.
        reached: The condition.
    """
    wait_for(process, reached)
    os.kill(process.pid, signal.SIGSTOP)  # it stands still while its descendants are listed
    workers = below(process.pid, "ray::RayTrain", "ray::Controller", "ray::ImplicitFunc")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, f"still alive after the death of their driver: {alive}"


def lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file of JSON lines, without an incomplete last line."""
    if not path.exists():
        return []
    return [
        json.loads(line)
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
