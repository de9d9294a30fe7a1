"""Statistics of a corpus version, as in the paper's Table 2, and how they are shown."""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
from rich import box
from rich.table import Table

from corpus.delta import Written
from corpus.samples import MIXED, source_of
from corpus.sequences import SPLITS
from corpus.settings import DataSettings

Counts = Mapping[tuple[str, str], int]


def describe(interactions: pl.DataFrame, data: DataSettings, samples: Counts, mixed_users: int, dropped: Mapping[str, int]) -> dict[str, Any]:
    """The object of statistics.json, less its version: domains after k-core and before the split; samples of all splits; what was dropped, by reason.

    interactions: user_id, domain, item_id; samples: count by (source, split); mixed_users: users with mixed samples.
    """
    sizes = interactions.group_by("domain").agg(pl.col("user_id").n_unique(), pl.col("item_id").n_unique(), pl.len())
    by_domain = {name: (users, items, count) for name, users, items, count in sizes.iter_rows()}
    domains = {}
    for name in (*data.domains, *data.held_out):
        users, items, count = by_domain[name]
        splits = {split: samples.get((source_of(name, data), split), 0) for split in SPLITS}
        domains[name] = {
            "users": users,
            "items": items,
            "interactions": count,
            "sparsity": 1 - count / (users * items),
            "samples": sum(splits.values()),
            "splits": splits,
            "held_out": name in data.held_out,
        }
    mixed = {"users": mixed_users, "samples": samples.get((MIXED, SPLITS[0]), 0)}
    return {"domains": domains, "mixed": mixed, "dropped": {reason: count for reason, count in sorted(dropped.items()) if count}}


def count(files: Iterable[Written]) -> dict[tuple[str, str], int]:
    """Samples by (source, split) in written files."""
    found: dict[tuple[str, str], int] = {}
    for file in files:
        key = file.partition["source"], file.partition["split"]
        found[key] = found.get(key, 0) + file.rows
    return found


def table(statistics: Mapping[str, Any]) -> Table:
    """Statistics for the console: one row per domain, one for the mixed sequences. Fits 80 columns where the names of domains are short."""
    version = f" of corpus version {statistics['version']}" if "version" in statistics else ""
    shown = Table(title=f"Domains and samples{version}", box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption_justify="left")
    shown.add_column("domain", no_wrap=True)
    for name in ("users", "items", "interactions", "sparsity", *SPLITS):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, of in statistics["domains"].items():
        numbers = [f"{of[key]:,}" for key in ("users", "items", "interactions")]
        splits = [f"{of['splits'][split]:,}" for split in SPLITS]
        shown.add_row(name + ("*" if of["held_out"] else ""), *numbers, f"{of['sparsity']:.2%}", *splits)
    mixed = statistics["mixed"]
    shown.add_row(MIXED, f"{mixed['users']:,}", "", "", "", f"{mixed['samples']:,}", "", "")
    dropped = ", ".join(f"{reason} {number:,}" for reason, number in statistics["dropped"].items())
    shown.caption = f"{', '.join(SPLITS)}: samples; *: held out of pre-training" + (f"\ndropped: {dropped}" if dropped else "")
    return shown
