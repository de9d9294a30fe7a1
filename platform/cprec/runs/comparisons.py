"""Comparisons of models that a run keeps: every one, by its name and its time.

    <run>/evaluation/<domain>/comparisons/<name>/<time>.json

The name says which models were compared, so that a comparison made again stands beside the earlier
ones. Earlier releases kept the last comparison of each mode in <domain>/comparison.json or
<domain>/comparison-<mode>.json, which are still read.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cluster.storage import exists, join, list_names, read_bytes, sha256, write_text
from cprec.runs.record_files import damaged_error, parse_json
from cprec.runs.records import EVALUATION_FOLDER

COMPARISONS_FOLDER = "comparisons"
EARLIER_FILE = re.compile(r"comparison(-[a-z]+)?\.json")
"""File of an earlier release: the last comparison of a mode."""
TIME_FORMAT = "%Y%m%dT%H%M%S.%fZ"
MAX_NAME_LENGTH = 80


def comparison_name(models: Sequence[str], mode: str, days: str = "") -> str:
    """Returns the name of a comparison, safe in URIs: its models in order, the mode and the days.

    Args:
        models: Names under which the models were asked for.
        mode: `score`, `generate` or `constrained`; `score` is not named.
        days: Days whose purchases were scored, in words; empty where all were.
    """
    words = [*models, *([] if mode == "score" else [mode]), *([days] if days else [])]
    name = "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", word) for word in words)
    if name == "_".join(words) and len(name) <= MAX_NAME_LENGTH:
        return name
    # Two names that are shortened to the same text must stay apart.
    return f"{name[:MAX_NAME_LENGTH]}-{sha256(json.dumps(words).encode())[:8]}"


def write_comparison(run_uri: str, domain: str, comparison: Mapping[str, Any]) -> str:
    """Writes a comparison beside all earlier ones, and returns where.

    Args:
        run_uri: Folder of the run.
        domain: Domain of the samples.
        comparison: Its content, `name` and `time` included.
    """
    folder = join(run_uri, EVALUATION_FOLDER, domain, COMPARISONS_FOLDER, comparison["name"])
    uri = join(folder, f"{datetime.fromtimestamp(comparison['time'], UTC):{TIME_FORMAT}}.json")
    write_text(uri, json.dumps(comparison, indent=2, allow_nan=False))
    return uri


def read_comparisons(run_uri: str) -> list[dict[str, Any]]:
    """Reads all comparisons that a run has stored, the oldest first.

    Those of earlier releases have no time: it is 0.
    """
    evaluation = join(run_uri, EVALUATION_FOLDER)
    found = [
        comparison
        for domain in list_names(evaluation)
        for comparison in _read_domain(join(evaluation, domain))
    ]
    return sorted(found, key=lambda comparison: float(comparison["time"]))


def newest_by_name(comparisons: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the newest comparison of each domain, split and name, the newest last.

    Args:
        comparisons: Comparisons, the oldest first.
    """
    newest = {(c["domain"], c.get("split"), c["name"]): c for c in comparisons}
    return sorted(newest.values(), key=lambda comparison: float(comparison["time"]))


def _read_domain(folder: str) -> Iterator[dict[str, Any]]:
    """Yields the comparisons on one domain."""
    for file in list_names(folder):
        if EARLIER_FILE.fullmatch(file):
            yield _read(join(folder, file))
    comparisons = join(folder, COMPARISONS_FOLDER)
    for name in list_names(comparisons) if exists(comparisons) else ():
        for file in list_names(join(comparisons, name)):
            if file.endswith(".json"):
                yield _read(join(comparisons, name, file))


def _read(uri: str) -> dict[str, Any]:
    """Reads one comparison.

    Raises:
        RunError: The file holds something else.
    """
    try:
        comparison = _with_name(parse_json(read_bytes(uri)))
        float(comparison["time"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise damaged_error(uri, "comparison") from None
    return comparison


def _with_name(comparison: dict[str, Any]) -> dict[str, Any]:
    """Returns a comparison of an earlier release with what it did not say of itself."""
    rows = comparison["rows"]
    mode = next(
        (row["metrics"]["mode"] for row in rows if "mode" in row.get("metrics", {})), "score"
    )
    name = comparison_name([row["name"] for row in rows], mode)
    return {"name": name, "time": 0.0, "mode": mode, "measure": "HR@1", "days": "", **comparison}
