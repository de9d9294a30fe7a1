"""Finds the files of a domain for each `data.format`, and knows the names of their columns."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster import storage
from cluster.errors import DataError
from corpus.ingest import ninerec
from corpus.ingest.sources import file_names, folders
from corpus.settings import DataSettings

TICKS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""For each `data.time_unit`, its ticks in a second."""

_TABLE_SUFFIXES = (
    file_names.PARQUET,
    *file_names.with_compressions(
        (file_names.CSV, *file_names.TAB_SEPARATED, *file_names.JSON_LINES)
    ),
)
_JSON_LINES_SUFFIXES = tuple(
    dict.fromkeys((".json.gz", *file_names.with_compressions(file_names.JSON_LINES)))
)
_AMAZON_COLUMNS = {
    "user_id": "reviewerID",
    "item_id": "asin",
    "timestamp": "unixReviewTime",
    "rating": "overall",
    "title": "title",
}
_DEFAULT_COLUMNS = {name: name for name in ("user_id", "item_id", "timestamp", "rating", "title")}

_SUM = re.compile(
    r"(?P<escaped>\\?)"
    r"(?:(?P<digest>[0-9a-fA-F]{64})(?: [ *]|\s+)(?P<name>\S.*)"
    r"|SHA256 \((?P<tagged_name>.+)\) = (?P<tagged_digest>[0-9a-fA-F]{64}))"
)
"""A line of SHA256SUMS, as `sha256sum` and `sha256sum --tag` write it."""
_ESCAPED = re.compile(r"\\(.)")
"""A character in the name of a line that begins with a backslash."""


@dataclass(frozen=True)
class Layout:
    """How a format arranges the raw data of a domain.

    Attributes:
        interaction_stems: Where interactions may be: paths below the data root without their
            suffix, in which {} stands for the domain.
        item_stems: Where items may be, in the same form.
        suffixes: Suffixes that a file may have, compressed ones included; error messages name a
            file with the first.
        columns: Our column names to the format's.
        time_unit: Unit of integer times, a key of `TICKS_PER_SECOND`.
        needs_items: Whether there must be items; else those of the corpus may suffice.
    """

    interaction_stems: Sequence[str]
    item_stems: Sequence[str]
    suffixes: Sequence[str] = _TABLE_SUFFIXES
    columns: Mapping[str, str] = field(default_factory=lambda: _DEFAULT_COLUMNS)
    time_unit: str = "s"
    needs_items: bool = True


_ROOT_LAYOUT = Layout(("interactions/{}", "{}/interactions"), ("items/{}", "{}/items"))
LAYOUTS: Mapping[str, Layout] = {
    "root": _ROOT_LAYOUT,
    "simulated": _ROOT_LAYOUT,
    "feedback": Layout(("purchases/{}",), ("items/{}",), needs_items=False),
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
        file_names.with_compressions((file_names.DAT, file_names.CSV)),
        {**_DEFAULT_COLUMNS, "user_id": "userId", "item_id": "movieId"},
    ),
    "ninerec": Layout(
        ("{}_pair", "{}/{}_pair"),
        ("{}_item", "{}/{}_item"),
        (file_names.CSV,),
        {**_DEFAULT_COLUMNS, **ninerec.COLUMNS},
    ),
}
"""The layout of each `data.format`."""


def from_settings(data: DataSettings) -> Layout:
    """Returns the layout of `data.format`, with `data.columns` and `data.time_unit` applied."""
    layout = LAYOUTS[data.format]
    renamed = {
        ours: theirs for ours, theirs in data.columns.model_dump().items() if theirs is not None
    }
    return Layout(
        layout.interaction_stems,
        layout.item_stems,
        layout.suffixes,
        {**layout.columns, **renamed},
        data.time_unit or layout.time_unit,
        layout.needs_items,
    )


def effective_format(data: DataSettings) -> str:
    """Returns the format that files are read as: simulated data is stored in the format `root`."""
    return "root" if data.format == "simulated" else data.format


