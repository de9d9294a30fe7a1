"""A training in a process of its own, so that a program or a notebook goes on meanwhile."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

import cluster
import cprec
from cluster.errors import FAULT, PlatformFault, UserError
from cprec.config.command import RESUMES, USER_ERROR, run_as_process
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe

MODULE = "cprec.api.background"


class BackgroundProcess:
    """A process that trains a run, and what it has printed.

    It goes on after the program that started it has ended.
    """

    def __init__(self, recipe: Recipe, allow_change: Collection[str]) -> None:
        """Starts the process; arguments are those of `cprec.pretrain`."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        self._last_output = ""
        roots = [str(Path(str(package.__file__)).parents[1]) for package in (cprec, cluster)]
        paths = [*dict.fromkeys(roots), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(  # noqa: S603  both words are ours
            [sys.executable, "-u", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # Ctrl-C in the program is not for the run
        )
        assert self._process.stdin is not None
        given = {"recipe": json.loads(recipe.model_dump_json()), "allow_change": [*allow_change]}
        with self._process.stdin as stdin:
            stdin.write(json.dumps(given).encode())

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def output(self) -> str:
        """Returns what it has printed so far."""
        if self._output.closed:
            return self._last_output
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode("utf-8", "replace")

    def interrupt(self) -> None:
        """Interrupts it as Ctrl-C does; it ends with a checkpoint."""
        self._process.terminate()

    def has_ended(self) -> bool:
        """Returns whether it has ended."""
        return self._process.poll() is not None

    def wait(self) -> None:
        """Waits until it has ended.

        Raises:
            UserError: It ended because the user made an error.
            PlatformFault: It ended because of a fault, or was killed.
        """
        code = self._process.wait()
        self._last_output = self.output()
        self._output.close()
        if code == USER_ERROR:
            raise UserError(self._last_message("error: "))
        if code == FAULT:
            raise PlatformFault(self._last_message("fault: "))
        if code < 0:
            raise PlatformFault(f"the process that trained was ended by signal {-code}")

    def _last_message(self, prefix: str) -> str:
        """Returns what follows the last line that begins with a prefix."""
        return f"\n{self.output()}".rpartition(f"\n{prefix}")[2].strip()


def main() -> int:
    """Trains the run of a recipe, which is read from stdin, as the process of a job does."""

    def train() -> None:
        from cprec.api.training import pretrain

        given = json.load(sys.stdin)
        pretrain(validate_recipe(given["recipe"], "the recipe"), given["allow_change"])

    return run_as_process(train, RESUMES)


if __name__ == "__main__":
    sys.exit(main())
