"""The notebooks of the docs run as they stand, each in a kernel of its own."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import polars as pl
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import cprec
from cprec.runs.control.status import read_status
from tests.integration import jobs

NOTEBOOKS = jobs.ROOT / "docs" / "notebooks"

# A library of Jupyter's own; the kernel is another process.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq.*")


def open_notebook(name: str, folder: Path, patch: pytest.MonkeyPatch) -> NotebookClient:
    """Opens a notebook whose kernel is going to work in a folder."""
    patch.setenv("IPYTHONDIR", str(folder / "ipython"))
    patch.setenv("PYTHONPATH", jobs.worker_environment()["PYTHONPATH"])
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=jobs.LIMIT_S, resources=resources)


def printed(client: NotebookClient, code: str) -> str:
    """What the cell that contains a piece of code has printed and shown."""
    [cell] = [cell for cell in client.nb.cells if code in cell.source]
    outputs = (output.get("text") or output["data"]["text/plain"] for output in cell.outputs)
    return "".join(outputs)


def interrupt_when(reached: Callable[[], bool], kernel: Any) -> threading.Thread:
    """Interrupts a kernel as Jupyter does, once a condition holds."""

    def wait_and_interrupt() -> None:
        end = time.monotonic() + jobs.LIMIT_S
        while not reached() and time.monotonic() < end:
            time.sleep(0.2)
        os.killpg(os.getpgid(kernel.provisioner.pid), signal.SIGINT)

    thread = threading.Thread(target=wait_and_interrupt, daemon=True)
    thread.start()
    return thread


def test_first_steps_and_a_training_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the notebook trains, the same run is held open and interrupted while it waits."""
    client = open_notebook("first-steps", tmp_path, monkeypatch)
    run_uri = str(tmp_path / "out" / "first-steps" / "runs" / "first")
    training = next(
        i for i, cell in enumerate(client.nb.cells) if "cprec.pretrain(recipe)" in cell.source
    )
    with client.setup_kernel():
        for index in range(training):
            client.execute_cell(client.nb.cells[index], index)

        def waits() -> bool:
            status = read_status(run_uri)
            return status is not None and status.state == "waiting"

        held = 'cprec.pretrain(recipe.replace(schedule={"hold_open": True}))'
        cell = nbformat.v4.new_code_cell(held)
        client.nb.cells.insert(training, cell)
        thread = interrupt_when(waits, client.km)
        with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
            client.execute_cell(cell, training)
        thread.join()
        stopped = cprec.Run(run_uri)
        assert stopped.state == "stopped"
        last_step = stopped.trace().select("samples", "batch_samples").row(-1)
        assert stopped.checkpoints()["samples"][-1] == sum(last_step)
        for index in range(training + 1, len(client.nb.cells)):
            client.execute_cell(client.nb.cells[index], index)
    shown = printed(client, "run = cprec.pretrain(recipe)")
    assert "resuming first from" in shown
    assert "\r" in shown, "a line that rewrites itself shows how it goes"
    run = cprec.Run(run_uri)
    audit = run.audit
    assert audit is not None
    assert (run.state, audit["missing"], audit["repeated"]) == ("done", 0, 0)
    assert "did you mean train.global_batch?" in printed(client, "global_bach")
    assert "games-00000" in printed(client, "ids=True")


def test_continual_learning_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_notebook("continual-learning-live", tmp_path, monkeypatch)
    client.execute()
    assert "trunk takes up corpus version 1 at sample" in printed(client, "corpus.append(new_shop)")
    trunk = cprec.Run(str(tmp_path / "out" / "live" / "runs" / "trunk"))
    audit = trunk.audit
    assert audit is not None
    assert (trunk.state, audit["missing"], audit["repeated"]) == ("done", 0, 0)
    rows = trunk.trace().explode("sources").unnest("sources")
    joined = rows.filter(pl.col("source") == "domain/Sports")
    before = rows.filter(pl.col("source") == "domain/Garden")
    assert joined["samples"].min() >= before["samples"].min()  # type: ignore[operator]
    assert set(joined["lr"]) == {1e-3}
    assert set(joined["phase"]) == {"stable"}
