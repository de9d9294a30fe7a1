"""The files of a base: which they are, whether they are still the same, and copies of remote ones.

A base is known by its content, never by its name alone (docs/decisions/015-identity-of-a-base.md).
The revision that a run keeps of it is

- of a hub id, the hash of the commit;
- of a directory and of an object store, `files:<a>.<b>`: digests of the tags of all files but the
  weights, and of those of the weights. A tag is the SHA-256 of a file, or its ETag and size.
"""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir

from cluster.console import print_line
from cluster.errors import RecipeError, RunError
from cluster.storage import (
    download_files,
    file_sha256,
    is_remote,
    list_content_tags,
    local_path,
    sha256,
)
from cprec.model.libraries import refused_input

WEIGHTS_SUFFIX = ".safetensors"
SUFFIXES = (WEIGHTS_SUFFIX, ".json", ".jinja", ".model", ".tiktoken", ".txt")
"""Last parts of the names of files that a base may be loaded from."""
CONFIG_FILE = "config.json"
CONTENT_PREFIX = "files:"
"""First part of a revision that is a digest of files."""
COPY_MANIFEST = ".cprec-copy.json"
"""File of a local copy, written last: SHA-256 by name of file."""
HASHING_THREADS = 8


@dataclass(frozen=True)
class BaseIdentity:
    """A base as it was found at one time.

    Attributes:
        base: Hub id, absolute directory or URI.
        revision: Hash of the commit, or digest of the files; None if neither can be known.
        files: Tag of each file of a directory or an object store, by name.
    """

    base: str
    revision: str | None
    files: Mapping[str, str] = field(default_factory=dict)


def identify(base: str, revision: str | None) -> BaseIdentity:
    """Finds out what is at the place of a base now.

    The weights of a directory are read whole, at about 1 GB/s and core. Those of an object store
    are not read.

    Args:
        base: Hub id, absolute directory or URI.
        revision: The recipe's revision of a hub id.

    Raises:
        RecipeError: There is no such base.
    """
    if is_remote(base):
        files = list_files(base)
    elif (directory := local_directory(base)) is not None:
        files = hash_files(directory)
    else:
        return BaseIdentity(base, _resolve_commit(base, revision))
    return BaseIdentity(base, content_revision(files), files)


def list_files(uri: str) -> dict[str, str]:
    """Returns the tag of every file of a base in an object store, by name.

    Raises:
        RecipeError: There is no base, or it may not be read.
    """
    try:
        tags = list_content_tags(uri)
    except PermissionError as error:
        raise RecipeError(f"model.base: {uri} may not be read: {error}") from None
    files = {name: tag for name, tag in tags.items() if _is_model_file(name)}
    if CONFIG_FILE not in files:
        raise RecipeError(f"model.base: no {CONFIG_FILE} below {uri}")
    return files


def hash_files(directory: Path, with_weights: bool = True) -> dict[str, str]:
    """Returns the SHA-256 of every file of a base in a directory, by name."""
    names = [
        path.name
        for path in sorted(directory.iterdir())
        if path.is_file()
        and _is_model_file(path.name)
        and (with_weights or not path.name.endswith(WEIGHTS_SUFFIX))
    ]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        digests = pool.map(file_sha256, (str(directory / name) for name in names))
        return dict(zip(names, digests, strict=True))


def content_revision(files: Mapping[str, str]) -> str:
    """Returns the revision that stands for the tags of files."""
    return f"{CONTENT_PREFIX}{_digest(_without_weights(files))}.{_digest(_weights(files))}"


def local_directory(base: str) -> Path | None:
    """Returns the directory that a base names; None if it is a hub id.

    A name that may be either, such as `owner/name`, is a directory if there is one.

    Args:
        base: Hub id, path or `file://` URI; not the URI of an object store.

    Raises:
        RecipeError: It can only be a path, and no model is there.
    """
    looks_like_path = base.startswith((".", "/", "~", "file://")) or base.count("/") > 1
    path = local_path(base)
    if not path.is_dir() and not looks_like_path:
        return None
    if looks_like_path and not (path / CONFIG_FILE).is_file():
        reason = f"no {CONFIG_FILE} in {path}"
        if (path / "adapter_config.json").is_file():
            reason += ", which holds a PEFT adapter, not a model: merge it into its base first"
        raise RecipeError(
            f"model.base: {reason}; give a Hugging Face model directory, an s3:// URI or a hub id"
        )
    return path


@dataclass(frozen=True)
class LocalBase:
    """A base as libraries on this machine load it.

    Attributes:
        path: Directory, or hub id.
        hub_revision: Revision of a hub id.
        revision: What was found: as `BaseIdentity.revision`, but weights of a directory count only
            if they had to be compared.
    """

    path: str
    hub_revision: str | None
    revision: str | None


