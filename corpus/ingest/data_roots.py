"""The data roots of a recipe: which one has a domain, and which domains they have."""

from collections.abc import Iterator, Sequence

from cluster import storage
from cluster.errors import DataError
from corpus.ingest.sources import layout
from corpus.settings import DataRoot, DataSettings


def each_root(data: DataSettings) -> list[DataSettings]:
    """Returns the settings of each data root, as if it were the only one.

    Raises:
        DataError: There are several, of which one is missing, or is the same as another or below
            it.
    """
    if isinstance(data.root, str):
        return [data]
    _check_apart([storage.absolute_uri(root.path) for root in data.roots])
    settings = [_of_root(data, root) for root in data.roots]
    for single in settings:
        layout.require_root(single)
    return settings


def at_root(data: DataSettings, domain: str) -> DataSettings:
    """Returns the settings of the only data root that holds a domain.

    Raises:
        DataError: None or several of them hold it, or as for `each_root`.
    """
    if isinstance(data.root, str):
        return data
    candidates = [
        single
        for single, root in zip(each_root(data), data.roots, strict=True)
        if root.domains is None or domain in root.domains
    ]
    holders = [single for single in candidates if layout.has_interactions(single, domain)]
    if len(holders) == 1:
        return holders[0]
    if holders:
        raise DataError(
            f"{domain}: several data roots have it: {_paths(holders)}; keep one, or say with "
            "`domains` which ones each is read for, as in {path: ..., domains: [...]}"
        )
    if len(candidates) == 1:
        return candidates[0]  # whose reader says which file it lacks
    raise DataError(
        f"{domain}: no data root has it ({_paths(each_root(data))}); correct data.domains, "
        "data.held_out, or the format of a root"
    )


def split_by_root(
    data: DataSettings, domains: Sequence[str]
) -> list[tuple[DataSettings, list[str]]]:
    """Returns the settings of each data root that holds some domains, with these domains."""
    found: dict[str, tuple[DataSettings, list[str]]] = {}
    for domain in domains:
        single = at_root(data, domain)
        found.setdefault(single.only_root, (single, []))[1].append(domain)
    return list(found.values())


def _of_root(data: DataSettings, root: DataRoot) -> DataSettings:
    """Returns settings of one data root, with what it says instead of what `data` says."""
    own = {
        key: value
        for key in ("format", "columns", "time_unit", "platform")
        if (value := getattr(root, key)) is not None
    }
    return data.model_copy(update={"root": root.path, **own})


def _check_apart(uris: Sequence[str]) -> None:
    """Raises DataError if a data root is another one, or below it."""
    for position, uri in enumerate(uris):
        for other in (*uris[:position], *uris[position + 1 :]):
            if f"{uri}/".startswith(f"{other}/"):
                raise DataError(
                    f"data.root: {uri} is {'there twice' if uri == other else f'below {other}'}; "
                    "give data roots that are apart"
                )


def _paths(settings: Sequence[DataSettings]) -> str:
    return ", ".join(single.root_paths for single in settings)


def find_domains(data: DataSettings) -> list[str]:
    """Returns the domains of the data roots that have interactions and items, sorted.

    Those that the settings name are among them where they are simulated, since that needs no file.
    A root whose files hold the only domain has those that the settings name.
    """
    found = {name for single in each_root(data) for name in _iter_usable(single)}
    if data.format == "simulated":
        found |= {*data.domains, *data.held_out}
    return sorted(found)


def _iter_usable(data: DataSettings) -> Iterator[str]:
    stems = layout.from_settings(data).interaction_stems
    candidates = {*data.domains, *data.held_out}
    for stem in stems:
        if "{}" in stem:
            candidates.update(_iter_candidates(data, stem))
    for name in candidates:
        try:
            layout.find_files(data, name)
        except DataError:
            continue
        yield name


def _iter_candidates(data: DataSettings, stem: str) -> Iterator[str]:
    """Yields what {} may stand for in a stem, by the names of files and folders."""
    folder, _, last = stem.rpartition("/")
    if "{}" in folder:  # a folder for each domain
        yield from storage.list_names(data.only_root)
        return
    before, _, after = last.partition("{}")
    suffixes = sorted(layout.from_settings(data).suffixes, key=len, reverse=True)
    for name in storage.list_names(
        storage.join(data.only_root, folder) if folder else data.only_root
    ):
        bare = next((name.removesuffix(s) for s in suffixes if name.endswith(s)), name)
        if bare.startswith(before) and bare.endswith(after):
            yield bare[len(before) : len(bare) - len(after)]
