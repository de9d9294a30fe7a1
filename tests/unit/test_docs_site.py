"""The check of the built docs behind `make check`: .ci/docs, loaded by its path."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / ".ci" / "docs"))


def problems(folder: Path, **pages: str) -> list[str]:
    """The problems of a site of some pages, given as HTML by name."""
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text)
    read = {file: SCRIPT["Page"](file) for file in folder.glob("*.html")}
    return [problem for _, problem in SCRIPT["find_problems"](read)]


def test_links_that_lead_somewhere_are_no_problem(tmp_path: Path) -> None:
    first = (
        '<h1 id="top">a</h1><a href="#top"></a><a href="b.html#x%20y"></a><a href="b.html"></a>'
        '<a href="https://example.org/page"></a><img src="data:image/png;base64,AA">'
    )
    assert not problems(tmp_path, a=first, b='<p id="x y"></p><a href="a.html?q=1#"></a>')


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    text = '<a href="#gone"></a><a href="c.html"></a><a href="b.html#no"></a>'
    assert problems(tmp_path, a=text, b="") == [
        "no anchor #gone",
        "no c.html",
        "no anchor b.html#no",
    ]


def test_whatever_is_loaded_from_elsewhere_is_named(tmp_path: Path) -> None:
    text = (
        '<script src="https://cdn.example/x.js"></script><img src="//example/i.png">'
        '<link href="http://fonts.example/f.css">'
    )
    assert [problem.split(" loads ")[0] for problem in problems(tmp_path, a=text)] == [
        "<script>",
        "<img>",
        "<link>",
    ]
