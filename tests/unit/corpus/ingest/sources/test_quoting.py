"""How a file is quoted is found whatever the size of chunks, and as a strict parser judges it."""

import csv
import io
from contextlib import nullcontext

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from corpus.ingest.sources import quoting
from corpus.ingest.sources.quoting import LoneBackslashDoubler, Quoting, find_quoting

text = st.text(st.sampled_from('a,"\n\\'), max_size=14)


def fits(content: str, way: Quoting) -> bool:
    return quoting._find_misfit(io.BytesIO(content.encode()), ",", way) is None


@given(text, st.integers(1, 4))
@example('a,"x"', 1)
def test_chunks_do_not_matter(content: str, chunk_bytes: int) -> None:
    whole = [fits(content, way) for way in (Quoting.DOUBLED, Quoting.BACKSLASH)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quoting, "_CHUNK_BYTES", chunk_bytes)
        parts = [fits(content, way) for way in (Quoting.DOUBLED, Quoting.BACKSLASH)]
    assert parts == whole


@given(text)
def test_a_strict_parser_agrees(content: str) -> None:
    # A backslash before a quote is the sign of the other way, which that parser does not know.
    assume('\\"' not in content)
    try:
        list(csv.reader(io.StringIO(content, newline=""), strict=True))
    except csv.Error:
        is_strict = False
    else:
        is_strict = True
    assert fits(content, Quoting.DOUBLED) == is_strict


@given(st.lists(st.tuples(text, text), min_size=1, max_size=5))
def test_what_a_writer_doubles_is_found(rows: list[tuple[str, str]]) -> None:
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    content = sink.getvalue().encode()
    assert find_quoting("a", lambda: nullcontext(io.BytesIO(content)), ",") is Quoting.DOUBLED


@given(st.binary(max_size=30).map(lambda raw: raw.replace(b"x", b"\\")), st.integers(2, 9))
def test_only_lone_backslashes_are_doubled(content: bytes, size: int) -> None:
    reader = io.BufferedReader(LoneBackslashDoubler(io.BytesIO(content)), size)
    expected, position = b"", 0
    while position < len(content):
        pair = content[position : position + 2]
        is_escape = pair in (b'\\"', b"\\\\")
        if is_escape:
            expected, position = expected + pair, position + 2
        else:
            one = pair[:1]
            expected, position = expected + (b"\\\\" if one == b"\\" else one), position + 1
    assert reader.read() == expected
