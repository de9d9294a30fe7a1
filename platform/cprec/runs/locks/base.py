"""A run keeps the identity of its base: base.json below <storage>/<run>/.

A start on other weights or another tokenizer is refused, and the files that changed are named.
"""

import json

from cluster.console import Say
from cluster.errors import RunError
from cluster.storage import join
from cprec.model.base_files import CONTENT_PREFIX, BaseIdentity, describe_changes
from cprec.runs.checkpoint import list_checkpoints
from cprec.runs.control.fence import UNFENCED, RunWriter
from cprec.runs.record_files import read_record
from cprec.runs.records import BASE_FILE, BaseRecord


def lock_base(
    identity: BaseIdentity,
    run_uri: str,
    parent: str | None,
    say: Say,
    writer: RunWriter = UNFENCED,
) -> None:
    """Checks that a run goes on with its base, and writes base.json.

    Args:
        identity: The base as it is now.
        run_uri: Folder of the run.
        parent: Checkpoint that the run goes on from; None: it starts from the base.
        say: Takes lines for people.
        writer: What base.json is written through.

    Raises:
        RunError: The base is another one than at the first start, or than the parent's.
    """
    before = read_base(run_uri)
    trunk = parent.rsplit("/", 2)[0] if parent else None  # <run>/checkpoints/<name>
    for folder, known in ((run_uri, before), (trunk, read_base(trunk) if trunk else None)):
        if known is not None and _differs(known, identity):
            raise RunError(_refusal(known, identity, str(folder)))
    if before is None and list_checkpoints(run_uri):
        say(
            f"this run started before the files of its base were recorded; from now on it keeps "
            f"{identity.base} as it is today"
        )
    record = BaseRecord(base=identity.base, revision=identity.revision, files=dict(identity.files))
    if record != before:
        writer.replace(join(run_uri, BASE_FILE), json.dumps(record.to_json(), indent=1).encode())


def read_base(run_uri: str) -> BaseRecord | None:
    """Reads the base of a run; None for a run that has not started, or of an earlier release."""
    return read_record(join(run_uri, BASE_FILE), BaseRecord)


def _differs(known: BaseRecord, identity: BaseIdentity) -> bool:
    """Returns whether a base has certainly changed.

    A base may have moved. Then its files are compared if they have the same names and kinds of
    tags: a SHA-256 tells nothing of an ETag.
    """
    if known.revision is None or known.revision == identity.revision:
        return False
    if known.base == identity.base:
        return True
    return _is_local(known.files) and _is_local(identity.files)


def _is_local(files: object) -> bool:
    """Returns whether tags are those of a directory, which have no size behind them."""
    return isinstance(files, dict) and bool(files) and all(":" not in tag for tag in files.values())


def _refusal(known: BaseRecord, identity: BaseIdentity, folder: str) -> str:
    if known.files and identity.files:
        changes = describe_changes(known.files, identity.files)
    else:
        changes = f"revision {known.revision}, now {identity.revision}"
    moved = "" if known.base == identity.base else f" (then at {known.base})"
    how = (
        "put them back"
        if str(known.revision).startswith(CONTENT_PREFIX)
        else f"set model.revision to {known.revision}"
    )
    return (
        f"model.base: {identity.base}{moved} is not what {join(folder, BASE_FILE)} says the run "
        f"was trained on: {changes}; {how}, or start another --run"
    )
