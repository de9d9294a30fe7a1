"""The backend of one process; `corpus.distributed` does the same on Ray."""

from corpus.backend import Backend
from corpus.local.append import LocalAppendInput
from corpus.local.prepare import prepare_domains

LOCAL = Backend(map, prepare_domains, LocalAppendInput)

__all__ = ["LOCAL"]
