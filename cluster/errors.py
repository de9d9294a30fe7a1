"""The one exception tree. A job turns it into an exit code (docs/operations.md).

    CprecError
    ├── UserError              exit 1: one message, no traceback; what, where, the value seen, what to do
    │   ├── RecipeError        a key or a value of the recipe
    │   ├── DataError          raw behaviours that cannot be used
    │   ├── CorpusError        a corpus that is missing, of another version, or too small
    │   │   └── Overtaken      another process committed first; the same call again builds on what it made
    │   └── RunError           a run that cannot start, resume or be promoted as asked
    └── PlatformFault          exit 2: something broke; retried where that is safe

Every error is made from one message, so that it survives pickling between Ray processes.
"""


class CprecError(Exception):
    """Root of all errors that cprec raises on purpose."""


class UserError(CprecError):
    """The request cannot be served as it stands; the message says what to change."""


class RecipeError(UserError):
    """A key or a value of the recipe is wrong."""


class DataError(UserError):
    """Raw behaviours cannot be used as they are."""


class CorpusError(UserError):
    """The corpus is missing, of another version than asked for, or too small."""


class CommitConflictError(CorpusError):
    """Another process committed first; the same call again builds on what it made."""


class RunError(UserError):
    """A run cannot start, resume or be promoted as asked."""


class PlatformFault(CprecError):
    """An invariant of the platform broke; the run stops and can be resumed."""
