"""The tag of a file changes with its content, and every name in a folder has one."""

from pathlib import Path

from cluster.storage import list_etags


def test_a_tag_changes_with_the_content_also_of_what_a_link_leads_to(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.txt"
    folder = tmp_path / "folder"
    folder.mkdir()
    elsewhere.write_text("1")
    (folder / "file").write_text("1")
    (folder / "link").symlink_to(elsewhere)
    (folder / "nowhere").symlink_to(tmp_path / "nothing")
    (folder / "circle").symlink_to(folder / "circle")
    before = list_etags(str(folder))
    assert before.keys() == {"file", "link", "nowhere", "circle"}
    assert list_etags(f"file://{folder}") == before

    elsewhere.write_text("22")
    after = list_etags(str(folder))
    assert {name for name in after if after[name] != before[name]} == {"link"}
    (folder / "file").write_text("22")
    assert list_etags(str(folder))["file"] != before["file"]


def test_what_is_no_folder_has_no_tags(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    assert list_etags(str(tmp_path / "file")) == {}
    assert list_etags(str(tmp_path / "nothing")) == {}