def ensure_local(base: str, revision: str | None, with_weights: bool) -> LocalBase:
    """Returns where this machine loads a base from, after a check that it is the one that is meant.

    What is in an object store is copied once per machine and content. Other bases are not copied.

    Args:
        base: Hub id, directory or URI.
        revision: Revision of a hub id, or digest of the files (`content_revision`). Without a
            digest, whatever is there now is taken.
        with_weights: Whether the weights are needed too.

    Raises:
        RecipeError: There is no such base.
        RunError: The files are not those of the digest.
    """
    expected = revision if revision and revision.startswith(CONTENT_PREFIX) else None
    if is_remote(base):
        files = list_files(base)
        _require_same(base, files, expected, with_weights=True)
        copy = _ensure_copy(base, files if with_weights else _without_weights(files))
        return LocalBase(str(copy), None, content_revision(files))
    directory = local_directory(base)
    if directory is None:
        return LocalBase(base, revision, revision)
    compares_weights = with_weights and expected is not None
    files = hash_files(directory, compares_weights)
    _require_same(base, files, expected, compares_weights)
    return LocalBase(str(directory), None, content_revision(files))


def describe_changes(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Names the files that differ between two identities of a base."""
    kinds = {
        "changed": [name for name in before if name in after and before[name] != after[name]],
        "gone": [name for name in before if name not in after],
        "new": [name for name in after if name not in before],
    }
    return "; ".join(
        f"{kind}: {', '.join(sorted(names))}" for kind, names in kinds.items() if names
    )


def _require_same(
    base: str, files: Mapping[str, str], revision: str | None, with_weights: bool
) -> None:
    """Checks that files have the digest that a run or a version was made with, if there is one."""
    if revision is None:
        return
    found, expected = content_revision(files), revision
    if not with_weights:
        found, expected = (text.partition(".")[0] for text in (found, expected))
    if found != expected:
        raise RunError(
            f"model.base: {base} is not the base that this was trained on: its files have the "
            f"digest {found.removeprefix(CONTENT_PREFIX)}, then it was "
            f"{expected.removeprefix(CONTENT_PREFIX)}; put the files back, or train on these under "
            "another --run"
        )


def _ensure_copy(uri: str, files: Mapping[str, str]) -> Path:
    """Returns a sound local copy of files below a URI; downloads it if there is none.

    Several processes may do so at once: the first one's copy is taken.
    """
    root = Path(gettempdir()) / f"cprec-base-{os.getuid()}"
    copy = root / _digest({**files, "": uri})
    if copy.exists() and (damage := _find_damage(copy)) is not None:
        print_line(f"the local copy of {uri} is fetched again: {damage}")
        damaged = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):  # another process may have found the damage too
            copy.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    if not copy.exists():
        partial = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}")
        try:
            download_files(uri, sorted(files), partial)
            if {name: tag for name, tag in list_files(uri).items() if name in files} != files:
                raise RecipeError(
                    f"model.base: {uri} changed while it was copied; start again when it is whole"
                )
            (partial / COPY_MANIFEST).write_text(json.dumps(hash_files(partial)))
            partial.rename(copy)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            # Renaming fails if another process of this machine was first: its copy is whole.
            if not (isinstance(error, OSError) and (copy / COPY_MANIFEST).exists()):
                raise
    return copy


def _find_damage(copy: Path) -> str | None:
    """Returns which files of a local copy are not as they were downloaded; None if all are."""
    try:
        expected = json.loads((copy / COPY_MANIFEST).read_text())
    except (OSError, ValueError):
        return f"it has no {COPY_MANIFEST}"
    return describe_changes(expected, hash_files(copy)) or None


def require_hub(hub_id: str, revision: str | None) -> None:
    """Checks that a hub id is in the local cache, or that the hub can be reached.

    Libraries try to connect six times, for half a minute; without a network, a mistyped name is
    told at the first try.

    Args:
        hub_id: The hub id.
        revision: Its revision.

    Raises:
        RecipeError: It is not cached, and nothing answers.
    """
    # Imported late: slow to load, and only hub ids need them.
    from httpx2 import ConnectError, ConnectTimeout, HTTPError
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    with refused_input(f"model.base: {hub_id}"):
        if isinstance(try_to_load_from_cache(hub_id, CONFIG_FILE, revision=revision), str):
            return
        try:
            get_hf_file_metadata(hf_hub_url(hub_id, CONFIG_FILE, revision=revision))
        except (ConnectError, ConnectTimeout, OfflineModeIsEnabled) as error:
            raise LocalEntryNotFoundError(hub_id) from error
        except (HfHubHTTPError, HTTPError):
            pass  # it answers: whoever reads the file asks again, and says what is wrong


def _resolve_commit(hub_id: str, revision: str | None) -> str | None:
    """Returns the hash of the commit that a hub id and a revision stand for now."""
    # Imported late: slow to load, and only hub ids need it.
    from transformers.utils.hub import cached_file, extract_commit_hash

    require_hub(hub_id, revision)
    with refused_input(f"model.base: {hub_id} cannot be found on the hub or in its local cache"):
        config = cached_file(hub_id, CONFIG_FILE, revision=revision)
    commit: str | None = extract_commit_hash(config, None)
    return commit or revision


def _is_model_file(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _weights(files: Mapping[str, str]) -> dict[str, str]:
    return {name: tag for name, tag in files.items() if name.endswith(WEIGHTS_SUFFIX)}


def _without_weights(files: Mapping[str, str]) -> dict[str, str]:
    return {name: tag for name, tag in files.items() if not name.endswith(WEIGHTS_SUFFIX)}


def _digest(files: Mapping[str, str]) -> str:
    return sha256(json.dumps(sorted(files.items())).encode())[:16]
