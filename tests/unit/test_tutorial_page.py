"""The runner of tutorials fails where a page shows what its commands do not print."""

from pathlib import Path

import pytest

from tests.tutorial_page import run_page

FENCE = "```"


def page_of(folder: Path, *blocks: tuple[str, str]) -> Path:
    page = folder / "page.md"
    page.write_text("".join(f"{FENCE}{kind}\n{text}\n{FENCE}\n\n" for kind, text in blocks))
    return page


def test_blocks_share_a_shell_and_what_is_marked_is_not_run(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        ("sh", "name=lamp\necho red $name; echo 1"),
        ("text", "red lamp\n..."),
        ("sh", "# not run here\nexit 1"),
        ("sh", "test $name = lamp"),
    )
    run_page(page, tmp_path)


@pytest.mark.parametrize(
    ("commands", "shown", "problem"),
    [
        ("echo one; echo two", "two\none", "does not print 'one'"),
        ("echo 12 of 30", "12 ... 40", "does not print"),
        ("false", "", "stopped.*exit code 1"),
        ("echo $unset", "", "stopped.*exit code 1"),
        ("false | true", "", "stopped.*exit code 1"),
    ],
)
def test_a_page_that_is_wrong_fails(
    commands: str, shown: str, problem: str, tmp_path: Path
) -> None:
    page = page_of(tmp_path, ("sh", commands), ("text", shown))
    with pytest.raises(AssertionError, match=problem):
        run_page(page, tmp_path)
