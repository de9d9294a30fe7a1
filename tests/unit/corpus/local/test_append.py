"""The comparison of an append's input with a corpus, against joins by names."""

from pathlib import Path

import polars as pl
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from corpus.build import build
from corpus.local.append import find_new_interactions
from corpus.sampling.encoded_interactions import EncodedInteractions, encode_values
from corpus.store import stored_interactions
from tests.unit.corpus.worlds import Row, frame, settings, shop, worlds, write_root

ITEMS = 14


@given(worlds(("A", "B"), items=ITEMS), worlds(("A", "B"), items=ITEMS))
@hypothesis_settings(max_examples=60)
def test_existing_interactions_are_left_out_and_users_of_the_domain_are_known(
    existing_world: dict[str, list[Row]], input_world: dict[str, list[Row]]
) -> None:
    existing = frame(existing_world, ITEMS)
    appended = frame(input_world, ITEMS).filter(pl.col("domain") == "A")
    ids = pl.Series(
        [f"A{item:02d}" for item in range(0, ITEMS, 2)] + [f"B{item:02d}" for item in range(ITEMS)]
    )  # only some items of the corpus have a title here
    titled = appended.filter(pl.col("item_id").is_in(ids.implode()))
    users = titled["user_id"].unique()
    rows = titled.select(
        "timestamp",
        user=encode_values(titled["user_id"], users),
        item=encode_values(titled["item_id"], ids),
    )
    (new, new_users), known_users, (num_existing, num_new) = find_new_interactions(
        "A", ids, (rows, users), EncodedInteractions.from_frame(existing)
    )

    of_domain = existing.filter(pl.col("domain") == "A", pl.col("item_id").is_in(ids.implode()))
    expected = titled.join(of_domain, on=["user_id", "item_id", "timestamp"], how="anti")
    named = zip(
        new_users.gather(new["user"]), ids.gather(new["item"]), new["timestamp"], strict=True
    )
    assert sorted(named) == sorted(expected.select("user_id", "item_id", "timestamp").rows())
    assert sorted(new_users) == sorted(expected["user_id"].unique())
    assert sorted(known_users) == sorted(set(of_domain["user_id"]) & set(users))
    assert (num_existing, num_new) == (titled.height - expected.height, expected.height)


def test_the_count_of_stored_interactions_is_what_is_read(tmp_path: Path) -> None:
    corpus = build(
        settings(write_root(tmp_path / "root", shop(("A", "B", "C"), users=300))),
        0,
        str(tmp_path / "corpus"),
        print,
    )
    for users in ([], ["u007"], ["nobody", "u299"], [f"u{user:03d}" for user in range(0, 300, 3)]):
        user_ids = pl.Series(users, dtype=pl.String)
        assert (
            stored_interactions.count_user_interactions(corpus, user_ids)
            == stored_interactions.read_user_interactions(corpus, user_ids, {}).rows.height
            == 24 * len(set(users) - {"nobody"})
        )
