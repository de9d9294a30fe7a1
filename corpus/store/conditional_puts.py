"""Tests that an object store honours conditional puts, by which versions are committed."""

import uuid
from concurrent.futures import ThreadPoolExecutor

from cluster import storage
from cluster.errors import CorpusError

CONCURRENT_PUTS = 8
"""Simultaneous conditional puts in the test of a store."""


def require_conditional_puts(uri: str) -> None:
    """Tests that a store accepts exactly one of several simultaneous conditional puts.

    A store that accepts more would lose commits. Only s3:// is tested; disks and the other object
    stores are known to do it right.

    Args:
        uri: Place where a corpus is to be written; the test writes and removes one file there.

    Raises:
        CorpusError: The store accepted none, or more than one.
    """
    if not uri.startswith("s3://"):
        return
    place = storage.join(uri, f".conditional-put-{uuid.uuid4().hex[:12]}")
    with ThreadPoolExecutor(CONCURRENT_PUTS) as threads:
        puts = threads.map(lambda n: storage.create_text(place, str(n)), range(CONCURRENT_PUTS))
        num_accepted = sum(puts)
    storage.remove_file(place)
    if num_accepted != 1:
        raise CorpusError(
            f"{uri}: this store let {num_accepted} of {CONCURRENT_PUTS} conditional puts "
            "(If-None-Match) through, where 1 is right, so commits would be lost; "
            "keep the corpus on a store that honours them (docs/operations/object-stores.md)"
        )
