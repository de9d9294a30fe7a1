"""Secrets do not belong into recipes: finds them in text, and hides them in messages.

A recipe is stored with its run, in its report and in MLflow, where everybody can read it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.errors import RecipeError

_PATTERNS: Mapping[str, re.Pattern[str]] = {
    # user:password@ after ://, and not the port of host:5000/path@x
    "a password": re.compile(r"(?<=://)[^/@:\s\"']*:(?!\d+/)[^@\s\"']+(?=@)"),
    "a signature or token": re.compile(
        r"(?<=[?&;])(?:x-amz-(?:signature|credential|security-token)"
        r"|x-goog-(?:signature|credential)"
        r"|awsaccesskeyid|signature|sig|[a-z_-]*token|password|passwd|pwd|[a-z_-]*secret[a-z_-]*"
        r"|api[_-]?key)=[^&;\s\"']+",
        re.IGNORECASE,
    ),
    "a token": re.compile(
        r"(?<=\bbearer )\s*(?=\S*\d)[\w.~+/-]{8,}=*|(?<=\bauthorization: )\s*basic\s+[\w+/-]{8,}=*",
        re.IGNORECASE,
    ),
    "a key": re.compile(
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}"
        r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^\"']*"
    ),
    "a password or key by name": re.compile(
        r"\b(?:password|passwd|pwd|secret|aws_secret_access_key|api_?key"
        r"|(?:account|sharedaccess)key)\s*[=:]\s*[^\s,;\"'}]+",
        re.IGNORECASE,
    ),
}
"""What a secret looks like, by what it is called in messages."""

_ADVICE: Mapping[str, str] = {
    "mlflow.uri": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a server, PGPASSWORD "
    "or ~/.pgpass for PostgreSQL",
    "model.base": "HF_TOKEN for a hub, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a role for "
    "an object store",
}
_STORE_ADVICE = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role"


def redact(text: str) -> str:
    """Returns a text with `***` in place of each secret."""
    for pattern in _PATTERNS.values():
        text = pattern.sub("***", text)
    return text


def reject_secrets(values: Mapping[str, Any], origin: str) -> None:
    """Checks that no value holds a secret.

    Args:
        values: Plain values by dotted key.
        origin: Where they are from, for the message.

    Raises:
        RecipeError: One does; names the key, the kind of secret (never the secret), and where
            secrets are meant to be.
    """
    for key, value in values.items():
        for text in _iter_texts(value):
            kind = next((name for name, p in _PATTERNS.items() if p.search(text)), None)
            if kind is not None:
                raise RecipeError(
                    f"{origin}: {key} holds {kind} ({redact(text)}), and a recipe is stored where "
                    "others read it; leave it out, and set it in the environment: "
                    f"{_ADVICE.get(key, _STORE_ADVICE)}"
                )


def _iter_texts(value: Any) -> Iterator[str]:
    """Yields every text within plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, nested in value.items():
            yield from _iter_texts(key)
            yield from _iter_texts(nested)
    elif isinstance(value, list | tuple):
        for nested in value:
            yield from _iter_texts(nested)
