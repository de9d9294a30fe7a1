"""The same corpus as `corpus.gather` and `corpus.make` build in one process, built on Ray: no process holds all interactions.

Both ways share every function that decides anything, so they write the same files. The only folder of this package that knows Ray.
"""

from corpus.distributed.samples import make_coded
from corpus.distributed.spread import gather
from corpus.distributed.tasks import each, session
from corpus.gather import Way

WAY = Way(each, gather)

__all__ = ["WAY", "make_coded", "session"]
