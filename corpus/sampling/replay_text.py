"""Plain text that has nothing to do with behaviours, as samples: windows that together are the text. For replay in pre-training.

A window is a row of its own source, `text/<name>`, with its text in place of items. It is in no domain, no statistics and no evaluation.
"""

import posixpath
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.errors import DataError, RecipeError
from corpus.sampling import hashing

TEXT = "text/"
"""What the names of sources of text begin with."""

SCHEMA = pa.schema([("sample_id", pa.int64()), ("text", pa.string())])
"""Columns of a window; the other columns of samples are null for it."""

WINDOW = 500
"""Bytes of a window, at most. A tokenizer makes at most a token of a byte, so a window fits wherever model.max_tokens is above this."""

RULES = 1
"""Goes up whenever the same text would make other windows."""


def read(uri: str, key: str) -> str:
    """A file of plain text. Raises RecipeError, naming the key that named it, where it is not there, is empty or is no UTF-8."""
    if not storage.exists(uri):
        raise RecipeError(f"{key}: nothing at {uri}; give a file of plain text")
    try:
        text = storage.read_bytes(uri).decode()
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{key}: {uri} is not UTF-8 ({error}); give a file of plain text"
        ) from None
    if not text.strip():
        raise RecipeError(f"{key}: {uri} holds no text; give a file of plain text")
    return text


def digest(text: str) -> str:
    """What a text is known by, in the commit that appended it and beside what was measured on it."""
    return storage.sha256(text.encode())


def source_of(uri: str) -> str:
    """The source that a file of text becomes: `text/<name of the file, without its ending>`. Raises DataError for a name that no source may have."""
    name = posixpath.splitext(posixpath.basename(uri))[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise DataError(
            f"{uri}: a text is known by its file's name, and a name may have letters, digits and _ . - only; rename the file"
        )
    return TEXT + name


def windows(text: str, size: int = WINDOW) -> list[str]:
    """A text cut before white space into pieces of at most `size` bytes of UTF-8 (at least 4), as few as fit in turn; a longer word is cut too.

    Joined they are the text, without the white space at its end. A space stays with the word that it precedes, so that the tokens are those of the
    whole text for a tokenizer that does not merge across white space.
    """
    found: list[str] = []
    room = 0
    for piece in _pieces(text, size):
        length = len(piece.encode())
        if length > room:
            found.append("")
            room = size
        found[-1] += piece
        room -= length
    return found


def _pieces(text: str, size: int) -> Iterator[str]:
    """Words with the white space before them; of what is longer than a window, its characters."""
    for found in re.finditer(r"\s*\S+", text):
        yield from [found[0]] if len(found[0].encode()) <= size else found[0]


def rows(source: str, text: str) -> pa.Table:
    """The windows of a text as a table of SCHEMA, in the order of their unsigned ids, which are hashes of source, whole text and place."""
    cut = windows(text)
    identity = hashing.combine(
        hashing.of_strings([source]), hashing.of_strings([text]), np.arange(len(cut))
    )
    order = np.argsort(identity)
    return pa.Table.from_arrays(
        [pa.array(identity[order].view(np.int64)), pa.array([cut[i] for i in order], pa.string())],
        schema=SCHEMA,
    )
