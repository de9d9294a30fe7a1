"""Simulates shoppers: seeded purchase histories over several domains, with a known best answer.

A title names its item's attributes: brand, style, material, price level and noun. The first four
are shared by all domains; each domain has its own nouns. A shopper has one favourite value per
shared attribute, the same in every domain. The next purchase is drawn by a multinomial logit over
the items of a domain that the shopper has not bought yet:

    P(item) ~ exp(sum of FAVOURITE_UTILITY[a] over attributes a whose value is the favourite)

Favourites drift over time. What is learned in one domain therefore transfers to another. Among a
target and uniformly drawn negatives, the best answer is known: the item of the highest utility.
"""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError
from corpus.settings import DataSettings, SimulateSettings

BRANDS = tuple(
    "Aldora Benvik Corvane Dunmere Elstow Fairlow Gantry Holvik Isenor Jarrow Kestrel Lunford "
    "Marlow Norvane Oakmere Pelham Quillon Ravenor Selwick Tarvane Umbrel Velmont Wexley "
    "Zorvik".split()
)
STYLES = tuple("classic modern rustic minimal vintage sporty elegant playful".split())
MATERIALS = tuple("oak steel cotton leather glass bamboo ceramic rubber".split())
PRICES = tuple("budget standard premium luxury".split())
ATTRIBUTE_VALUES = (BRANDS, STYLES, MATERIALS, PRICES)
"""The values of each shared attribute; an array's `axis` dimension follows this order."""
FAVOURITE_UTILITY = np.array([8.0, 5.0, 5.0, 3.0])
"""Utility of the favourite brand, style, material and price level.

The noise of the logit (a standard Gumbel) has standard deviation 1.28.
"""

NOUNS = {
    "Garden": "rake shovel planter hose trellis lantern bench gnome sprinkler trowel birdbath "
    "compost arbor wheelbarrow hammock pergola fence mulch pruner urn",
    "Office": "stapler folder desk binder lamp notebook pencil shredder whiteboard tray chair "
    "ruler calendar organizer printer scanner envelope marker clock easel",
    "Sports": "racket ball helmet jersey glove treadmill kayak dumbbell mat goggles bicycle "
    "skate whistle paddle sneaker bat net trampoline saddle tent",
    "Music": "guitar violin drum flute piano harp trumpet cello banjo metronome amplifier "
    "ukulele clarinet tuner stand tambourine microphone oboe organ lute",
    "Pets": "leash bowl collar kennel aquarium brush crate feeder perch harness toy "
    "blanket litter hutch carrier ramp cushion fountain whisker tunnel",
    "Games": "puzzle dice chessboard console joystick cards domino jigsaw controller figurine "
    "boardgame arcade token dartboard headset quiz marble spinner checkers rulebook",
}
"""The nouns of each known domain."""
MARKER_FILE = "simulated.json"
"""The file in a data root that records its simulation; written last, so it means complete."""
SECONDS_PER_HOUR = 3600
START_TIMESTAMP = 1_577_836_800
"""Start of the simulated time, 1 January 2020 UTC [Unix seconds]."""
TIE_PROBABILITY = 0.05
"""Probability that a purchase has the same timestamp as the shopper's previous one."""
MIN_PURCHASES_PER_DOMAIN = 3
"""Minimum purchases of a shopper in one of their domains."""


@dataclass(frozen=True)
class Shelf:
    """The items of one domain.

    Attributes:
        item_ids: Ids [items].
        titles: Titles [items].
        attributes: Index of the value of each shared attribute [items, axis].
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    attributes: np.ndarray


@dataclass(frozen=True)
class Purchases:
    """The purchases of all shoppers; those of one shopper are in chronological order.

    Attributes:
        user: Index of the shopper [n].
        domain: Index of the domain in `SimulatedWorld.domains` [n].
        item: Index of the item on the domain's shelf [n].
        timestamp: Time of the purchase [n, Unix seconds].
        tastes: The shopper's favourites at that time, as indices of values [n, axis].
    """

    user: np.ndarray
    domain: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    tastes: np.ndarray


@dataclass(frozen=True)
class SimulatedWorld:
    """A simulated world.

    Attributes:
        domains: Names, in the requested order.
        shelves: The items of each domain.
        purchases: All purchases.
    """

    domains: tuple[str, ...]
    shelves: tuple[Shelf, ...]
    purchases: Purchases


def simulate_shoppers(
    domains: Sequence[str], settings: SimulateSettings, seed: int
) -> SimulatedWorld:
    """Simulates items and purchases; equal arguments give equal worlds."""
    rng = np.random.default_rng([seed, 0x5109])
    shelves = tuple(_draw_shelf(name, settings.items_per_domain, rng) for name in domains)
    visits = _draw_visits(len(domains), settings, rng)
    return SimulatedWorld(
        tuple(domains), shelves, _simulate_purchases(visits, shelves, settings, rng)
    )


def utility(tastes: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """Returns the utility of items to shoppers, without the noise of the logit.

    Args:
        tastes: Favourites of the shoppers [..., axis].
        attributes: Attributes of the items [..., axis], broadcast against `tastes`.

    Returns:
        Utilities [...].
    """
    return np.asarray((attributes == tastes) @ FAVOURITE_UTILITY)


def best_candidate(tastes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Returns the position of the most likely target, given the shoppers' tastes.

    No model can do better on average, because the target was drawn with odds exp(utility) and the
    negatives uniformly. The HR@1 of these answers is therefore an upper bound.

    Args:
        tastes: Favourites of the shoppers [n, axis].
        candidates: Attributes of the candidates [n, candidates, axis].

    Returns:
        Positions among the candidates [n].
    """
    return np.asarray(utility(tastes[:, None, :], candidates).argmax(axis=1))


