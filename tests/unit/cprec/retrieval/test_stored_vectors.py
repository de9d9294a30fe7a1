"""No title is embedded twice, and no damaged vector is used."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cprec.retrieval.stored_vectors import ensure_vectors
from cprec.retrieval.vector_index import Vectors

IDENTITY = {"base": "b", "precision": "fp32"}


class Embedder:
    """Embeds a title as its length and its first letters, and remembers which it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, titles: Sequence[str]) -> Vectors:
        self.asked += titles
        return np.array([[len(title), ord(title[0]), 0.5] for title in titles], dtype=np.float32)


def test_only_new_titles_are_embedded(tmp_path: Path) -> None:
    embed = Embedder()
    first = ensure_vectors(str(tmp_path), IDENTITY, ["lamp", "mug", "lamp"], embed, print)
    assert embed.asked == ["lamp", "mug"]
    assert first.tolist() == [[4, 108, 0.5], [3, 109, 0.5], [4, 108, 0.5]]
    # A domain was appended: its items are added, in any order, and the others are kept.
    again = ensure_vectors(str(tmp_path), IDENTITY, ["chair", "mug", "lamp"], embed, print)
    assert embed.asked == ["lamp", "mug", "chair"]
    assert again.tolist() == [[5, 99, 0.5], *first[1:].tolist()]
    ensure_vectors(str(tmp_path), IDENTITY, ["chair"], embed, print)
    assert len(embed.asked) == 3


def test_another_model_has_vectors_of_its_own(tmp_path: Path) -> None:
    embed = Embedder()
    for precision in ("fp32", "bf16"):
        ensure_vectors(str(tmp_path), {**IDENTITY, "precision": precision}, ["lamp"], embed, print)
    assert embed.asked == ["lamp", "lamp"]


@pytest.mark.parametrize("place", [60, 900, -1])
def test_a_damaged_file_is_said_and_its_titles_are_embedded_again(
    tmp_path: Path, place: int
) -> None:
    embed = Embedder()
    titles = [f"title {number}" for number in range(40)]
    vectors = ensure_vectors(str(tmp_path), IDENTITY, titles, embed, print)
    [file] = tmp_path.rglob("*.parquet")
    content = bytearray(file.read_bytes())
    content[place] ^= 0xFF
    file.write_bytes(content)
    lines: list[str] = []
    again = ensure_vectors(str(tmp_path), IDENTITY, titles, embed, lines.append)
    np.testing.assert_array_equal(again, vectors)
    assert lines[0].startswith(f"{file}: damaged")
    assert len(embed.asked) == 80
