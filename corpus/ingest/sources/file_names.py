"""Says by its name what a file holds, and how it is compressed."""

from collections.abc import Sequence

PARQUET = ".parquet"
CSV = ".csv"
RECBOLE = (".inter", ".item")
"""Suffixes of RecBole's text, in whose header a type follows each name: user_id:token."""
TAB_SEPARATED = (".tsv", *RECBOLE)
"""Suffixes of text with a header and tabs between fields."""
JSON_LINES = (".json", ".jsonl", ".ndjson")
"""Suffixes of text with a JSON object per line."""
DAT = ".dat"
"""Suffix of MovieLens's text with double colons between fields."""
COMPRESSIONS = (".gz", ".bz2", ".zst")
"""Suffixes of compressed text, behind the suffix of its content."""
ROW_PER_LINE = (*JSON_LINES, DAT)
"""Suffixes of text that can be read from any line on, because each line is a row."""


def with_compressions(suffixes: Sequence[str]) -> tuple[str, ...]:
    """Returns suffixes of text, followed by the same ones of compressed text."""
    return (
        *suffixes,
        *(suffix + compression for suffix in suffixes for compression in COMPRESSIONS),
    )


def compression(file: str) -> str:
    """Returns the suffix of a file's compression; empty without one."""
    return next((suffix for suffix in COMPRESSIONS if file.endswith(suffix)), "")


def is_kind(file: str, *suffixes: str) -> bool:
    """Tests whether a file's content has one of some suffixes, compressed or not."""
    return file.removesuffix(compression(file)).endswith(suffixes)


def describe(suffixes: Sequence[str]) -> str:
    """Returns suffixes as an error message lists them, without those of compressed text."""
    plain = [suffix for suffix in suffixes if not compression(suffix)]
    return f"{', '.join(plain)}, text also with {', '.join(COMPRESSIONS)}"
