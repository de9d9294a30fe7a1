"""Replaces an object of a store only while it is the one that was seen (a put with If-Match)."""

import errno
from typing import Any

from cluster.storage import filesystem

_CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
"""Codes with which a store refuses such a put."""


class StoredObject:
    """An object of a store that speaks S3's protocol."""

    def __init__(self, uri: str) -> None:
        self._fs, path = filesystem(uri)
        self._bucket, self._key, _ = self._fs.split_path(path)

    def read_tag(self) -> str | None:
        """Returns the ETag, which is another one for other content; None without an object."""
        try:
            return str(self._call("head_object")["ETag"])
        except FileNotFoundError:
            return None

    def replace(self, content: bytes, tag: str | None) -> bool:
        """Writes the object if it still has a tag; exactly one of several calls succeeds.

        Args:
            content: Its new content, up to 5 GB.
            tag: Its ETag as it was read; None: there must be no such object.

        Returns:
            Whether it was written.
        """
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            self._call("put_object", Body=content, **condition)
        except FileNotFoundError:  # it was removed meanwhile
            if self.read_tag() is None and tag is None:
                raise  # there is no such bucket
            return False
        except OSError as error:
            response = getattr(error.__cause__, "response", {})
            refused = response.get("Error", {}).get("Code") in _CHANGED
            if refused or error.errno == errno.EEXIST or isinstance(error, FileExistsError):
                return False
            raise
        return True

    def _call(self, operation: str, **arguments: Any) -> Any:
        """Sends one request of S3's protocol for the object."""
        return self._fs.call_s3(operation, Bucket=self._bucket, Key=self._key, **arguments)
