"""Replaces an object of a store only while it is the one that was seen (a put with If-Match)."""

import errno

from cluster.storage import filesystem

_CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
"""Codes with which a store refuses such a put."""


def read_object_tag(uri: str) -> str | None:
    """Returns the ETag of an object, which is another one for other content; None without one."""
    fs, path = filesystem(uri)
    bucket, key, _ = fs.split_path(path)
    try:
        return str(fs.call_s3("head_object", Bucket=bucket, Key=key)["ETag"])
    except FileNotFoundError:
        return None


def replace_object(uri: str, content: bytes, tag: str | None) -> bool:
    """Writes an object if it is still the one with a tag; exactly one of several calls succeeds.

    Args:
        uri: URI of the object.
        content: Its new content, up to 5 GB.
        tag: Its ETag as it was read; None: there must be no such object.

    Returns:
        Whether it was written.
    """
    fs, path = filesystem(uri)
    bucket, key, _ = fs.split_path(path)
    condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
    try:
        fs.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)
    except FileNotFoundError:  # it was removed meanwhile
        if read_object_tag(uri) is None and tag is None:
            raise  # there is no such bucket
        return False
    except OSError as error:
        response = getattr(error.__cause__, "response", {})
        refused = response.get("Error", {}).get("Code") in _CHANGED
        if refused or error.errno == errno.EEXIST or isinstance(error, FileExistsError):
            return False
        raise
    return True
