"""NineRec's layout: csv without a header, whose first field is the user's or the item's."""

from pathlib import Path

import pytest

from cluster.errors import DataError
from tests.unit.corpus.worlds import Domain, domain, settings

ROWS = [("u1", "v1", 1_600_000_000), ("u1", "v2", 1_600_000_100), ("u2", "v1", 1_600_000_050)]
ITEMS = 'v1,"韩国电影，《女教师》","Korean Movie, The Governess"\nv2,猫,Cat "Tom"\n'


def write(root: Path, lines: list[str], items: str = ITEMS, folder: str = "") -> None:
    (root / folder).mkdir(exist_ok=True)
    (root / folder / "Bili_Movie_pair.csv").write_text("".join(f"{line}\n" for line in lines))
    (root / folder / "Bili_Movie_item.csv").write_text(items)


def read(root: Path, **changes: object) -> Domain:
    return domain(settings(root, format="ninerec", max_quarantined=0.0, **changes), "Bili_Movie")


@pytest.mark.parametrize("folder", ["", "Bili_Movie"])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
@pytest.mark.parametrize("header", [False, True])
def test_pairs_are_read_in_either_order(
    tmp_path: Path, order: tuple[int, int, int], header: bool, folder: str
) -> None:
    rows = [("User ID", "Item ID", "Timestamp")] if header else []
    lines = [",".join(str(row[i]) for i in order) for row in [*rows, *ROWS]]
    write(tmp_path, lines, ITEMS.replace('Cat "Tom"', "Cat"), folder)
    result = read(tmp_path)
    assert result.rows() == sorted(ROWS)
    assert result.titles() == [("v1", "Korean Movie, The Governess"), ("v2", "Cat")]


def test_the_chinese_text_may_be_the_title(tmp_path: Path) -> None:
    write(tmp_path, [f"{u},{i},{t}" for u, i, t in ROWS], ITEMS.replace('Cat "Tom"', "Cat"))
    result = read(tmp_path, columns={"title": "Text in Chinese"})
    assert result.titles() == [("v1", "韩国电影，《女教师》"), ("v2", "猫")]


@pytest.mark.parametrize(("first", "which"), [("u1,v9,7", "neither"), ("v1,v2,7", "both")])
def test_a_pair_whose_item_cannot_be_told_is_refused(
    tmp_path: Path, first: str, which: str
) -> None:
    write(tmp_path, [first])
    with pytest.raises(DataError, match=rf"Bili_Movie_pair\.csv: .*{which}.*write a header"):
        read(tmp_path)


@pytest.mark.parametrize("first", ["u1", "u1,v1\rx,y", "", "u1" + "," * 200_000 + '"'])
def test_a_first_line_that_is_no_pair_is_named(tmp_path: Path, first: str) -> None:
    write(tmp_path, [first])
    with pytest.raises(DataError, match=r"Bili_Movie_pair\.csv: "):
        read(tmp_path)


def test_items_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    write(tmp_path, ["u1,v1,1600000000"])
    (tmp_path / "Bili_Movie_item.csv").write_bytes(ITEMS.encode("gb18030"))
    with pytest.raises(DataError, match=r"Bili_Movie_item\.csv: not UTF-8 .*; convert it"):
        read(tmp_path)


def test_csv_of_other_formats_needs_a_header_as_before(tmp_path: Path) -> None:
    (tmp_path / "interactions").mkdir()
    (tmp_path / "items").mkdir()
    (tmp_path / "interactions" / "A_pair.csv").write_text("u1,v1,1600000000\n")
    (tmp_path / "items" / "A_pair.csv").write_text("item_id,title\nv1,Cat\n")
    with pytest.raises(DataError, match="user_id"):
        domain(settings(tmp_path), "A_pair")
