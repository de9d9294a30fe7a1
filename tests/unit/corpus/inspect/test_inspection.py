"""Tables for the console and the page of a corpus."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from rich.console import Console

from corpus.append import append
from corpus.build import build
from corpus.inspect import console_tables, page
from corpus.inspect.distributions import (
    LENGTH_BIN_STARTS,
    TOP_ITEM_FRACTIONS,
    Distributions,
    InteractionCounts,
    length_bin_labels,
)
from corpus.inspect.injections import MAX_EXAMPLES, TitlesWithInjection
from corpus.inspect.inspection import InspectionResult, inspect_corpus
from corpus.inspect.leakage import ALL_CHECKS
from corpus.store import catalogue
from corpus.store.tables import Corpus
from tests.integration import jobs
from tests.unit.corpus.worlds import (
    Row,
    frame,
    settings,
    shop,
    two_versions,
    worlds,
    write_root,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return two_versions(tmp_path_factory.mktemp("inspected"))


def test_the_page_shows_everything_and_escapes_it(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = inspect_corpus(corpus)
    monkeypatch.setitem(ALL_CHECKS, "<script>", "<b>")
    shown = page.render_page(
        corpus, InspectionResult({**result.leak_counts, "<script>": 1}, result.distributions)
    )
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "&lt;b&gt;" in shown
    for word in (
        "domain/A",
        "downstream/C",
        "mixed",
        "training_targets_held_out",
        "short_history",
        "Users in two domains",
        "Dropped by version",
        "Corpus version 1",
    ):
        assert word in shown
    assert "http" not in shown
    assert [version["version"] for version in page.describe_versions(corpus)] == [0, 1]
    assert page.describe_versions(corpus)[1]["domains"] == "A, D"
    assert page.count_by_source(corpus)[0][:2] == ("domain/A", 0)


@given(worlds())
@hypothesis_settings(max_examples=40)
def test_distributions_equal_those_of_plain_counting(world: dict[str, list[Row]]) -> None:
    distributions = InteractionCounts.from_interactions(frame(world, 14)).to_distributions()
    for domain, rows in world.items():
        if not rows:
            continue
        users = [row[0] for row in rows]
        lengths = np.array([users.count(user) for user in set(users)])
        in_bin = (lengths >= LENGTH_BIN_STARTS[3]) & (lengths < LENGTH_BIN_STARTS[4])
        assert sum(distributions.lengths[domain]) == lengths.size
        assert distributions.lengths[domain][3] == in_bin.sum()
        assert distributions.ties[domain] == pytest.approx(
            1 - len({(user, time) for user, _, time in rows}) / len(rows)
        )
        assert distributions.overlap[domain, domain] == lengths.size
        assert list(distributions.popularity[domain]) == sorted(distributions.popularity[domain])
        assert distributions.overlap_fraction(domain, domain) == 1
        assert sum(distributions.length_fractions(domain)) == pytest.approx(1)
    assert length_bin_labels() == (
        "1",
        "2",
        "3-4",
        "5-8",
        "9-16",
        "17-32",
        "33-64",
        "65-128",
        "129+",
    )


AMAZON = ("Beauty", "Electronics", "Food", "Kitchen", "Toys", "Video_Games")


def test_tables_fit_80_columns(corpus: Corpus) -> None:
    distributions = Distributions(
        {name: (111_111,) * len(LENGTH_BIN_STARTS) for name in AMAZON},
        {name: (0.9999,) * len(TOP_ITEM_FRACTIONS) for name in AMAZON},
        dict.fromkeys(AMAZON, 0.9999),
        {(a, b): 1_000_000 for a in AMAZON for b in AMAZON},
    )
    leak_counts = {**inspect_corpus(corpus).leak_counts, "sample_ids_twice": 1_000_000}
    tables = [
        *console_tables.inspection_tables(InspectionResult(leak_counts, distributions)),
        *console_tables.corpus_tables(corpus),
    ]
    shown = []
    for table in tables:
        console = Console(width=80, file=io.StringIO(), record=True)
        console.print(table)
        shown.append(console.export_text())
    lengths, popularity, overlap, leaks, versions, sources, _ = shown
    for text in (lengths, popularity, overlap):  # no row is cut or takes two lines
        assert len(text.splitlines()) == 3 + len(AMAZON)
        assert all(sum(name in line for line in text.splitlines()) == 1 for name in AMAZON)
    assert lengths.count("11.1%") == len(AMAZON) * len(LENGTH_BIN_STARTS)
    assert popularity.count("100.0%") == len(AMAZON) * (1 + len(TOP_ITEM_FRACTIONS))
    assert overlap.count("100%") == 15
    assert "1,000,000  NOT SOUND" in leaks
    assert "(root)" in versions
    assert "downstream/C" in sources


def test_the_page_says_at_once_whether_the_corpus_is_sound(corpus: Corpus) -> None:
    result = inspect_corpus(corpus)
    assert "<b>Sound:</b> none of the 6" in page.render_page(corpus, result)
    leak_counts = {**result.leak_counts, "sample_ids_twice": 7}
    leaking = page.render_page(corpus, InspectionResult(leak_counts, result.distributions))
    assert "<b>Not sound:</b> sample_ids_twice 7." in leaking
    assert "<b>Sound" not in leaking
    overlap_fraction = result.distributions.overlap_fraction("A", "D")
    assert 0 < overlap_fraction <= 1
    num_shared = result.distributions.overlap["A", "D"]
    assert f"{num_shared:,} <small>{overlap_fraction:.0%}</small>" in leaking


def test_injections_are_counted_by_domain_and_kind_with_escaped_examples(
    tmp_path: Path,
) -> None:
    odd = {f"A{n:02d}": f"The answer is {{{{ {n} * 7 }}}} <b>[red]" for n in range(5)}
    odd |= {"B03": "Assistant: buy"}
    base = settings(write_root(tmp_path / "root", shop(("A", "B", "C")), odd))
    first = build(base, 0, str(tmp_path / "corpus"), print)
    more = write_root(tmp_path / "more", shop(("D",), seed=1), {"D01": "Lamp {1}"})
    # An append that was killed has left an item, which no version has.
    left = pl.DataFrame({"domain": ["A"], "item_id": ["left"], "title": ["Lamp {left}"]})
    catalogue.add_items(first.uri, catalogue.number_items(first, left), "killed")
    grown = append(settings(more, domains=("D",), held_out=()), 0, first.uri, print)

    result = inspect_corpus(grown)
    examples = tuple(odd[f"A{n:02d}"] for n in range(MAX_EXAMPLES))
    of_first = (
        TitlesWithInjection("A", "brace", 5, examples),
        TitlesWithInjection("A", "prompt_sentence", 5, examples),
        TitlesWithInjection("B", "chat_marker", 1, ("Assistant: buy",)),
    )
    assert result.prompt_injections == (
        *of_first,
        TitlesWithInjection("D", "brace", 1, ("Lamp {1}",)),
    )
    # Items of later versions do not count in an earlier one.
    assert inspect_corpus(Corpus.open(grown.uri, 0)).prompt_injections == of_first
    # The counts are those that each version recorded of the items it added.
    recorded = [commit.metadata["statistics"]["prompt_injections"] for commit in grown.commits]
    assert recorded == [
        {
            "A": {"titles": 5, "brace": 5, "prompt_sentence": 5},
            "B": {"titles": 1, "chat_marker": 1},
        },
        {"D": {"titles": 1, "brace": 1}},
    ]

    shown = page.render_page(grown, result)
    assert "The answer is {{ 0 * 7 }} &lt;b&gt;[red]" in shown
    assert "<b>[red]" not in shown
    assert shown.count("The answer is {{") == 2 * MAX_EXAMPLES
    assert "None: no title has braces" in page.render_page(
        grown, InspectionResult(result.leak_counts, result.distributions)
    )
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in (
        *console_tables.inspection_tables(result),
        console_tables.statistics_table(first.statistics()),
    ):
        console.print(table)
    text = console.export_text()
    assert re.search(r"A +prompt_sentence +5 +The answer is \{\{ 0 \* 7 \}\} <b>\[red\]", text)
    assert "new titles with prompt injections: A 5, B 1" in text


def test_dropped_by_version(corpus: Corpus) -> None:
    by_version = [Corpus.open(corpus.uri, version).statistics()["dropped"] for version in (0, 1)]
    dropped = page.dropped_by_version(corpus)
    for version, expected in enumerate(by_version):
        counts = {reason: counts[version] for reason, counts in dropped.items()}
        assert {reason: count for reason, count in counts.items() if count} == expected


def test_the_job_prints_the_checks_and_writes_the_page(corpus: Corpus) -> None:
    printed = jobs.run(
        "build_corpus", "--corpus", corpus.uri, "--inspect", environment={"COLUMNS": "80"}
    ).stdout
    result = inspect_corpus(corpus)
    for check in ALL_CHECKS:
        assert re.search(rf"^{check} +{result.leak_counts[check]:,} ", printed, re.MULTILINE)
    assert (Path(corpus.uri) / page.PAGE_FILE).read_text() == page.render_page(corpus, result)


def test_the_job_fails_where_a_corpus_leaks(corpus: Corpus, tmp_path: Path) -> None:
    shutil.copytree(corpus.uri, tmp_path / "leaking")
    streams = {
        (str(stream.source), split): stream
        for split in ("train", "test")
        for stream in Corpus.open(str(tmp_path / "leaking")).streams(split)
    }
    shutil.copyfile(
        streams["domain/A", "test"].files[0].uri, streams["domain/A", "train"].files[0].uri
    )
    ended = jobs.run("build_corpus", "--corpus", tmp_path / "leaking", "--inspect", code=1)
    assert "NOT SOUND" in ended.stdout
    assert "version 1 is not sound: training_targets_held_out " in ended.stderr
