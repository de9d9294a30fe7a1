"""Finds the data files in a folder of parts, as Spark, Hive and object stores leave it.

A name is a part, belongs to the tool that wrote the folder, or is refused: nothing is passed over
because it is unknown.
"""

import posixpath
from collections.abc import Sequence

from cluster import storage
from cluster.errors import DataError
from corpus.ingest.sources import file_names

_TABLE_LOGS = {"_delta_log": "Delta", ".hoodie": "Hudi"}
"""Folders by which a table of several versions is known, and the kind of table."""
_UNFINISHED = "_temporary"
"""The folder in which Spark and Hadoop keep what a job has not committed yet."""
_FINISHED = "_SUCCESS"
"""The file that Spark and Hadoop write when a job has committed everything."""
_HIDDEN_PREFIXES = (".", "_")
"""Beginnings of names that Spark, Hive, macOS and editors give to what is no data."""
_MARKER_SUFFIXES = (".crc", "_$folder$")
"""Ends of the names of checksums, and of the folder markers of object stores."""
_MARKERS = ("Thumbs.db", "desktop.ini")


def list_parts(uri: str, suffixes: Sequence[str]) -> list[str]:
    """Returns the data files in a folder and in its partition folders, sorted.

    Args:
        uri: URI of the folder.
        suffixes: Ends of the names of data files.

    Raises:
        DataError: There is none, or there is something that may be data but cannot be read.
    """
    parts = sorted(_list_parts(uri, suffixes))
    if not parts:
        raise DataError(
            f"{uri}: a folder without files that end in {file_names.describe(suffixes)}"
        )
    return parts


def _list_parts(uri: str, suffixes: Sequence[str]) -> list[str]:
    is_folder = _list_entries(uri)
    _refuse_unfinished(uri, is_folder)
    parts: list[str] = []
    for name, folder in is_folder.items():
        inside = storage.join(uri, name)
        if name.startswith(_HIDDEN_PREFIXES):
            continue
        if folder:
            if "=" not in name:
                raise DataError(
                    f"{inside}: a folder among data files, but no partition such as year=2017; "
                    "move its files up, or the folder elsewhere"
                )
            parts += _list_parts(inside, suffixes)
        elif name.endswith(tuple(suffixes)):
            parts.append(inside)
        elif not name.endswith(_MARKER_SUFFIXES) and name not in _MARKERS:
            raise DataError(
                f"{inside}: ends in none of {file_names.describe(suffixes)}; "
                "rename it, or move it out of the folder"
            )
    return parts


def _refuse_unfinished(uri: str, names: Sequence[str] | dict[str, bool]) -> None:
    """Checks that all files of a folder are of its newest state, and that none is still missing.

    Raises:
        DataError: They are not.
    """
    for log, kind in _TABLE_LOGS.items():
        if log in names:
            raise DataError(
                f"{uri}: a {kind} table, which keeps rows of earlier versions in its folder; "
                "write its newest version as plain parquet"
            )
    if (
        _UNFINISHED in names
        and _FINISHED not in names
        and _list_entries(storage.join(uri, _UNFINISHED))
    ):
        raise DataError(
            f"{uri}: holds {_UNFINISHED} and no {_FINISHED}, so the job that writes it has not "
            "finished; wait for it, or write the folder again"
        )


def _list_entries(uri: str) -> dict[str, bool]:
    """Returns the names directly in a folder, and whether each is a folder itself."""
    fs, path = storage.filesystem(uri)
    found = {}
    for entry in fs.ls(path, detail=True):
        inside = str(entry["name"]).rstrip("/")
        # An object store lists the marker of the folder itself among its content.
        if inside != path.rstrip("/"):
            found[posixpath.basename(inside)] = entry["type"] == "directory"
    return found
