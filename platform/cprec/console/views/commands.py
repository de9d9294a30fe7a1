"""The commands that do what the console does, as they are shown and as they are run. Pure."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Job = Literal["append_domain", "anneal", "control", "cpt", "promote"]

_OWN_SWITCHES = ("--dry-run",)
_OWN_FLAGS = ("--as", "--console.")
"""Beginnings of flags that are of the console alone; each has a value."""


@dataclass(frozen=True)
class Commands:
    """Commands on the recipe with which the console was started.

    Attributes:
        arguments: The recipe and the keys of the console's own command line.
    """

    arguments: Sequence[str]

    @classmethod
    def from_command_line(cls, arguments: Sequence[str]) -> "Commands":
        """Takes the arguments of the console, without its own flags."""
        kept, is_value = [], False
        for argument in arguments:
            is_own = argument.startswith(_OWN_FLAGS)
            if not (is_value or is_own or argument in _OWN_SWITCHES):
                kept.append(argument)
            is_value = is_own and "=" not in argument
        return cls(tuple(kept))

    def arguments_of(self, *more: str) -> list[str]:
        """Returns the arguments of a job: the console's, and more behind them, which count."""
        return [*self.arguments, *more]

    def show(self, job: Job, *more: str) -> str:
        """Returns a command for a shell."""
        return shlex.join(["python", f"jobs/{job}.py", *self.arguments_of(*more)])

    def control(self, run: str) -> str:
        """Returns the command that asks a run, without the action."""
        return self.show("control", f"--run={run}")

    def anneal_from(self, checkpoint: str) -> str:
        """Returns the command that anneals a branch from a checkpoint."""
        return self.show("anneal", f"--from={checkpoint}")

    def continue_from(self, run: str, checkpoint: str) -> str:
        """Returns the command that continues from a checkpoint, as a new run."""
        return self.show("cpt", f"--run={run}-next", f"--continue-from={checkpoint}")
