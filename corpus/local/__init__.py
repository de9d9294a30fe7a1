"""The backend that works in one process.

`corpus.distributed` does the same on Ray, with the functions of this package that decide anything.
"""

from corpus.backend import Backend
from corpus.local.append import LocalAppendInput
from corpus.local.prepare import prepare_domains

LOCAL = Backend(map, prepare_domains, LocalAppendInput)

__all__ = ["LOCAL"]
