"""The same corpus as `corpus.local.prepare`, `corpus.local.append` and `corpus.local.sample_files` build in one process, built on Ray: no process holds all interactions.

Both ways share every function that decides anything, so they write the same files. The only folder of this package that knows Ray.
"""

from corpus.backend import Backend
from corpus.distributed.append import RayAppendInput
from corpus.distributed.prepare import prepare_domains
from corpus.distributed.tasks import map_on_ray, session

RAY = Backend(map_on_ray, prepare_domains, RayAppendInput)

__all__ = ["RAY", "session"]
