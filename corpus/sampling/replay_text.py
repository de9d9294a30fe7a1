"""Cuts plain text into windows that a corpus stores beside its samples, for replay. Pure.

A window is a row of its own source, `text/<name>`, with its text in place of items. It belongs to
no domain and is in no statistics and no evaluation. Why text is replayed:
docs/decisions/010-replay.md.
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
"""Size of a window at most, in bytes of UTF-8.

A tokenizer makes at most one token per byte, so a window fits where model.max_tokens is above this.
"""

RULES_VERSION = 1
"""Must be raised whenever the same text would give other windows."""


def text_digest(text: str) -> str:
    """Returns the SHA-256 of a text, which identifies it in commits and beside measurements."""
    return hashlib.sha256(text.encode()).hexdigest()


def text_source(uri: str) -> Source:
    """Returns the source of a text file: `text/<file name without its suffix>`.

    Raises:
        DataError: The file's name has characters that a source may not have.
    """
    name = posixpath.splitext(posixpath.basename(uri))[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise DataError(
            f"{uri}: a text source is named after its file, and a name may have only letters, "
            "digits and _ . - (the first a letter or digit); rename the file"
        )
    return Source(SourceKind.TEXT, name)


def split_text(text: str, max_bytes: int = MAX_WINDOW_BYTES) -> list[str]:
    """Cuts a text into windows, each filled with as many words as fit.

    Cuts are before white space; only a word that is longer than a window is cut inside. Joined, the
    windows are the text without the white space at its end. White space stays with the word after
    it. So a tokenizer that does not merge across white space gives the tokens of the whole text.

    Args:
        text: Text to cut.
        max_bytes: Size of a window at most, in bytes of UTF-8; at least 4.
    """
    windows: list[str] = []
    room = 0
    for piece in _split_words(text, max_bytes):
        length = len(piece.encode())
        if length > room:
            windows.append("")
            room = max_bytes
        windows[-1] += piece
        room -= length
    return windows


def _split_words(text: str, max_bytes: int) -> Iterator[str]:
    """Yields words with the white space before them; longer ones character by character."""
    for match in re.finditer(r"\s*\S+", text):
        yield from [match[0]] if len(match[0].encode()) <= max_bytes else match[0]


def text_window_table(source: str, text: str) -> pa.Table:
    """Returns the windows of a text as TEXT_WINDOW_SCHEMA, sorted by their unsigned ids.

    An id is a hash of source, whole text and position of the window.
    """
    windows = split_text(text)
    ids = hashing.hash_integers(
        hashing.hash_strings([source]), hashing.hash_strings([text]), np.arange(len(windows))
    )
    order = np.argsort(ids)
    return pa.Table.from_arrays(
        [pa.array(ids[order].view(np.int64)), pa.array([windows[i] for i in order], pa.string())],
        schema=TEXT_WINDOW_SCHEMA,
    )
