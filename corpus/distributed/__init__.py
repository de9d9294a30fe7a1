"""The same corpus as `corpus.gather`, `corpus.grow` and `corpus.make` build in one process, built on Ray: no process holds all interactions.

Both ways share every function that decides anything, so they write the same files. The only folder of this package that knows Ray.
"""

from corpus.distributed.grow import Unread
from corpus.distributed.spread import gather
from corpus.distributed.tasks import each, session
from corpus.ways import Way

WAY = Way(each, gather, Unread)

__all__ = ["WAY", "session"]
