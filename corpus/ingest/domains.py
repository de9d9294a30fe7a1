"""Finds the domains that a data root has."""

from collections.abc import Iterator

from cluster.errors import DataError
from cluster.storage import join, list_names
from corpus.ingest import data_roots
from corpus.ingest.sources import layout
from corpus.settings import DataSettings


def find_domains(data: DataSettings) -> list[str]:
    """Returns the domains of the data roots that have interactions and items, sorted.

    Those that the settings name are among them where they are simulated, since that needs no file.
    A root whose files hold the only domain has those that the settings name.
    """
    found = {name for single in data_roots.each_root(data) for name in _iter_usable(single)}
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
        yield from list_names(data.only_root)
        return
    before, _, after = last.partition("{}")
    suffixes = sorted(layout.from_settings(data).suffixes, key=len, reverse=True)
    for name in list_names(join(data.only_root, folder) if folder else data.only_root):
        bare = next((name.removesuffix(s) for s in suffixes if name.endswith(s)), name)
        if bare.startswith(before) and bare.endswith(after):
            yield bare[len(before) : len(bare) - len(after)]
