"""Whole builds of random interactions against a slow implementation of the rules."""

from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cluster.errors import DataError
from corpus.build import build
from corpus.inspect.inspection import inspect_corpus
from corpus.inspect.leakage import LEAK_CHECKS
from corpus.sampling.source import SPLITS
from corpus.settings import DataSettings
from tests.unit.corpus import brute
from tests.unit.corpus.worlds import Row, settings, worlds, write_parquet

DOMAINS = ("A", "B", "C")
Raw = tuple[str | None, str | None, int | None]

UNUSABLE: list[Raw] = [
    (None, "A01", 1),
    (" ", "A02", 1),
    ("u1", None, 2),
    ("u2", "A03", None),
    ("u3", "A04", -1),
    ("u4", "A00", 10**13),
    ("u5", "none", 3),
]

rules = st.builds(
    lambda k, low, more, span: settings(
        k_core=k,
        num_candidates=3,
        min_history=low,
        max_history=low + more,
        mixed_min_domains=span,
        max_quarantined=1.0,
        latest=100,
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 2),
)


@given(worlds(DOMAINS, users=7, items=10, most=8), st.integers(0, 1000), rules)
@hypothesis_settings(max_examples=40)
def test_a_build_has_the_samples_of_the_slow_implementation(
    tmp_path_factory: pytest.TempPathFactory,
    world: dict[str, list[Row]],
    seed: int,
    data: DataSettings,
) -> None:
    place = tmp_path_factory.mktemp("whole")
    for domain, rows in world.items():
        _write(place, domain, rows, seed)
    data = data.model_copy(update={"root": str(place)})
    cores = {domain: brute.core(rows, data.k_core) for domain, rows in world.items()}
    if any(not rows or _fewest_left(rows) < data.num_candidates - 1 for rows in cores.values()):
        with pytest.raises(DataError, match=r"core of|negatives are wanted"):
            build(data, seed, str(place / "corpus"), print)
        return
    corpus = build(data, seed, str(place / "corpus"), print)
    expected, dropped = brute.samples_of(cores, data)

    items = corpus.read_items().to_pylist()
    assert sorted((item["domain"], item["item_id"]) for item in items) == sorted(
        {(domain, item) for domain, rows in cores.items() for _, item, _ in rows}
    )
    names = [item["item_id"] for item in items]
    counted: dict[tuple[str, str], Counter[tuple[object, ...]]] = {}
    for split in SPLITS:
        for stream in corpus.streams(split):
            for row in corpus.read_samples(stream.source, split).to_pylist():
                history = tuple(names[i] for i in row["history"])
                target = names[row["candidates"][row["target"]]]
                counted.setdefault((stream.source, split), Counter())[
                    row["user_id"], row["domain"], history, target, row["timestamp"]
                ] += 1
                had = {item for user, item, _ in cores[row["domain"]] if user == row["user_id"]}
                assert not {names[i] for i in row["candidates"]} - {target} & had
                assert len(set(row["candidates"])) == data.num_candidates
    assert counted == expected

    shown = corpus.statistics()
    for domain, rows in cores.items():
        counts = tuple(shown["domains"][domain][key] for key in ("users", "items", "interactions"))
        assert counts == (
            len({user for user, *_ in rows}),
            len({item for _, item, _ in rows}),
            len(rows),
        )
    reasons = Counter(
        no_user_id=6,
        no_item_id=3,
        no_timestamp=3,
        timestamp_before_1970=3,
        timestamp_in_finer_unit=3,
        item_without_title=3,
    )
    reasons += (
        Counter(
            duplicate_interaction=3 * 2,
            k_core=sum(map(len, world.values())) - sum(map(len, cores.values())),
        )
        + dropped
    )
    assert shown["dropped"] == {reason: count for reason, count in reasons.items() if count}
    leaks = inspect_corpus(corpus).leak_counts
    assert {name: leaks[name] for name in LEAK_CHECKS} == dict.fromkeys(LEAK_CHECKS, 0)


def _write(place: Path, domain: str, rows: list[Row], seed: int) -> None:
    """Writes a domain to two files, shuffled, with unusable rows and a row that occurs three times.

    Adds the repeated row to `rows`, once.
    """
    repeated: list[Raw] = [
        ("u9", f"{domain}00", 4),
        ("u9", f"{domain}00", 4),
        ("u9", f"{domain}00", 4),
    ]
    written = pl.DataFrame(
        [*rows, *UNUSABLE, *repeated],
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64},
        orient="row",
    )
    rows.append(("u9", f"{domain}00", 4))
    shuffled = written.sample(fraction=1, shuffle=True, seed=seed)
    folder = place / "interactions" / f"{domain}.parquet"
    folder.mkdir(parents=True)
    for number, part in enumerate((shuffled.head(5), shuffled.slice(5))):
        part.write_parquet(folder / f"{number}.parquet")
    names = sorted({item for _, item, _ in rows} | {f"A{number:02d}" for number in range(5)})
    write_parquet(
        place / "items" / f"{domain}.parquet",
        {"item_id": names, "title": [f"Item {name}" for name in names]},
    )


def _fewest_left(rows: list[Row]) -> int:
    """Returns how many items of a domain its busiest user did not interact with."""
    items = {item for _, item, _ in rows}
    return min(len(items - {item for name, item, _ in rows if name == user}) for user, *_ in rows)
