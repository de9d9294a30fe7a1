"""The simulated shoppers are a function of their seed, and their tastes hold in every domain.

Their data root is written completely, or refused with a clear message.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cluster.errors import DataError
from corpus.ingest import simulation
from corpus.settings import DataSettings, SimulateSettings

DOMAINS = ("Garden", "Office", "Sports", "Music", "Pets", "Games")
SMALL = SimulateSettings(
    users=150, items_per_domain=100, domains_per_user=3, interactions_per_domain=12
)
HELD_OUT = DOMAINS.index("Games")


@pytest.fixture(scope="module")
def world() -> simulation.SimulatedWorld:
    return simulation.simulate_shoppers(DOMAINS, SimulateSettings(users=400), seed=0)


def data_settings(folder: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate(
        {
            "root": str(folder / "shoppers"),
            "format": "simulated",
            "domains": DOMAINS[:2],
            "held_out": DOMAINS[2:3],
            **changes,
        }
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@hypothesis_settings(max_examples=15)
@given(
    seed=st.integers(0, 2**40),
    users=st.integers(10, 60),
    items=st.integers(30, 80),
    domains_per_user=st.integers(1, 8),
    purchases=st.integers(5, 40),
    drift=st.floats(0, 1),
)
def test_any_setting_gives_a_consistent_world(
    seed: int, users: int, items: int, domains_per_user: int, purchases: int, drift: float
) -> None:
    settings = SimulateSettings(
        users=users,
        items_per_domain=items,
        domains_per_user=domains_per_user,
        interactions_per_domain=purchases,
        drift=drift,
    )
    world = simulation.simulate_shoppers(("Garden", "Nowhere"), settings, seed)
    bought = world.purchases
    for shelf in world.shelves:
        assert len(set(shelf.titles)) == len(set(shelf.item_ids)) == items
    assert set(bought.user.tolist()) == set(range(users))
    assert len(
        {*zip(bought.user.tolist(), bought.domain.tolist(), bought.item.tolist(), strict=True)}
    ) == len(bought.user)
    for user in range(users):
        assert (np.diff(bought.timestamp[bought.user == user]) >= 0).all()
    again = simulation.data_root_files(
        simulation.simulate_shoppers(("Garden", "Nowhere"), settings, seed)
    )
    assert again == simulation.data_root_files(world)


def test_another_seed_gives_another_world() -> None:
    assert simulation.data_root_files(
        simulation.simulate_shoppers(DOMAINS, SMALL, 1)
    ) != simulation.data_root_files(simulation.simulate_shoppers(DOMAINS, SMALL, 2))


def test_domains_share_users_and_attributes_but_no_nouns(world: simulation.SimulatedWorld) -> None:
    users = [
        set(world.purchases.user[world.purchases.domain == index].tolist())
        for index in range(len(DOMAINS))
    ]
    assert all(first & second for first in users for second in users)
    words = [{word for title in shelf.titles for word in title.split()} for shelf in world.shelves]
    shared = {word for axis in simulation.ATTRIBUTE_VALUES for word in axis}
    assert all(first & second == shared for i, first in enumerate(words) for second in words[:i])


def test_settings_are_met_on_average(world: simulation.SimulatedWorld) -> None:
    bought = world.purchases
    settings = SimulateSettings()
    pairs = np.unique(bought.user * len(DOMAINS) + bought.domain)
    assert len(pairs) / 400 == pytest.approx(settings.domains_per_user, rel=0.1)
    assert len(bought.user) / len(pairs) == pytest.approx(
        settings.interactions_per_domain, rel=0.05
    )


def test_domains_interleave_in_time_and_some_purchases_tie(
    world: simulation.SimulatedWorld,
) -> None:
    bought = world.purchases
    order = np.lexsort((np.arange(len(bought.user)), bought.user))
    same_user = np.diff(bought.user[order]) == 0
    assert (np.diff(bought.domain[order])[same_user] != 0).mean() > 0.3
    assert 0.01 < (np.diff(bought.timestamp[order])[same_user] == 0).mean() < 0.1


def test_tastes_stay_without_drift_and_change_with_it() -> None:
    for drift, low, high in ((0.0, 0.0, 0.0), (0.5, 0.3, 0.5)):
        bought = simulation.simulate_shoppers(
            DOMAINS, SMALL.model_copy(update={"drift": drift}), 3
        ).purchases
        order = np.lexsort((np.arange(len(bought.user)), bought.user))
        changed = (np.diff(bought.tastes[order], axis=0) != 0).any(axis=1)[
            np.diff(bought.user[order]) == 0
        ]
        assert low <= changed.mean() <= high


def draw_candidates(
    world: simulation.SimulatedWorld, rows: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws 20 candidates per purchase; negatives may be items bought at another time.

    Returns:
        Attributes of the candidates [n, 20, axis], and the position of the target [n].
    """
    bought = world.purchases
    size = len(world.shelves[0].titles)
    items = (
        bought.item[rows, None]
        + rng.permuted(np.tile(np.arange(1, size), (len(rows), 1)), axis=1)[:, :20]
    ) % size
    target = rng.integers(20, size=len(rows))
    items[np.arange(len(rows)), target] = bought.item[rows]
    shelves = np.stack([shelf.attributes for shelf in world.shelves])
    return shelves[bought.domain[rows, None], items], target


