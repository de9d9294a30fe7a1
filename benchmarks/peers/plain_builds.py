"""The samples of a corpus by plain polars and plain pandas, as one would write them first.

`benchmarks/corpus.py` measures them, and says what they lack.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

DOMAINS = ("A", "B", "C")
K_CORE = 3
MIN_HISTORY = 3
MAX_HISTORY = 10
NUM_CANDIDATES = 20


def draw_candidates(
    targets: np.ndarray,
    target_users: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
    num_items: int,
) -> np.ndarray:
    """Draws the candidates of each target, as the peers do it.

    Negatives are drawn again where the user has the item or an item stands twice.

    Args:
        targets: The true items [samples].
        target_users: The user of each target [samples].
        users: The user of every interaction [interactions].
        items: The item of every interaction [interactions].
        num_items: Number of items.

    Returns:
        Candidates [samples, NUM_CANDIDATES], shuffled.
    """
    rng = np.random.default_rng(0)
    seen_keys = np.unique(users.astype(np.int64) * num_items + items)
    candidates = rng.integers(0, num_items, (targets.size, NUM_CANDIDATES))
    candidates[:, 0] = targets
    pending = np.arange(targets.size)
    while pending.size:
        part = candidates[pending]
        order = np.argsort(part, axis=1, kind="stable")
        values = np.take_along_axis(part, order, 1)
        repeated = np.zeros_like(part, bool)
        np.put_along_axis(repeated, order[:, 1:], values[:, 1:] == values[:, :-1], 1)
        keys = target_users[pending].astype(np.int64)[:, None] * num_items + part
        places = np.minimum(np.searchsorted(seen_keys, keys), seen_keys.size - 1)
        redraw = repeated | (seen_keys[places] == keys)
        redraw[:, 0] = False
        part[redraw] = rng.integers(0, num_items, int(redraw.sum()))
        candidates[pending] = part
        pending = pending[redraw.any(axis=1)]
    return rng.permuted(candidates, axis=1)


def build_with_polars(root: Path, out: Path) -> int:
    """Builds the same kind of samples with plain polars; returns their number."""
    out.mkdir()
    domain_rows = []
    samples = 0
    first_item = 0
    for domain in DOMAINS:
        rows = pl.read_parquet(root / "interactions" / f"{domain}.parquet").unique()
        while True:
            core = rows.filter(pl.len().over("user_id") >= K_CORE).filter(
                pl.len().over("item_id") >= K_CORE
            )
            if core.height == rows.height:
                break
            rows = core
        ids = rows["item_id"].unique().sort()
        rows = rows.join(
            pl.DataFrame({"item_id": ids, "item": np.arange(ids.len()) + first_item}), on="item_id"
        ).sort("user_id", "timestamp", "item_id")
        rows = rows.with_columns(
            domain=pl.lit(domain),
            place=pl.int_range(pl.len()).over("user_id"),
            size=pl.len().over("user_id"),
        )
        domain_rows.append(rows)
        file = out / f"{domain}.parquet"
        samples += write_polars_samples(rows, rows, first_item, ids.len(), file)
        first_item += ids.len()
    all_rows = pl.concat(domain_rows)
    # Leave-one-out: the last two interactions with each domain are validation and test.
    mixed = all_rows.filter(pl.col("place") < pl.col("size").cast(pl.Int64) - 2).sort(
        "user_id", "timestamp", "domain", "item_id"
    )
    mixed = mixed.with_columns(place=pl.int_range(pl.len()).over("user_id"))
    return samples + write_polars_samples(mixed, all_rows, 0, first_item, out / "mixed.parquet")


def write_polars_samples(
    rows: pl.DataFrame, all_rows: pl.DataFrame, first_item: int, num_items: int, file: Path
) -> int:
    """Writes the samples of one source; returns their number.

    Args:
        rows: Interactions that become targets and histories, by user and time.
        all_rows: Interactions whose items are no negatives of their users.
        first_item: Number of the first item that may be a negative.
        num_items: Number of items that may be negatives.
        file: The file to write.
    """
    previous = [pl.col("item").shift(back).over("user_id") for back in range(MAX_HISTORY, 0, -1)]
    history = pl.concat_list(previous).list.drop_nulls().alias("history")
    samples = rows.with_columns(history).filter(pl.col("place") >= MIN_HISTORY)
    interactions = all_rows.select(
        "user_id", "item", user=pl.col("user_id").rank("dense").cast(pl.Int64)
    )
    user_numbers = interactions.select("user_id", "user").unique()
    target_users = samples.join(user_numbers, on="user_id", how="left", maintain_order="left")[
        "user"
    ]
    candidates = draw_candidates(
        samples["item"].to_numpy() - first_item,
        target_users.to_numpy(),
        interactions["user"].to_numpy(),
        interactions["item"].to_numpy() - first_item,
        num_items,
    )
    samples.with_columns(candidates=pl.Series(candidates + first_item)).write_parquet(file)
    return samples.height


def build_with_pandas(root: Path, out: Path) -> int:
    """Builds the same kind of samples with plain pandas; returns their number."""
    out.mkdir()
    domain_rows = []
    samples = 0
    first_item = 0
    for domain in DOMAINS:
        rows = pd.read_parquet(root / "interactions" / f"{domain}.parquet").drop_duplicates()
        while True:
            core = rows[rows.groupby("user_id")["item_id"].transform("size") >= K_CORE]
            core = core[core.groupby("item_id")["user_id"].transform("size") >= K_CORE]
            if len(core) == len(rows):
                break
            rows = core
        rows = rows.assign(
            item=rows["item_id"].rank(method="dense").astype(int) - 1 + first_item, domain=domain
        )
        rows = rows.sort_values(["user_id", "timestamp", "item_id"])
        by_user = rows.groupby("user_id")
        rows = rows.assign(place=by_user.cumcount(), size=by_user["item"].transform("size"))
        num_items = rows["item_id"].nunique()
        domain_rows.append(rows)
        file = out / f"{domain}.parquet"
        samples += write_pandas_samples(rows, rows, first_item, num_items, file)
        first_item += num_items
    all_rows = pd.concat(domain_rows)
    # Leave-one-out: the last two interactions with each domain are validation and test.
    mixed = all_rows[all_rows["place"] < all_rows["size"] - 2].sort_values(
        ["user_id", "timestamp", "domain", "item_id"]
    )
    mixed = mixed.assign(place=mixed.groupby("user_id").cumcount())
    return samples + write_pandas_samples(mixed, all_rows, 0, first_item, out / "mixed.parquet")


def write_pandas_samples(
    rows: pd.DataFrame, all_rows: pd.DataFrame, first_item: int, num_items: int, file: Path
) -> int:
    """Writes the samples of one source; returns their number. Arguments as with polars."""
    histories = []
    for _, user_items in rows.groupby("user_id", sort=False)["item"]:
        items = user_items.tolist()
        histories += [items[max(0, place - MAX_HISTORY) : place] for place in range(len(items))]
    samples = rows.assign(history=histories)
    samples = samples[samples["place"] >= MIN_HISTORY]
    users, user_ids = pd.factorize(all_rows["user_id"])
    candidates = draw_candidates(
        samples["item"].to_numpy() - first_item,
        user_ids.get_indexer(samples["user_id"]),
        users,
        all_rows["item"].to_numpy() - first_item,
        num_items,
    )
    samples.assign(candidates=list(candidates + first_item)).to_parquet(file)
    return len(samples)