def write_data_root(data: DataSettings, settings: SimulateSettings, seed: int) -> None:
    """Writes the simulated domains to `data.root`, unless they are there already.

    The domains are `data.domains` and then `data.held_out`. An interrupted write is completed by
    the next call, because equal arguments give equal files.

    Raises:
        DataError: No domain is named, or the root has other files or another simulation, which are
            never overwritten.
    """
    if _is_complete(data, settings, seed):
        return
    for name, content in _missing_files(data, settings, seed).items():
        storage.write_bytes(storage.join(data.only_root, name), content)
    marker = json.dumps(_arguments(data, settings, seed), indent=1) + "\n"
    storage.write_text(storage.join(data.only_root, MARKER_FILE), marker)


@contextmanager
def preview_data_root(
    data: DataSettings, settings: SimulateSettings, seed: int
) -> Iterator[DataSettings]:
    """Yields settings whose root holds the simulated domains as long as a `with` block runs.

    That is `data.root` where they are there already, and else a temporary folder. Arguments and
    errors are those of `write_data_root`.
    """
    if _is_complete(data, settings, seed):
        yield data
        return
    _missing_files(data, settings, seed)  # refuses what the root has of something else
    with tempfile.TemporaryDirectory() as folder:
        temporary = data.model_copy(update={"root": folder})
        write_data_root(temporary, settings, seed)
        yield temporary


def _arguments(data: DataSettings, settings: SimulateSettings, seed: int) -> dict[str, object]:
    """Returns the arguments of a simulation, as the marker records them."""
    domains = [*data.domains, *data.held_out]
    return {"seed": seed, "domains": domains, **settings.model_dump()}


def _is_complete(data: DataSettings, settings: SimulateSettings, seed: int) -> bool:
    """Returns whether the root holds this simulation; raises DataError if it holds another."""
    if not (data.domains or data.held_out):
        raise DataError(
            "data.domains and data.held_out are both empty; "
            "name the domains to simulate, for example Garden,Office"
        )
    marker_uri = storage.join(data.only_root, MARKER_FILE)
    if not storage.exists(marker_uri):
        return False
    existing = json.loads(storage.read_text(marker_uri))
    _check_same_simulation(data.only_root, existing, _arguments(data, settings, seed))
    return True


def _missing_files(data: DataSettings, settings: SimulateSettings, seed: int) -> dict[str, bytes]:
    """Returns the files of a simulation that the root lacks; DataError if it has other ones."""
    world = simulate_shoppers([*data.domains, *data.held_out], settings, seed)
    return {
        name: content
        for name, content in data_root_files(world).items()
        if not _is_there(storage.join(data.only_root, name), content)
    }


def data_root_files(world: SimulatedWorld) -> dict[str, bytes]:
    """Returns the parquet files of a simulated world: path below the data root to content."""
    files = {}
    purchases = world.purchases
    for index, (name, shelf) in enumerate(zip(world.domains, world.shelves, strict=True)):
        in_domain = purchases.domain == index
        ids = pa.array(shelf.item_ids)
        interactions = pa.table(
            {
                "user_id": pa.array([f"user-{u:06d}" for u in purchases.user[in_domain]]),
                "item_id": ids.take(pa.array(purchases.item[in_domain])),
                "timestamp": pa.array(purchases.timestamp[in_domain], pa.int64()),
            }
        )
        files[f"interactions/{name}.parquet"] = _to_parquet(interactions)
        files[f"items/{name}.parquet"] = _to_parquet(
            pa.table({"item_id": ids, "title": pa.array(shelf.titles)})
        )
    return files


def _draw_shelf(domain: str, size: int, rng: np.random.Generator) -> Shelf:
    """Draws items with distinct attributes, hence distinct titles."""
    nouns = _domain_nouns(domain)
    # Number all combinations of attribute values and noun, and draw without replacement.
    shape = (*(len(values) for values in ATTRIBUTE_VALUES), len(nouns))
    combinations = rng.choice(int(np.prod(shape)), size=size, replace=False)
    *attribute_columns, noun = np.unravel_index(combinations, shape)
    attributes = np.stack(attribute_columns, axis=1)
    titles = tuple(
        " ".join([*(ATTRIBUTE_VALUES[axis][value] for axis, value in enumerate(row)), nouns[n]])
        for row, n in zip(attributes.tolist(), noun.tolist(), strict=True)
    )
    return Shelf(tuple(f"{domain.lower()}-{i:05d}" for i in range(size)), titles, attributes)


