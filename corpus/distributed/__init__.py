"""The backend that works on Ray, for more interactions than one process can hold.

It calls the functions of `corpus.local` for every decision, so both backends write the same files.
This is the only folder of the package that knows Ray.
"""

from corpus.backend import Backend
from corpus.distributed.append import RayAppendInput
from corpus.distributed.prepare import prepare_domains
from corpus.distributed.tasks import map_on_ray, session

RAY = Backend(map_on_ray, prepare_domains, RayAppendInput)

__all__ = ["RAY", "session"]
