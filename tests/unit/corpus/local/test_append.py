"""What is compared with a corpus, against joins by names."""

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
def test_what_is_there_is_left_out_and_whom_the_domain_has_is_known(
    there: dict[str, list[Row]], given: dict[str, list[Row]]
) -> None:
    old, came = frame(there, ITEMS), frame(given, ITEMS).filter(pl.col("domain") == "A")
    ids = pl.Series(
        [f"A{item:02d}" for item in range(0, ITEMS, 2)] + [f"B{item:02d}" for item in range(ITEMS)]
    )  # not all of the corpus have a title
    titled = came.filter(pl.col("item_id").is_in(ids.implode()))
    users = titled["user_id"].unique()
    rows = titled.select(
        "timestamp",
        user=encode_values(titled["user_id"], users),
        item=encode_values(titled["item_id"], ids),
    )
    (fresh, names), known, (already, left) = find_new_interactions(
        "A", ids, (rows, users), EncodedInteractions.from_frame(old)
    )

    of_domain = old.filter(pl.col("domain") == "A", pl.col("item_id").is_in(ids.implode()))
    wanted = titled.join(of_domain, on=["user_id", "item_id", "timestamp"], how="anti")
    found = zip(
        names.gather(fresh["user"]), ids.gather(fresh["item"]), fresh["timestamp"], strict=True
    )
    assert sorted(found) == sorted(wanted.select("user_id", "item_id", "timestamp").rows())
    assert sorted(names) == sorted(wanted["user_id"].unique())
    assert sorted(known) == sorted(set(of_domain["user_id"]) & set(users))
    assert (already, left) == (titled.height - wanted.height, wanted.height)


def test_interactions_of_users_are_counted_as_they_are_read(tmp_path: Path) -> None:
    corpus = build(
        settings(write_root(tmp_path / "root", shop(("A", "B", "C"), users=300))),
        0,
        str(tmp_path / "corpus"),
        print,
    )
    for users in ([], ["u007"], ["nobody", "u299"], [f"u{user:03d}" for user in range(0, 300, 3)]):
        asked = pl.Series(users, dtype=pl.String)
        assert (
            stored_interactions.count_user_interactions(corpus, asked)
            == stored_interactions.read_user_interactions(corpus, asked, {}).rows.height
            == 24 * len(set(users) - {"nobody"})
        )
