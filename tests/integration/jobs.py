"""Jobs as a person runs them: the file, a recipe, and what they print."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 400
STARTED: list["subprocess.Popen[str]"] = []


def recipe(place: Path, **changes: Mapping[str, Any] | str | int) -> Path:
    """A small recipe of simulated shoppers below a folder: three domains, one held out, a model of 0.05M weights, a few dozen steps."""
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
        "train": {"global_batch": 32, "zero_stage": 2, "max_samples": 300},
        "checkpoint": {"every_samples": 64},
        **changes,
    }
    path = place / "recipe.yaml"
    path.write_text(json.dumps(values))
    return path


def start(
    job: str, *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start a job in a process group of its own."""
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


def end_all() -> None:
    """Kill what a failed test left running."""
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()


def run(
    job: str, *arguments: str | Path, code: int = 0, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a job to its end, which must come with the given exit code."""
    with start(job, *arguments, environment=environment) as process:
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, (
        f"exit code {process.returncode}\n{out[-3000:]}\n{err[-3000:]}"
    )
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def refused(
    job: str,
    *arguments: str | Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The one message of a job that must end with exit code 1, run in this process to spare the imports."""
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", *map(str, arguments)])
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
    seen = capsys.readouterr()
    assert ended.value.code == 1, seen.err
    assert "Traceback" not in seen.err + seen.out
    assert seen.err.startswith("error: ")
    return seen.err


def wait_for(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    """Wait until a condition holds, which must be while a job is running."""
    end = time.monotonic() + LIMIT_S
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.05)


def below(driver: int, *names: str) -> list[psutil.Process]:
    """The processes below a driver whose titles begin with one of some names; all of them without a name."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # some live for a moment only
            if (process.cmdline() or [""])[0].startswith(names or ("",)):
                found.append(process)
    return found


def kill_when(
    process: "subprocess.Popen[str]", reached: Callable[[], bool], whole_cluster: bool = False
) -> None:
    """kill -9 the driver of a running job once a condition holds, and wait until its workers, which live a little longer, are gone.

    whole_cluster: kill every process of its local Ray with it.
    """
    wait_for(process, reached)
    os.kill(process.pid, signal.SIGSTOP)  # at this very moment; whom it started is looked up then
    workers = below(process.pid, "ray::RayTrain", "ray::Controller", "ray::ImplicitFunc")
    for victim in below(process.pid) if whole_cluster else []:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, left = psutil.wait_procs(workers, timeout=60)
    assert not left, f"still there after their driver's death: {left}"


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, a cut last line left out."""
    if not path.exists():
        return []
    return [
        json.loads(line)
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
