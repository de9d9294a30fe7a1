"""What was read is not read again, and a file that was replaced is read from its start."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cprec.console.growing_file import ANCHOR_BYTES, GrowingFile


def lines(values: list[int], padding: int = 0) -> bytes:
    return b"".join(b'{"n": %d, "p": "%b"}\n' % (value, b"x" * padding) for value in values)


@given(
    chunks=st.lists(st.lists(st.integers(0, 999), max_size=4), max_size=5),
    padding=st.integers(0, 2 * ANCHOR_BYTES),
    cut=st.integers(1, 8),
)
def test_each_line_is_returned_once_and_only_when_it_is_whole(
    chunks: list[list[int]], padding: int, cut: int, tmp_path_factory: object
) -> None:
    path = Path(tmp_path_factory.mktemp("f")) / "trace.jsonl"  # type: ignore[attr-defined]
    growing, read, content = GrowingFile(str(path)), [], b""
    for chunk in chunks:
        added = lines(chunk, padding)
        path.write_bytes(content + added[:-cut])
        new, was_replaced = growing.read_new()
        assert not was_replaced
        read += new
        content += added
        path.write_bytes(content)
    new, was_replaced = growing.read_new()
    assert not was_replaced
    read += new
    assert [value["n"] for value in read] == [n for chunk in chunks for n in chunk]


def test_a_file_that_was_replaced_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    growing = GrowingFile(str(path))
    assert growing.read_new() == ([], False)
    path.write_bytes(lines([1, 2, 3], 100))
    assert [v["n"] for v in growing.read_new()[0]] == [1, 2, 3]
    for other in ([1], [7, 8, 9], [7, 8, 9, 10, 11]):
        path.write_bytes(lines(other, 100))
        new, was_replaced = growing.read_new()
        assert (was_replaced, [v["n"] for v in new]) in ((True, other), (False, other[3:]))
    path.unlink()
    assert growing.read_new() == ([], True)
    assert growing.read_new() == ([], False)


def test_what_is_no_object_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"n": 1}\nno json\n[2]\n\xff\xfe\n{"n": 3}\n{"n": 4')
    assert [v["n"] for v in GrowingFile(str(path)).read_new()[0]] == [1, 3]
