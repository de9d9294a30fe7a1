"""A data root's domains are those whose files an append would find."""

from pathlib import Path

import pytest

from corpus.ingest.data_roots import find_domains
from corpus.settings import DataSettings


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("format_", "files", "expected"),
    [
        (
            "root",
            ("interactions/A.parquet", "items/A.parquet", "interactions/B.csv.gz", "items/B.csv"),
            ["A", "B"],
        ),
        ("root", ("interactions/A.parquet", "items/B.parquet", "interactions/readme.txt"), []),
        ("root", ("A/interactions.csv", "A/items.csv", "notes/x.csv"), ["A"]),
        (
            "amazon2014",
            ("reviews_Books_5.json.gz", "meta_Books.json.gz", "reviews_Toys.json.gz"),
            ["Books"],
        ),
        ("amazon2023", ("Books.jsonl.gz", "meta_Books.jsonl.gz"), ["Books"]),
        ("movielens", ("ml/ratings.csv", "ml/movies.csv"), ["ml"]),
        ("ninerec", ("KU_pair.csv", "KU_item.csv", "QB_pair.csv"), ["KU"]),
        ("ninerec", ("KU/KU_pair.csv", "KU/KU_item.csv"), ["KU"]),
        ("root", (), []),
    ],
)
def test_domains_are_found_by_their_files(
    format_: str, files: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    touch(tmp_path, *files)
    data = DataSettings.model_validate({"root": str(tmp_path), "format": format_})
    assert find_domains(data) == expected


def test_simulated_domains_need_no_file(tmp_path: Path) -> None:
    data = DataSettings(root=str(tmp_path), format="simulated", domains=("B", "A"), held_out=("C",))
    assert find_domains(data) == ["A", "B", "C"]
    touch(tmp_path, "interactions/D.parquet", "items/D.parquet")
    assert find_domains(data) == ["A", "B", "C", "D"]
