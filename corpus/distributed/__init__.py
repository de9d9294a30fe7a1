"""The same corpus as `corpus.local.prepare`, `corpus.local.append` and `corpus.local.make_samples` build in one process, built on Ray: no process holds all interactions.

Both ways share every function that decides anything, so they write the same files. The only folder of this package that knows Ray.
"""

from corpus.backend import Way
from corpus.distributed.append import Unread
from corpus.distributed.prepare import gather
from corpus.distributed.tasks import each, session

WAY = Way(each, gather, Unread)

__all__ = ["WAY", "session"]
