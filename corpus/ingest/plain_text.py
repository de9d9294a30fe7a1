"""Reads plain text: to replay in pre-training, and to measure what a model forgets."""

from cluster import storage
from cluster.errors import RecipeError


def read_plain_text(uri: str, recipe_key: str) -> str:
    """Reads a file of plain text.

    Args:
        uri: Path or `s3://` URI of the file.
        recipe_key: Key or option that named the file, for messages.

    Raises:
        RecipeError: The file is missing, is empty, or is not UTF-8.
    """
    content = storage.read_bytes_if_exists(uri)
    if content is None:
        raise RecipeError(f"{recipe_key}: nothing at {uri}; give a file of plain text")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{recipe_key}: {uri} is not UTF-8 ({error}); give a file of plain text"
        ) from None
    if not text.strip():
        raise RecipeError(f"{recipe_key}: {uri} holds no text; give a file of plain text")
    return text
