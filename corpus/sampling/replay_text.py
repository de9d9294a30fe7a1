"""Plain text that has nothing to do with behaviours, as samples: windows that together are the text. For replay in pre-training.

A window is a row of its own source, `text/<name>`, with its text in place of items. It is in no domain, no statistics and no evaluation.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from cluster.errors import DataError
from corpus.sampling import hashing
from corpus.sampling.source import Source, SourceKind

TEXT_WINDOW_SCHEMA = pa.schema([("sample_id", pa.int64()), ("text", pa.string())])
"""Columns of a window; the other columns of samples are null for it."""

MAX_WINDOW_BYTES = 500
"""Bytes of a window, at most. A tokenizer makes at most a token of a byte, so a window fits wherever model.max_tokens is above this."""

RULES_VERSION = 1
"""Goes up whenever the same text would make other windows."""


def text_digest(text: str) -> str:
    """What a text is known by, in the commit that appended it and beside what was measured on it."""
    return hashlib.sha256(text.encode()).hexdigest()


def text_source(uri: str) -> Source:
    """The source that a file of text becomes: `text/<name of the file, without its ending>`. Raises DataError for a name that no source may have."""
    name = posixpath.splitext(posixpath.basename(uri))[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise DataError(
            f"{uri}: a text is known by its file's name, and a name may have letters, digits and _ . - only; rename the file"
        )
    return Source(SourceKind.TEXT, name)


def split_text(text: str, max_bytes: int = MAX_WINDOW_BYTES) -> list[str]:
    """A text cut before white space into pieces of at most `size` bytes of UTF-8 (at least 4), as few as fit in turn; a longer word is cut too.

    Joined they are the text, without the white space at its end. A space stays with the word that it precedes, so that the tokens are those of the
    whole text for a tokenizer that does not merge across white space.
    """
    found: list[str] = []
    room = 0
    for piece in _split_words(text, max_bytes):
        length = len(piece.encode())
        if length > room:
            found.append("")
            room = max_bytes
        found[-1] += piece
        room -= length
    return found


def _split_words(text: str, max_bytes: int) -> Iterator[str]:
    """Words with the white space before them; of what is longer than a window, its characters."""
    for found in re.finditer(r"\s*\S+", text):
        yield from [found[0]] if len(found[0].encode()) <= max_bytes else found[0]


def text_window_table(source: str, text: str) -> pa.Table:
    """The windows of a text as a table of SCHEMA, in the order of their unsigned ids, which are hashes of source, whole text and place."""
    cut = split_text(text)
    identity = hashing.hash_integers(
        hashing.hash_strings([source]), hashing.hash_strings([text]), np.arange(len(cut))
    )
    order = np.argsort(identity)
    return pa.Table.from_arrays(
        [pa.array(identity[order].view(np.int64)), pa.array([cut[i] for i in order], pa.string())],
        schema=TEXT_WINDOW_SCHEMA,
    )
