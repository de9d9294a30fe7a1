"""Vectors of titles that a storage keeps, so that a model embeds no title twice.

    <storage>/vectors/<model>/<titles>.parquet

`<model>` is a digest of everything that a vector depends on besides its title, and `<titles>` one
of the titles of the file. A file is written once, whole, and never changes. Titles that join a
corpus later are in a file of their own.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.console import Say
from cluster.progress import track
from cluster.storage import exists, join, list_names, read_many, write_bytes
from cprec.retrieval.title_vectors import Embed
from cprec.retrieval.vector_index import Vectors

VECTORS_FOLDER = "vectors"
"""Folder of the storage that holds vectors, beside those of the runs."""
DIGEST_BYTES = 16
"""Bytes of a title's digest."""
VECTOR_SCHEMA = pa.schema(
    [("title_digest", pa.binary(DIGEST_BYTES)), ("vector", pa.list_(pa.float32()))]
)
"""Columns of a file of vectors."""
TITLES_PER_FILE = 1 << 16
"""Titles that are embedded and written at a time, so that little is lost with a process."""


def ensure_vectors(
    storage_uri: str, identity: Mapping[str, Any], titles: Sequence[str], embed: Embed, say: Say
) -> Vectors:
    """Returns the vectors of titles; only those that are not stored yet are computed, and stored.

    Args:
        storage_uri: The storage.
        identity: Everything that a vector depends on besides its title, as JSON has it.
        titles: The titles, in any order, with repeats or without.
        embed: Computes vectors.
        say: Takes lines of progress.

    Returns:
        Vectors [titles, H].
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = join(storage_uri, VECTORS_FOLDER, digest)
    stored = _read_folder(folder, say)
    by_digest = {_digest(title): title for title in titles}
    missing = [key for key in by_digest if key not in stored]
    if missing:
        say(f"item vectors: {len(missing):,} of {len(by_digest):,} titles have to be embedded")
        with track("item vectors", say, len(missing), "titles") as advance:
            for start in range(0, len(missing), TITLES_PER_FILE):
                keys = missing[start : start + TITLES_PER_FILE]
                vectors = embed([by_digest[key] for key in keys])
                name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
                write_bytes(join(folder, f"{name}.parquet"), _to_bytes(keys, vectors))
                stored.update(zip(keys, vectors, strict=True))
                advance(len(keys))
    return np.array([stored[_digest(title)] for title in titles], dtype=np.float32)


def _read_folder(folder: str, say: Say) -> dict[bytes, Vectors]:
    """Reads all stored vectors by their title's digest; a damaged file is said, and not used."""
    names = list_names(folder) if exists(folder) else []
    uris = [join(folder, name) for name in sorted(names) if name.endswith(".parquet")]
    stored: dict[bytes, Vectors] = {}
    for uri, content in zip(uris, read_many(uris), strict=True):
        try:
            table = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
            digests, column = table["title_digest"].to_pylist(), table["vector"].combine_chunks()
            vectors = column.flatten().to_numpy().reshape(len(table), -1)
            stored.update(zip(digests, vectors, strict=True))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            say(f"{uri}: damaged ({error}); its titles are embedded again")
    return stored


def _to_bytes(digests: Sequence[bytes], vectors: Vectors) -> bytes:
    """Serialises vectors as a parquet file with page checksums."""
    columns = {"title_digest": list(digests), "vector": list(vectors)}
    file = io.BytesIO()
    pq.write_table(pa.table(columns, schema=VECTOR_SCHEMA), file, write_page_checksum=True)
    return file.getvalue()


def _digest(title: str) -> bytes:
    """Returns the digest of a title."""
    return hashlib.sha256(title.encode()).digest()[:DIGEST_BYTES]
