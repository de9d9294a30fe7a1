"""Facts about one machine, and whether the machines of a cluster fit together."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from cprec.workflows.doctor.findings import Finding

PACKAGES = (
    *("ray", "torch", "deepspeed", "transformers", "tokenizers", "peft", "safetensors"),
    *("numpy", "pyarrow", "deltalake", "pydantic"),
)
"""Packages that must be the same on all machines: results, pickles or files depend on them."""

SHARED_MEMORY = "/dev/shm"  # noqa: S108  only its size is asked for
"""Where Ray keeps objects; it falls back to the temporary folder, which is slow."""

GIB = 1 << 30
MIN_SHARED_BYTES = 2 * GIB
MIN_TEMPORARY_BYTES = GIB
AMPLE_TEMPORARY_BYTES = 10 * GIB

MAX_SKEW_S = 1.0
"""Difference of two clocks (seconds) above which times in trace and events are hard to read."""
REFUSED_SKEW_S = 300.0
"""Difference above which other services refuse requests: S3 does from 15 minutes on."""


@dataclass(frozen=True)
class Machine:
    """What one machine says of itself.

    Attributes:
        name: Its name, for people.
        versions: Version of Python and of each of PACKAGES; `none` where it is missing.
        temporary: Its folder for temporary files.
        temporary_free: Free bytes there.
        shared_total: Bytes of shared memory; None where there is none.
    """

    name: str
    versions: Mapping[str, str]
    temporary: str
    temporary_free: int
    shared_total: int | None


def describe_this_machine() -> Machine:
    """Returns the facts of the machine that this process runs on."""
    temporary = tempfile.gettempdir()
    shared = os.path.isdir(SHARED_MEMORY)
    return Machine(
        platform.node(),
        {"python": ".".join(platform.python_version_tuple()[:2])}
        | {package: _version(package) for package in PACKAGES},
        temporary,
        shutil.disk_usage(temporary).free,
        shutil.disk_usage(SHARED_MEMORY).total if shared else None,
    )


def judge_disks(topic: str, machines: Sequence[Machine]) -> Iterator[Finding]:
    """Yields what is to be said of temporary folders and shared memory; the smallest counts.

    Args:
        topic: First part of the findings' names.
        machines: The machines, one at least.
    """
    least = min(machines, key=lambda machine: machine.temporary_free)
    free = least.temporary_free
    yield Finding(
        f"{topic}: temporary files",
        "fail" if free < MIN_TEMPORARY_BYTES else "warn" if free < AMPLE_TEMPORARY_BYTES else "ok",
        f"{_gib(free)} free in {least.temporary} of {least.name}",
        f"{_gib(MIN_TEMPORARY_BYTES)}, and more than the base where that is on an object store",
        "make room, or set TMPDIR" if free < AMPLE_TEMPORARY_BYTES else "",
    )
    known = [machine for machine in machines if machine.shared_total is not None]
    if not known:
        return
    smallest = min(known, key=lambda machine: machine.shared_total or 0)
    total = smallest.shared_total or 0
    is_small = total < MIN_SHARED_BYTES
    yield Finding(
        f"{topic}: {SHARED_MEMORY}",
        "warn" if is_small else "ok",
        f"{_gib(total)} on {smallest.name}",
        f"{_gib(MIN_SHARED_BYTES)} or more",
        "docker run --shm-size, or an emptyDir of medium Memory on Kubernetes" if is_small else "",
    )


def judge_versions(driver: Machine, nodes: Sequence[Machine]) -> Finding:
    """Compares the packages of all nodes with those of the driver."""
    differences = [
        f"{name} is {found.versions.get(name, 'none')} on {found.name}, {expected} here"
        for found in nodes
        for name, expected in driver.versions.items()
        if found.versions.get(name, "none") != expected
    ]
    where = f"{len(nodes)} node{'s' * (len(nodes) != 1)}"
    return Finding(
        "ray: versions",
        "fail" if differences else "ok",
        _shorten(differences) or f"{len(driver.versions)} the same on {where}",
        "the same everywhere" if differences else "",
        "start all nodes from one image" if differences else "",
    )


def judge_clocks(skews: Mapping[str, float]) -> Finding:
    """Judges the difference of each node's clock to the driver's.

    Args:
        skews: Seconds by name of the node.
    """
    name, skew = max(skews.items(), key=lambda item: abs(item[1]))
    is_off = abs(skew) > MAX_SKEW_S
    return Finding(
        "ray: clocks",
        "fail" if abs(skew) > REFUSED_SKEW_S else "warn" if is_off else "ok",
        f"at most {abs(skew):.3f} s apart from here ({name})",
        f"{MAX_SKEW_S:g} s",
        "let chrony or another NTP client set the clock" if is_off else "",
    )


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "none"


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB"


def _shorten(parts: Sequence[str], most: int = 4) -> str:
    more = f"; and {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(parts[:most]) + more
