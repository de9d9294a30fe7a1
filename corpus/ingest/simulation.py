"""Simulated shoppers: seeded purchase histories over several domains, with a known best answer.

A title names its item's attributes: brand, style, material, price level and noun. The first four are shared by all domains, nouns are a domain's own.
A shopper has one favourite value per shared attribute, in every domain the same, and buys by a multinomial logit over the items not bought yet:
P(item) ~ exp(sum of STRENGTH[a] over the attributes a that are the shopper's favourites). Favourites drift with time. So what is learned in one
domain carries over to another, and the best answer among a target and negatives drawn at random is known exactly: the highest utility.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import DataError
from corpus.settings import DataSettings, SimulateSettings

BRANDS = tuple(
    "Aldora Benvik Corvane Dunmere Elstow Fairlow Gantry Holvik Isenor Jarrow Kestrel Lunford "
    "Marlow Norvane Oakmere Pelham Quillon Ravenor Selwick Tarvane Umbrel Velmont Wexley Zorvik".split()
)
STYLES = tuple("classic modern rustic minimal vintage sporty elegant playful".split())
MATERIALS = tuple("oak steel cotton leather glass bamboo ceramic rubber".split())
PRICES = tuple("budget standard premium luxury".split())
ATTRIBUTE_VALUES = (BRANDS, STYLES, MATERIALS, PRICES)
FAVOURITE_UTILITY = np.array([8.0, 5.0, 5.0, 3.0])
"""Utility of a favourite brand, style, material and price level; the logit's own noise has standard deviation 1.28."""

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
    "Games": "puzzle dice chessboard console joystick cards domino jigsaw controller figurine boardgame "
    "arcade token dartboard headset quiz marble spinner checkers rulebook",
}
MARKER_FILE = "simulated.json"
SECONDS_PER_HOUR = 3600
START_TIMESTAMP = 1_577_836_800
"""1 January 2020, UTC: when the simulated time begins, in seconds."""
TIE_PROBABILITY = 0.05
"""Chance that a purchase shares its second with the shopper's purchase before it."""
MIN_PURCHASES_PER_DOMAIN = 3
"""Purchases of a shopper in one of their domains, at least."""


@dataclass(frozen=True)
class Shelf:
    """The items of one domain. item_ids, titles: [I]; attributes: [I, axis], the value of each shared attribute."""

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    attributes: np.ndarray


@dataclass(frozen=True)
class Purchases:
    """Purchases, each shopper's in the order in which they made them. Arrays of length N; tastes [N, axis]: the shopper's favourites at that moment.

    user, domain, item: indices of the shopper, of the domain in `Shoppers.domains` and of the item on its shelf; timestamp: Unix seconds.
    """

    user: np.ndarray
    domain: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    tastes: np.ndarray


@dataclass(frozen=True)
class SimulatedWorld:
    """A simulated world: domains in the order asked for, what is on their shelves, and who bought what."""

    domains: tuple[str, ...]
    shelves: tuple[Shelf, ...]
    purchases: Purchases


def simulate_shoppers(
    domains: Sequence[str], settings: SimulateSettings, seed: int
) -> SimulatedWorld:
    """Simulate. A pure function of its arguments."""
    rng = np.random.default_rng([seed, 0x5109])
    shelves = tuple(_draw_shelf(name, settings.items_per_domain, rng) for name in domains)
    visits = _draw_visits(len(domains), settings, rng)
    return SimulatedWorld(
        tuple(domains), shelves, _simulate_purchases(visits, shelves, settings, rng)
    )


