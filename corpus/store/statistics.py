"""Statistics of a corpus version, as in the paper's Table 2, and how they are shown."""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
from rich import box
from rich.table import Table

from corpus.sampling.samples import domain_source
from corpus.sampling.sequences import SPLITS
from corpus.sampling.source import MIXED
from corpus.settings import DataSettings
from corpus.store.delta import WrittenFile

SampleCounts = Mapping[tuple[str, str], int]

NewCounts = Mapping[str, tuple[int, int]]

EMPTY_STATISTICS: Mapping[str, Any] = {"domains": {}, "mixed": {"users": 0, "samples": 0}}
"""What there is before version 0."""


def describe_version(
    previous: Mapping[str, Any],
    new_counts: NewCounts,
    item_counts: Mapping[str, int],
    data: DataSettings,
    sample_counts: SampleCounts,
    mixed_users: int,
    dropped: Mapping[str, int],
) -> dict[str, Any]:
    """The object of statistics.json, less its version, of the version that comes after one.

    Domains: after k-core and before the split, with the samples of all splits; totals up to this version.
    before: the object of the version before; came: what `came` found of all users with new interactions;
    items: items of each domain now; data: of the whole corpus; samples: those gained, by (source, split); mixed_users: users with their first mixed
    samples; dropped: what this version left out, by reason.
    """
    domains = {}
    for name in (*data.domains, *data.held_out):
        old = previous["domains"].get(name, {"users": 0, "interactions": 0, "splits": {}})
        rows, users = new_counts.get(name, (0, 0))
        total = {
            "users": old["users"] + users,
            "items": item_counts[name],
            "interactions": old["interactions"] + rows,
        }
        splits = {
            split: old["splits"].get(split, 0)
            + sample_counts.get((domain_source(name, data), split), 0)
            for split in SPLITS
        }
        sparsity = 1 - total["interactions"] / (total["users"] * total["items"])
        domains[name] = {
            **total,
            "sparsity": sparsity,
            "samples": sum(splits.values()),
            "splits": splits,
            "held_out": name in data.held_out,
        }
    was = previous["mixed"]
    mixed = {
        "users": was["users"] + mixed_users,
        "samples": was["samples"] + sample_counts.get((MIXED, SPLITS[0]), 0),
    }
    return {
        "domains": domains,
        "mixed": mixed,
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
    }


def count_new_by_domain(user_domain_counts: pl.DataFrame) -> dict[str, tuple[int, int]]:
    """New interactions of each domain, and the users who had none in it before. sizes: `Coded.sizes`; counts of some users and of others add up."""
    fresh = (pl.col("new") == pl.col("size")).sum().alias("users")
    return {
        name: (rows, users)
        for name, rows, users in user_domain_counts.group_by("domain")
        .agg(pl.col("new").sum(), fresh)
        .iter_rows()
    }


def count_samples(files: Iterable[WrittenFile]) -> dict[tuple[str, str], int]:
    """Samples by (source, split) in written files."""
    found: dict[tuple[str, str], int] = {}
    for file in files:
        key = file.partition["source"], file.partition["split"]
        found[key] = found.get(key, 0) + file.rows
    return found


def console_table(statistics: Mapping[str, Any]) -> Table:
    """Statistics for the console: one row per domain, one for the mixed sequences. Fits 80 columns where the names of domains are short."""
    version = f" of corpus version {statistics['version']}" if "version" in statistics else ""
    shown = Table(
        title=f"Domains and samples{version}",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
        caption_justify="left",
    )
    shown.add_column("domain", no_wrap=True)
    for name in ("users", "items", "interactions", "sparsity", *SPLITS):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, of in statistics["domains"].items():
        numbers = [f"{of[key]:,}" for key in ("users", "items", "interactions")]
        splits = [f"{of['splits'][split]:,}" for split in SPLITS]
        shown.add_row(
            name + ("*" if of["held_out"] else ""), *numbers, f"{of['sparsity']:.2%}", *splits
        )
    mixed = statistics["mixed"]
    shown.add_row(MIXED, f"{mixed['users']:,}", "", "", "", f"{mixed['samples']:,}", "", "")
    dropped = ", ".join(f"{reason} {number:,}" for reason, number in statistics["dropped"].items())
    shown.caption = f"{', '.join(SPLITS)}: samples; *: held out of pre-training" + (
        f"\ndropped: {dropped}" if dropped else ""
    )
    return shown