def read_sha256sums(data_root: str) -> dict[str, str]:
    """Reads the digests that the file SHA256SUMS in a data root lists.

    They protect parquet files whose pages have no checksums.

    Returns:
        URI of each listed file to its digest; empty without SHA256SUMS.

    Raises:
        DataError: A line has no digest of a file.
    """
    sums_uri = storage.join(data_root, "SHA256SUMS")
    content = storage.read_bytes(sums_uri) if storage.exists(sums_uri) else b""
    digests = {}
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n"), start=1):
        if not line.strip():
            continue
        if (match := _SUM.fullmatch(line.removesuffix("\r"))) is None:
            raise DataError(
                f"{sums_uri}, line {number}: {line[:80]!r} is no digest of a file; "
                "write it again with sha256sum, or remove it"
            )
        name = match["name"] or match["tagged_name"]
        if match["escaped"]:
            name = _ESCAPED.sub(lambda found: {"n": "\n", "r": "\r"}.get(found[1], found[1]), name)
        digest = match["digest"] or match["tagged_digest"]
        digests[storage.join(data_root, name.removeprefix("./"))] = digest.lower()
    return digests


def require_root(data: DataSettings) -> None:
    """Raises DataError if the data root is not there."""
    if not storage.exists(data.only_root):
        several = "; several are written as [a, b]" if "," in data.only_root else ""
        raise DataError(
            f"{data.only_root}: no such data root; set data.root to the folder with the raw data, "
            f"and data.format to how its files are laid out{several}"
        )


def has_interactions(data: DataSettings, domain: str) -> bool:
    """Returns whether the data root has a file of interactions of a domain."""
    layout = from_settings(data)
    return bool(_existing(data, layout.interaction_stems, layout.suffixes, domain))


def find_files(data: DataSettings, domain: str) -> tuple[list[str], list[str]]:
    """Finds the files of a domain.

    Returns:
        URIs of the files of interactions, and URIs of the files of items, of which feedback may
        have none.

    Raises:
        DataError: A file is missing, or could be either of two; the message names it.
    """
    require_root(data)
    layout = from_settings(data)
    return (
        _find_files(data, layout.interaction_stems, layout.suffixes, domain),
        _find_files(data, layout.item_stems, layout.suffixes, domain, required=layout.needs_items),
    )


def find_served_files(data: DataSettings, domain: str) -> list[str]:
    """Finds the files of the rankings that were served in a domain, of the format feedback.

    Raises:
        DataError: There are none.
    """
    return _find_files(data, ("served/{}",), (file_names.PARQUET,), domain)


def _find_files(
    data: DataSettings,
    stems: Sequence[str],
    suffixes: Sequence[str],
    domain: str,
    *,
    required: bool = True,
) -> list[str]:
    """Returns the files at the only existing combination of stem and suffix."""
    existing = _existing(data, stems, suffixes, domain)
    if len(existing) > 1:
        raise DataError(
            f"{existing[0]}: {', '.join(existing[1:])} exists as well; "
            "leave only one of them in the data root"
        )
    if not existing and not required:
        return []
    if not existing:
        expected = storage.join(data.only_root, stems[0].format(domain) + suffixes[0])
        folder = expected.rpartition("/")[0]
        shown = _shown_names(storage.list_names(folder), suffixes)
        raise DataError(
            f"{expected}: no such file, nor with another suffix "
            f"({file_names.describe(suffixes)}); {folder} has {shown}; "
            "correct data.domains, data.held_out or data.format"
        )
    fs, path = storage.filesystem(existing[0])
    return folders.list_parts(existing[0], suffixes) if fs.isdir(path) else existing


def _existing(
    data: DataSettings, stems: Sequence[str], suffixes: Sequence[str], domain: str
) -> list[str]:
    """Returns the URIs that exist of all combinations of stem and suffix."""
    candidates = [
        storage.join(data.only_root, stem.replace("{}", domain) + suffix)
        for stem in stems
        for suffix in suffixes
    ]
    names = {
        folder: storage.list_names(folder)
        for folder in dict.fromkeys(candidate.rpartition("/")[0] for candidate in candidates)
    }
    return [
        candidate
        for candidate in candidates
        if candidate.rpartition("/")[2] in names[candidate.rpartition("/")[0]]
    ]


def _shown_names(names: Sequence[str], suffixes: Sequence[str]) -> str:
    """Returns what to say that a folder has: the files with a suffix, else whatever is there."""
    shown = [name for name in names if name.endswith(tuple(suffixes))] or names
    return f"{', '.join(shown[:20])}{', ...' if len(shown) > 20 else ''}" or "no file at all"