def _domain_nouns(domain: str) -> tuple[str, ...]:
    """Returns the nouns of a domain; an unknown domain gets numbered articles."""
    if domain in NOUNS:
        return tuple(NOUNS[domain].split())
    return tuple(f"{domain.lower()}-article-{i}" for i in range(20))


def _draw_visits(
    num_domains: int, settings: SimulateSettings, rng: np.random.Generator
) -> np.ndarray:
    """Draws the domain of every purchase of every shopper, in random order.

    A shopper buys in one domain for certain and in each other one with a fixed probability, so that
    nobody buys nothing and the mean number of domains is `domains_per_user`.

    Returns:
        Indices of domains [users, purchases], filled up with -1.
    """
    probability = min(1.0, max(0.0, settings.domains_per_user - 1) / max(1, num_domains - 1))
    is_active = rng.random((settings.users, num_domains)) < probability
    is_active[np.arange(settings.users), rng.integers(num_domains, size=settings.users)] = True
    counts = is_active * np.minimum(
        MIN_PURCHASES_PER_DOMAIN
        + rng.poisson(settings.interactions_per_domain - MIN_PURCHASES_PER_DOMAIN, is_active.shape),
        settings.items_per_domain,
    )
    visits = np.full((settings.users, int(counts.sum(axis=1).max())), -1)
    for user, row in enumerate(counts):
        visits[user, : row.sum()] = rng.permutation(np.repeat(np.arange(num_domains), row))
    return visits


def _simulate_purchases(
    visits: np.ndarray,
    shelves: Sequence[Shelf],
    settings: SimulateSettings,
    rng: np.random.Generator,
) -> Purchases:
    """Draws the time and the item of every purchase.

    Args:
        visits: Domain of each purchase [users, purchases], from `_draw_visits`.
        shelves: The items of each domain.
        settings: Settings of the simulation.
        rng: Source of randomness.
    """
    users = len(visits)
    num_values = np.array([len(values) for values in ATTRIBUTE_VALUES])
    tastes = rng.integers(num_values, size=(users, len(ATTRIBUTE_VALUES)))
    clock = START_TIMESTAMP + rng.integers(365 * 24, size=users) * SECONDS_PER_HOUR
    attributes = np.stack([shelf.attributes for shelf in shelves])
    bought = np.zeros((users, *attributes.shape[:2]), dtype=bool)
    rows = []
    for next_domain in visits.T:  # the next purchase of all shoppers who have one left
        user = np.flatnonzero(next_domain >= 0)
        domain = next_domain[user]
        # Some shoppers change one favourite.
        drifting = user[rng.random(len(user)) < settings.drift]
        axis = rng.integers(len(ATTRIBUTE_VALUES), size=len(drifting))
        tastes[drifting, axis] = rng.integers(num_values[axis])
        # Time passes, 10 days on average, except where a purchase ties with the previous one.
        gap_hours = 1 + rng.geometric(1 / (10 * 24), size=len(user))
        is_tie = rng.random(len(user)) < TIE_PROBABILITY
        clock[user] += np.where(is_tie, 0, gap_hours * SECONDS_PER_HOUR)
        # The highest utility plus Gumbel noise is a draw from the logit.
        noisy_utility = utility(tastes[user, None, :], attributes[domain]) + rng.gumbel(
            size=(len(user), attributes.shape[1])
        )
        item = np.where(bought[user, domain], -np.inf, noisy_utility).argmax(axis=1)
        bought[user, domain, item] = True
        rows.append((user, domain, item, clock[user], tastes[user]))
    return Purchases(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _check_same_simulation(
    root: str, existing: Mapping[str, object], requested: Mapping[str, object]
) -> None:
    """Raises DataError naming the arguments in which two simulations differ."""
    differences = [
        f"{key} {existing.get(key)} (asked for: {requested.get(key)})"
        for key in sorted({*existing, *requested})
        if existing.get(key) != requested.get(key)
    ]
    if differences:
        raise DataError(
            f"{root}: holds another simulation: {', '.join(differences)}; "
            "set data.root to another place, or remove this one"
        )


def _is_there(uri: str, content: bytes) -> bool:
    """Returns whether a file exists with this content; raises DataError if it has another one."""
    if not storage.exists(uri):
        return False
    if storage.read_bytes(uri) != content:
        raise DataError(
            f"{uri}: was not written by this simulation and is not overwritten; "
            "set data.root to another place, or data.format to root"
        )
    return True


def _to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