def utility(tastes: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """What items are worth to shoppers. tastes: [..., axis]; attributes: [..., axis], broadcast against it; result: [...]."""
    return np.asarray((attributes == tastes) @ FAVOURITE_UTILITY)


def best_candidate(tastes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Position of the likeliest target for one who knows the tastes. tastes: [N, axis]; candidates: attributes [N, C, axis]; result: [N].

    Optimal under the simulation: the target was drawn with odds exp(utility), the negatives evenly. Its HR@1 is the ceiling of every model.
    """
    return np.asarray(utility(tastes[:, None, :], candidates).argmax(axis=1))


def write_data_root(data: DataSettings, settings: SimulateSettings, seed: int) -> None:
    """Make `data.root` hold the simulated domains (`data.domains`, then `data.held_out`); nothing happens where it does already.

    The root is complete once its marker is there, which is written last. A write that was cut short is completed by the next one: equal arguments
    give equal files. Raises DataError where the root holds other files or another simulation: they are never overwritten.
    """
    if not (data.domains or data.held_out):
        raise DataError(
            "data.domains and data.held_out are both empty; name the domains to simulate, for example Garden,Office"
        )
    made = {"seed": seed, "domains": [*data.domains, *data.held_out], **settings.model_dump()}
    marker = storage.join(data.root, MARKER_FILE)
    if storage.exists(marker):
        _check_same_simulation(data.root, json.loads(storage.read_text(marker)), made)
        return
    for name, content in data_root_files(
        simulate_shoppers(made["domains"], settings, seed)
    ).items():
        _write_if_absent(storage.join(data.root, name), content)
    storage.write_text(marker, json.dumps(made, indent=1) + "\n")


def data_root_files(world: SimulatedWorld) -> dict[str, bytes]:
    """The data root of a simulated world: relative path to content (parquet)."""
    found = {}
    purchases = world.purchases
    for index, (name, shelf) in enumerate(zip(world.domains, world.shelves, strict=True)):
        here = purchases.domain == index
        ids = pa.array(shelf.item_ids)
        interactions = pa.table(
            {
                "user_id": pa.array([f"user-{u:06d}" for u in purchases.user[here]]),
                "item_id": ids.take(pa.array(purchases.item[here])),
                "timestamp": pa.array(purchases.timestamp[here], pa.int64()),
            }
        )
        found[f"interactions/{name}.parquet"] = _to_parquet(interactions)
        found[f"items/{name}.parquet"] = _to_parquet(
            pa.table({"item_id": ids, "title": pa.array(shelf.titles)})
        )
    return found


def _draw_shelf(domain: str, size: int, rng: np.random.Generator) -> Shelf:
    """Items with distinct attributes, hence distinct titles."""
    nouns = _domain_nouns(domain)
    shape = (*(len(axis) for axis in ATTRIBUTE_VALUES), len(nouns))
    drawn = rng.choice(int(np.prod(shape)), size=size, replace=False)
    *attributes, noun = np.unravel_index(drawn, shape)
    shared = np.stack(attributes, axis=1)
    titles = tuple(
        " ".join([*(ATTRIBUTE_VALUES[axis][value] for axis, value in enumerate(row)), nouns[n]])
        for row, n in zip(shared.tolist(), noun.tolist(), strict=True)
    )
    return Shelf(tuple(f"{domain.lower()}-{i:05d}" for i in range(size)), titles, shared)


def _domain_nouns(domain: str) -> tuple[str, ...]:
    """A domain's own nouns; a domain without any of its own is stocked with numbered articles."""
    return (
        tuple(NOUNS[domain].split())
        if domain in NOUNS
        else tuple(f"{domain.lower()}-article-{i}" for i in range(20))
    )


def _draw_visits(
    num_domains: int, settings: SimulateSettings, rng: np.random.Generator
) -> np.ndarray:
    """[user, visit]: the domain of each shopper's next purchase, -1 once they are done. Domains alternate at random.

    One domain is certain and each other one drawn, so that every shopper buys somewhere and domains_per_user is the mean.
    """
    often = min(1.0, max(0.0, settings.domains_per_user - 1) / max(1, num_domains - 1))
    shops = rng.random((settings.users, num_domains)) < often
    shops[np.arange(settings.users), rng.integers(num_domains, size=settings.users)] = True
    counts = shops * np.minimum(
        MIN_PURCHASES_PER_DOMAIN
        + rng.poisson(settings.interactions_per_domain - MIN_PURCHASES_PER_DOMAIN, shops.shape),
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
    """Every shopper's purchases, one visit of all of them at a time."""
    users = len(visits)
    sizes = np.array([len(axis) for axis in ATTRIBUTE_VALUES])
    tastes = rng.integers(sizes, size=(users, len(ATTRIBUTE_VALUES)))
    clock = START_TIMESTAMP + rng.integers(365 * 24, size=users) * SECONDS_PER_HOUR
    attributes = np.stack([shelf.attributes for shelf in shelves])
    bought = np.zeros((users, *attributes.shape[:2]), dtype=bool)
    rows = []
    for domain in visits.T:
        here = np.flatnonzero(domain >= 0)
        drifting = here[rng.random(len(here)) < settings.drift]
        axis = rng.integers(len(ATTRIBUTE_VALUES), size=len(drifting))
        tastes[drifting, axis] = rng.integers(sizes[axis])
        gap = 1 + rng.geometric(1 / (10 * 24), size=len(here))
        clock[here] += np.where(rng.random(len(here)) < TIE_PROBABILITY, 0, gap * SECONDS_PER_HOUR)
        at = domain[here]
        worth = utility(tastes[here, None, :], attributes[at]) + rng.gumbel(
            size=(len(here), attributes.shape[1])
        )
        item = np.where(bought[here, at], -np.inf, worth).argmax(axis=1)
        bought[here, at, item] = True
        rows.append((here, at, item, clock[here], tastes[here]))
    return Purchases(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _check_same_simulation(
    root: str, existing: Mapping[str, object], requested: Mapping[str, object]
) -> None:
    other = [
        f"{key} {existing.get(key)} (asked for: {requested.get(key)})"
        for key in sorted({*existing, *requested})
        if existing.get(key) != requested.get(key)
    ]
    if other:
        raise DataError(
            f"{root}: holds another simulation: {', '.join(other)}; set data.root to another place, or remove this one"
        )


def _write_if_absent(uri: str, content: bytes) -> None:
    if storage.exists(uri):
        if storage.read_bytes(uri) != content:
            raise DataError(
                f"{uri}: was not written by this simulation and is not overwritten; set data.root to another place, or data.format to root"
            )
        return
    storage.write_bytes(uri, content)


def _to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
