"""The check of line forms behind `make check`: .ci/lines, loaded by its path."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / ".ci" / "lines"))

SECOND_SENTENCE = "a second sentence begins at"
CONTINUES = "continues the sentence of the line before"


def code_problems(text: str) -> list[tuple[int, str]]:
    return list(SCRIPT["check_code"](text))


def markdown_problems(*lines: str) -> list[tuple[int, str]]:
    """Returns (line number, problem), the problem without the words that it quotes."""
    return [
        (number, problem.partition(" '")[0])
        for number, problem in SCRIPT["check_markdown"]("\n".join(lines))
    ]


@pytest.mark.parametrize(
    ("path", "is_code"),
    [
        ("corpus/build.py", True),
        ("Makefile", True),
        ("cluster/image/Dockerfile", True),
        (".ci/step", True),
        (".pre-commit-config.yaml", True),
        ("docs/concepts.md", False),
        ("jobs/recipes/demo.txt", False),
        ("requirements.lock", False),
    ],
)
def test_code_is_known_by_suffix_name_or_folder(path: str, is_code: bool) -> None:
    assert SCRIPT["is_code"](ROOT / path) is is_code


def test_a_line_of_code_has_at_most_100_columns() -> None:
    text = "\n".join(["x" * 100, "y" * 101, ""])
    assert code_problems(text) == [(2, "101 columns, at most 100 are allowed")]


def test_columns_are_characters_not_bytes() -> None:
    assert not code_problems("# " + "±" * 98)


def test_a_url_that_ends_a_line_of_code_may_stick_out() -> None:
    url = "https://example.com/" + "x" * 90
    assert not code_problems(f"# See {url}")
    assert code_problems(f"# See {url} for more.")
    assert code_problems("#" * 100 + f" {url}")


def test_one_sentence_a_line_passes() -> None:
    assert not markdown_problems("# A title", "", "One sentence.", "Is this another?", "Yes!", "")


@pytest.mark.parametrize(
    "line",
    [
        "One sentence. Another one.",
        "Is this one? It is.",
        "This has a colon: and two sentences. 3 is the number.",
        "It ends in code `x`. `y` begins the next.",
        "**In bold.** Then plain.",
        "(In brackets.) Then outside.",
        "See [a page](a.md). [Another](b.md) follows.",
        "- An item. With a second sentence.",
        "1. A numbered item. With a second sentence.",
        "It is item 4. The next is 5.",
        "A range - that is it. Not a list.",
    ],
)
def test_two_sentences_in_a_line_are_found(line: str) -> None:
    assert markdown_problems(line) == [(1, SECOND_SENTENCE)]


def test_the_second_sentence_is_quoted() -> None:
    assert list(SCRIPT["check_markdown"]("First. Second one.")) == [
        (1, "a second sentence begins at 'Second one.'")
    ]


@pytest.mark.parametrize(
    "line",
    [
        "Some stores, e.g. MinIO, need a key.",
        "It decays (i.e. LR falls) as in Fig. 4, Eq. 2 and Sec. 5.1.",
        "Compared with Kang et al. 2018 and vs. BERT.",
        "A share of 0.5 is half of 1.0 at most.",
        "The ratio is 1.36 (1.22 .. 1.53), for steps 1, 2, ... N.",
        "Read a.md and b.py first.",
        "The key `a. B` is code.",
        "See [the page](docs/a. B.md) first.",
        "Visit https://example.com/a.b?C=1 first.",
        "1. A numbered item.",
        "2) Another one.",
        "Version 2.13.0 of torch.",
    ],
)
def test_dots_that_end_no_sentence_are_accepted(line: str) -> None:
    assert not markdown_problems(line)


def test_a_sentence_over_two_lines_is_found() -> None:
    assert markdown_problems("This sentence goes", "on here.") == [(2, CONTINUES)]
    assert markdown_problems("- This item goes", "  on here.") == [(2, CONTINUES)]
    assert markdown_problems("It ends in `code`", "without a dot.") == [(2, CONTINUES)]


def test_an_empty_line_ends_a_paragraph() -> None:
    assert not markdown_problems("No dot here", "", "Nor here")


def test_list_items_need_no_dot() -> None:
    assert not markdown_problems(
        "It needs:", "- a corpus;", "- a recipe", "1. a number", "* a star"
    )
    assert not markdown_problems("- One sentence.", "  A second one, on its own line.")


def test_tables_headings_html_and_link_definitions_are_no_prose() -> None:
    assert not markdown_problems(
        "## A title. With dots. Many",
        "| One. Two. | Three |",
        "|---|---|",
        "| Four. Five | six |",
        "<p>One. Two.",
        "[name]: https://example.com/A. B",
    )


@pytest.mark.parametrize(
    ("opening", "closing"), [("```sh", "```"), ("~~~", "~~~"), ("````", "````")]
)
def test_fenced_code_is_no_prose(opening: str, closing: str) -> None:
    block = [opening, "One. Two. Three", "and four", "~~ ``", closing]
    assert not markdown_problems(*block)
    assert markdown_problems(*block, "One. Two.") == [(len(block) + 1, SECOND_SENTENCE)]


def test_a_fence_is_closed_only_by_its_own_kind() -> None:
    assert not markdown_problems("~~~", "```", "One. Two.", "~~~")
    assert not markdown_problems("````", "```", "One. Two.", "````")


def test_front_matter_is_no_prose() -> None:
    assert not markdown_problems("---", "title: One. Two.", "name: three", "---", "A sentence.")


def test_source_files_are_listed_without_environment_and_outputs() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in SCRIPT["source_files"]()}
    assert {"README.md", ".ci/lines", "tests/unit/test_lines.py"} <= names
    assert not any(name.startswith((".git/", ".venv/", "out/")) for name in names)