def test_knowing_the_tastes_beats_chance_by_far(
    world: simulation.SimulatedWorld,
) -> None:
    rows = np.flatnonzero(world.purchases.domain == HELD_OUT)
    candidates, target = draw_candidates(world, rows, np.random.default_rng(0))
    ceiling = (simulation.best_candidate(world.purchases.tastes[rows], candidates) == target).mean()
    tastes_of_others = np.random.default_rng(1).permuted(world.purchases.tastes[rows], axis=0)
    assert ceiling > 0.6
    assert (simulation.best_candidate(tastes_of_others, candidates) == target).mean() < 0.12


def test_tastes_seen_in_other_domains_predict_the_held_out_one(
    world: simulation.SimulatedWorld,
) -> None:
    bought = world.purchases
    shelves = np.stack([shelf.attributes for shelf in world.shelves])
    hits = []
    rng = np.random.default_rng(0)
    for user in range(400):
        elsewhere = shelves[bought.domain, bought.item][
            (bought.user == user) & (bought.domain != HELD_OUT)
        ]
        rows = np.flatnonzero((bought.user == user) & (bought.domain == HELD_OUT))
        if len(elsewhere) < 5 or not len(rows):
            continue
        favourites = np.array([np.bincount(axis).argmax() for axis in elsewhere.T])
        candidates, target = draw_candidates(world, rows, rng)
        hits.extend(simulation.best_candidate(favourites[None], candidates) == target)
    assert len(hits) > 500
    assert np.mean(hits) > 0.35


def test_a_complete_root_is_left_alone(tmp_path: Path) -> None:
    data = data_settings(tmp_path)
    simulation.write_data_root(data, SMALL, seed=0)
    folder = Path(data.only_root)
    before = contents(folder)
    assert set(before) == {
        simulation.MARKER_FILE,
        *(f"{kind}/{name}.parquet" for kind in ("interactions", "items") for name in DOMAINS[:3]),
    }
    schema = pq.read_schema(folder / "interactions" / "Garden.parquet")
    assert [(field.name, str(field.type)) for field in schema] == [
        ("user_id", "string"),
        ("item_id", "string"),
        ("timestamp", "int64"),
    ]
    assert pq.read_schema(folder / "items" / "Garden.parquet").names == ["item_id", "title"]
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}
    simulation.write_data_root(data, SMALL, seed=0)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")} == times


def test_a_write_that_was_cut_short_is_completed(tmp_path: Path) -> None:
    data = data_settings(tmp_path)
    simulation.write_data_root(data, SMALL, seed=0)
    folder = Path(data.only_root)
    whole = contents(folder)
    (folder / simulation.MARKER_FILE).unlink()
    (folder / "items" / "Sports.parquet").unlink()
    simulation.write_data_root(data, SMALL, seed=0)
    assert contents(folder) == whole


def test_another_simulation_is_not_overwritten(tmp_path: Path) -> None:
    data = data_settings(tmp_path)
    simulation.write_data_root(data, SMALL, seed=0)
    with pytest.raises(DataError, match=r"seed 0 \(asked for: 7\)"):
        simulation.write_data_root(data, SMALL, seed=7)
    with pytest.raises(DataError, match="domains"):
        simulation.write_data_root(data_settings(tmp_path, held_out=("Music",)), SMALL, seed=0)


def test_files_that_are_not_simulated_are_not_overwritten(tmp_path: Path) -> None:
    data = data_settings(tmp_path)
    own = Path(data.only_root) / "interactions" / "Garden.parquet"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"Garden\.parquet: was not written by this simulation"):
        simulation.write_data_root(data, SMALL, seed=0)
    assert own.read_bytes() == b"mine"


def test_a_simulation_without_domains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="both empty"):
        simulation.write_data_root(data_settings(tmp_path, domains=(), held_out=()), SMALL, seed=0)
