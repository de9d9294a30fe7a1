"""Which files hold a domain, by `data.format`, and what their columns are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster import storage
from cluster.errors import DataError
from corpus.settings import DataSettings

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Ticks of a timestamp in a second."""

_TABLES = (".parquet", ".csv", ".csv.gz")
_LINES = (".json.gz", ".jsonl.gz", ".json", ".jsonl")
_AMAZON = {
    "user_id": "reviewerID",
    "item_id": "asin",
    "timestamp": "unixReviewTime",
    "rating": "overall",
    "title": "title",
}
_OWN = {name: name for name in ("user_id", "item_id", "timestamp", "rating", "title")}


@dataclass(frozen=True)
class Layout:
    """A way in which behaviours are kept.

    interactions, items: places of a domain's files below the data root, without suffix, {} being the domain; suffixes: tried in their order;
    columns: our names to theirs; unit: of time.
    """

    interactions: Sequence[str]
    items: Sequence[str]
    suffixes: Sequence[str] = _TABLES
    columns: Mapping[str, str] = field(default_factory=lambda: _OWN)
    unit: str = "s"


_ROOT = Layout(("interactions/{}", "{}/interactions"), ("items/{}", "{}/items"))
LAYOUTS: Mapping[str, Layout] = {
    "root": _ROOT,
    "simulated": _ROOT,
    "amazon2014": Layout(("reviews_{}", "reviews_{}_5"), ("meta_{}",), _LINES, _AMAZON),
    "amazon2018": Layout(("{}", "{}_5"), ("meta_{}",), _LINES, _AMAZON),
    "amazon2023": Layout(
        ("{}",),
        ("meta_{}",),
        _LINES,
        {
            "user_id": "user_id",
            "item_id": "parent_asin",
            "timestamp": "timestamp",
            "rating": "rating",
            "title": "title",
        },
        "ms",
    ),
    "movielens": Layout(
        ("ratings", "{}/ratings"),
        ("movies", "{}/movies"),
        (".dat", ".csv", ".csv.gz"),
        {**_OWN, "user_id": "userId", "item_id": "movieId"},
    ),
}


def of(data: DataSettings) -> Layout:
    """The layout of a recipe: that of its format, with the columns and the unit of time that it names instead."""
    layout = LAYOUTS[data.format]
    named = {
        ours: theirs for ours, theirs in data.columns.model_dump().items() if theirs is not None
    }
    return Layout(
        layout.interactions,
        layout.items,
        layout.suffixes,
        {**layout.columns, **named},
        data.time_unit or layout.unit,
    )


def name_of(data: DataSettings) -> str:
    """The format by which a domain's files are read: simulated behaviours lie as any others do."""
    return "root" if data.format == "simulated" else data.format


def told_sums(root: str) -> dict[str, str]:
    """Digests of files that SHA256SUMS in a data root tells, as `sha256sum` writes it; none without one. They guard pages without checksums."""
    place = storage.join(root, "SHA256SUMS")
    lines = storage.read_text(place).splitlines() if storage.exists(place) else []
    parted = [line.split(maxsplit=1) for line in lines if line.strip()]
    return {
        storage.join(root, name.removeprefix("*").removeprefix("./")): digest.lower()
        for digest, name in parted
    }


def files(data: DataSettings, domain: str) -> tuple[list[str], list[str]]:
    """The files of a domain: (interactions, items). Raises DataError naming what is missing, or there twice."""
    if not storage.exists(data.root):
        raise DataError(
            f"{data.root}: no such data root; set data.root to the folder with the behaviours, data.format to the way in which it keeps them"
        )
    layout = of(data)
    return _files(data, layout.interactions, layout.suffixes, domain), _files(
        data, layout.items, layout.suffixes, domain
    )


def _files(
    data: DataSettings, stems: Sequence[str], suffixes: Sequence[str], domain: str
) -> list[str]:
    places = [
        storage.join(data.root, stem.format(domain) + suffix)
        for stem in stems
        for suffix in suffixes
    ]
    found = [place for place in places if storage.exists(place)]
    if len(found) > 1:
        raise DataError(
            f"{found[0]}: {', '.join(found[1:])} is there as well; leave one of them in the data root"
        )
    if not found:
        folder = places[0].rpartition("/")[0]
        known = [name for name in storage.names(folder) if name.endswith(tuple(suffixes))]
        shown = (
            f"{', '.join(known[:20])}{', ...' if len(known) > 20 else ''}" or "no such file at all"
        )
        raise DataError(
            f"{places[0]}: no such file, nor with another suffix ({', '.join(suffixes)}); {folder} has {shown}; "
            "correct data.domains, data.held_out or data.format"
        )
    return _inside(found[0], suffixes)


def _inside(place: str, suffixes: Sequence[str]) -> list[str]:
    """The files of a place: itself, or those in it if it is a folder."""
    fs, path = storage.filesystem(place)
    if not fs.isdir(path):
        return [place]
    inside = [
        storage.join(place, name)
        for name in storage.names(place)
        if name.endswith(tuple(suffixes)) and not name.startswith((".", "_"))
    ]
    if not inside:
        raise DataError(f"{place}: a folder without files that end in {', '.join(suffixes)}")
    return inside
