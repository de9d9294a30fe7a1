"""Small worlds of interactions for the tests of the corpus, and the data roots that hold them.

A world is the interactions of some users, by domain.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from cluster.console import Say
from corpus.append import append
from corpus.build import build
from corpus.ingest import cleaning, raw_data
from corpus.ingest.cleaning import UsableInteractions
from corpus.ingest.raw_data import DomainItems
from corpus.sampling.encoded_interactions import mark_as_new
from corpus.settings import DataSettings
from corpus.store import delta, stored_interactions
from corpus.store.tables import Corpus

Row = tuple[str, str, int]
"""user_id, item_id, timestamp."""


@st.composite
def worlds(
    draw: st.DrawFn,
    domains: Sequence[str] = ("A", "B", "C"),
    users: int = 6,
    items: int = 14,
    most: int = 9,
) -> dict[str, list[Row]]:
    """Draws a world with many ties in time and some repeated purchases; no row occurs twice.

    Args:
        draw: Hypothesis's function to draw values.
        domains: Names of the domains.
        users: Users u0, u1, ...
        items: Items of each domain, such as A00, A01, ...
        most: Interactions of a user in a domain, at most.
    """
    world = {}
    for domain in domains:
        rows = []
        for user in range(users):
            bought = draw(
                st.lists(
                    st.tuples(st.integers(0, items - 1), st.integers(0, 12)),
                    max_size=most,
                    unique=True,
                )
            )
            rows += [(f"u{user}", f"{domain}{item:02d}", time) for item, time in bought]
        world[domain] = rows
    return world


def catalogue(domains: Sequence[str], items: int) -> dict[str, np.ndarray]:
    """Returns the item indices of each domain, if each has `items` items."""
    return {
        domain: np.arange(number * items, (number + 1) * items)
        for number, domain in enumerate(domains)
    }


def frame(world: Mapping[str, Sequence[Row]], items: int) -> pl.DataFrame:
    """Returns a world as a frame for `EncodedInteractions.from_frame`, all of it new in version 0.

    Args:
        world: Its item ids are the domain's name and a number below `items`.
        items: Items of each domain.
    """
    start = {domain: number * items for number, domain in enumerate(world)}
    rows = [
        (user, domain, item, start[domain] + int(item[len(domain) :]), time)
        for domain, domain_rows in world.items()
        for user, item, time in domain_rows
    ]
    schema = {
        "user_id": pl.String,
        "domain": pl.String,
        "item_id": pl.String,
        "item_index": pl.Int64,
        "timestamp": pl.Int64,
    }
    return mark_as_new(pl.DataFrame(rows, schema=schema, orient="row"), 0)


def shop(
    domains: Sequence[str], users: int = 40, items: int = 30, seed: int = 0
) -> dict[str, list[Row]]:
    """Returns a world in which every user buys 8 different items in every domain."""
    rng = np.random.default_rng(seed)
    return {
        domain: [
            (f"u{user:03d}", f"{domain}{item:02d}", int(rng.integers(0, 1_000)))
            for user in range(users)
            for item in rng.choice(items, size=8, replace=False)
        ]
        for domain in domains
    }


def write_root(
    root: Path, world: Mapping[str, Sequence[Row]], titles: Mapping[str, str] | None = None
) -> Path:
    """Writes the data root of a world, and returns it.

    Args:
        root: Folder of the data root.
        world: The interactions.
        titles: Titles of some items; the others are titled after their id.
    """
    for domain, rows in world.items():
        users, items, times = zip(*rows, strict=True)
        names = sorted(set(items))
        write_parquet(
            root / "interactions" / f"{domain}.parquet",
            {"user_id": users, "item_id": items, "timestamp": times},
        )
        write_parquet(
            root / "items" / f"{domain}.parquet",
            {"item_id": names, "title": [(titles or {}).get(n, f"Item {n}") for n in names]},
        )
    return root


def write_parquet(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Writes columns as a parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({name: pa.array(list(values)) for name, values in columns.items()}), path
    )


@dataclass(frozen=True)
class Domain:
    """A domain of a data root, read and cleaned as a build does.

    Attributes:
        usable: Its usable interactions.
        items: Its items.
    """

    usable: UsableInteractions
    items: DomainItems

    def rows(self) -> list[Row]:
        """Returns the interactions by names, sorted."""
        return sorted(self.named().rows())

    def named(self) -> pl.DataFrame:
        """Returns the interactions as a frame: user_id, item_id, timestamp."""
        user, item, timestamp = self.usable.interactions.select(
            "user", "item", "timestamp"
        ).get_columns()
        return pl.DataFrame(
            {
                "user_id": self.usable.user_ids.gather(user),
                "item_id": self.usable.item_ids.gather(item),
                "timestamp": timestamp,
            }
        )

    def titles(self) -> list[tuple[str, str]]:
        """Returns item_id and title of every item."""
        return self.items.titles.rows()

    def left_out(self) -> Counter[str]:
        """Returns the rows left out, by reason."""
        return +(self.usable.dropped_and_quarantined + self.items.dropped_and_quarantined)

    def quarantined(self) -> list[str]:
        """Returns the messages about unusable rows."""
        return [str(rows) for rows in (*self.usable.quarantined, *self.items.quarantined)]


def domain(data: DataSettings, name: str, say: Say = print) -> Domain:
    """Reads and cleans one domain of a data root."""
    raw, items = raw_data.read_domain(data, name, say)
    return Domain(
        cleaning.clean_interactions(
            name, raw, items.titles["item_id"], data, items.quarantined, items.dropped_ids
        ),
        items,
    )


def all_kept(corpus: Corpus) -> pl.DataFrame:
    """Returns all stored interactions of a corpus, by names."""
    users = [
        pl.Series(delta.open_parquet(file.uri).read(["user_id"])["user_id"])
        for file in stored_interactions.list_files(corpus)
    ]
    return stored_interactions.read_user_interactions(
        corpus, pl.concat(users).unique(), {}
    ).to_frame()


def settings(root: Path | str = "", **changes: object) -> DataSettings:
    """Returns settings for small worlds: domains A and B, C held out."""
    values: dict[str, object] = {
        "root": str(root),
        "domains": ("A", "B"),
        "held_out": ("C",),
        "num_candidates": 5,
        "max_history": 4,
    }
    return DataSettings.model_validate(values | changes)


def two_versions(place: Path) -> Corpus:
    """Builds a corpus of two versions below a folder; users have repeated purchases and ties."""
    world = shop(("A", "B", "C"), users=30)
    world["A"] += [("u000", "A00", 2_000 + n) for n in range(4)]
    corpus = build(settings(write_root(place / "root", world)), 0, str(place / "corpus"), print)
    more = shop(("D",), users=30, seed=1) | {
        "A": [("u001", f"A{n:02d}", 3_000 + n) for n in range(5)]
    }
    return append(
        settings(write_root(place / "more", more), domains=("A", "D"), held_out=()),
        0,
        corpus.uri,
        print,
    )
