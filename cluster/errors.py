"""The one exception tree; jobs turn it into exit codes (docs/operations/exit-codes.md).

    CprecError
    ├── UserError                    exit 1: one message, no traceback
    │   ├── RecipeError              a key or a value of the recipe
    │   ├── DataError                raw interactions or items that cannot be used
    │   ├── CorpusError              a corpus that is missing, damaged or not fit for the request
    │   │   └── CommitConflictError  another process committed first
    │   ├── RunError                 a run that cannot start, resume or be promoted as asked
    │   └── AccessDeniedError        a disk or a store that may not be read or written
    ├── PlatformFault                exit 2: something broke; retried where that is safe
    └── GateRefusedError             exit 3: the gate refused a model, and nothing was changed

Every exception takes one argument, its message, so that it can be pickled between Ray processes.
The message of a UserError says where, what was seen, what is allowed, and what to do. The page of
its class says more, and jobs name it below the message.
"""

from typing import ClassVar

FAULT = 2
"""Exit code of a process that a fault ended."""

INTERRUPTED = 130
"""Exit code of a process that SIGINT or SIGTERM ended."""

REFUSED = 3
"""Exit code of a job whose model the gate refused."""


class CprecError(Exception):
    """The base of all exceptions that cprec raises on purpose.

    Attributes:
        page: Page of the docs that helps; by default the one where messages are looked up.
    """

    page: ClassVar[str] = "docs/operations/README.md"


class UserError(CprecError):
    """A request that cannot be served; the message says what to change."""


class RecipeError(UserError):
    """A key or a value of the recipe that is wrong."""

    page = "docs/reference/recipe-keys.md"


class DataError(UserError):
    """Raw interactions or items that cannot be used."""

    page = "docs/how-to/build-a-corpus.md"


class CorpusError(UserError):
    """A corpus that is missing, damaged or not fit for the request.

    It may be of another version, have other rules or seed, or lack the data that is asked for.
    """


class CommitConflictError(CorpusError):
    """Another process committed first; the same call again builds on that commit."""

    page = "docs/how-to/append-to-a-corpus.md"


class RunError(UserError):
    """A run that cannot start, resume or be promoted as asked."""


class AccessDeniedError(UserError):
    """A disk or a store that this process may not read or write."""

    page = "docs/operations/object-stores.md"


class PlatformFault(CprecError):
    """A broken invariant of the platform; the run stops and can be resumed."""

    page = "docs/operations/training-failures.md"


class GateRefusedError(CprecError):
    """A model that the gate refused; the message says by which line."""

    page = "docs/how-to/promote-and-use.md"
