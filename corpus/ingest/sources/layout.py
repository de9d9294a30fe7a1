"""Which files hold a domain, by `data.format`, and what their columns are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster import storage
from cluster.errors import DataError
from corpus.settings import DataSettings

TICKS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Ticks of a timestamp in a second."""

_TABLE_SUFFIXES = (".parquet", ".csv", ".csv.gz")
_JSON_LINES_SUFFIXES = (".json.gz", ".jsonl.gz", ".json", ".jsonl")
_AMAZON_COLUMNS = {
    "user_id": "reviewerID",
    "item_id": "asin",
    "timestamp": "unixReviewTime",
    "rating": "overall",
    "title": "title",
}
_DEFAULT_COLUMNS = {name: name for name in ("user_id", "item_id", "timestamp", "rating", "title")}


@dataclass(frozen=True)
class Layout:
    """A way in which behaviours are kept.

    interactions, items: places of a domain's files below the data root, without suffix, {} being the domain; suffixes: tried in their order;
    columns: our names to theirs; unit: of time.
    """

    interaction_stems: Sequence[str]
    item_stems: Sequence[str]
    suffixes: Sequence[str] = _TABLE_SUFFIXES
    columns: Mapping[str, str] = field(default_factory=lambda: _DEFAULT_COLUMNS)
    time_unit: str = "s"


_ROOT_LAYOUT = Layout(("interactions/{}", "{}/interactions"), ("items/{}", "{}/items"))
LAYOUTS: Mapping[str, Layout] = {
    "root": _ROOT_LAYOUT,
    "simulated": _ROOT_LAYOUT,
    "amazon2014": Layout(
        ("reviews_{}", "reviews_{}_5"), ("meta_{}",), _JSON_LINES_SUFFIXES, _AMAZON_COLUMNS
    ),
    "amazon2018": Layout(("{}", "{}_5"), ("meta_{}",), _JSON_LINES_SUFFIXES, _AMAZON_COLUMNS),
    "amazon2023": Layout(
        ("{}",),
        ("meta_{}",),
        _JSON_LINES_SUFFIXES,
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
        {**_DEFAULT_COLUMNS, "user_id": "userId", "item_id": "movieId"},
    ),
}


def from_settings(data: DataSettings) -> Layout:
    """The layout of a recipe: that of its format, with the columns and the unit of time that it names instead."""
    layout = LAYOUTS[data.format]
    named = {
        ours: theirs for ours, theirs in data.columns.model_dump().items() if theirs is not None
    }
    return Layout(
        layout.interaction_stems,
        layout.item_stems,
        layout.suffixes,
        {**layout.columns, **named},
        data.time_unit or layout.time_unit,
    )


def effective_format(data: DataSettings) -> str:
    """The format by which a domain's files are read: simulated behaviours lie as any others do."""
    return "root" if data.format == "simulated" else data.format


def read_sha256sums(data_root: str) -> dict[str, str]:
    """Digests of files that SHA256SUMS in a data root tells, as `sha256sum` writes it; none without one. They guard pages without checksums."""
    place = storage.join(data_root, "SHA256SUMS")
    lines = storage.read_text(place).splitlines() if storage.exists(place) else []
    parted = [line.split(maxsplit=1) for line in lines if line.strip()]
    return {
        storage.join(data_root, name.removeprefix("*").removeprefix("./")): digest.lower()
        for digest, name in parted
    }


def find_files(data: DataSettings, domain: str) -> tuple[list[str], list[str]]:
    """The files of a domain: (interactions, items). Raises DataError naming what is missing, or there twice."""
    if not storage.exists(data.root):
        raise DataError(
            f"{data.root}: no such data root; set data.root to the folder with the behaviours, data.format to the way in which it keeps them"
        )
    layout = from_settings(data)
    return _find_files(data, layout.interaction_stems, layout.suffixes, domain), _find_files(
        data, layout.item_stems, layout.suffixes, domain
    )


def _find_files(
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
        known = [name for name in storage.list_names(folder) if name.endswith(tuple(suffixes))]
        shown = (
            f"{', '.join(known[:20])}{', ...' if len(known) > 20 else ''}" or "no such file at all"
        )
        raise DataError(
            f"{places[0]}: no such file, nor with another suffix ({', '.join(suffixes)}); {folder} has {shown}; "
            "correct data.domains, data.held_out or data.format"
        )
    return _expand_folder(found[0], suffixes)


def _expand_folder(uri: str, suffixes: Sequence[str]) -> list[str]:
    """The files of a place: itself, or those in it if it is a folder."""
    fs, path = storage.filesystem(uri)
    if not fs.isdir(path):
        return [uri]
    inside = [
        storage.join(uri, name)
        for name in storage.list_names(uri)
        if name.endswith(tuple(suffixes)) and not name.startswith((".", "_"))
    ]
    if not inside:
        raise DataError(f"{uri}: a folder without files that end in {', '.join(suffixes)}")
    return inside
