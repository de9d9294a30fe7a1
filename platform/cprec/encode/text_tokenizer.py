"""Tokenises plain text: whatever a text says, it becomes text, never a control token. Pure.

A tokenizer turns the text `</s>` into the token that ends a text. In a title, or in a window of
plain text, it is text like any other (docs/decisions/016-text-and-tokens.md).
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

from cluster.errors import DataError, RecipeError

_PROBE = "Acme steel lamp"
"""A text without anything special, to see what a tokenizer puts around a text."""
_WORDS = re.compile(r"(?:[^\W_]|[\s▁'’-])+")
"""Added tokens that are ordinary text: words that enlarge a vocabulary, and runs of spaces."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""Token of a single byte, of which characters outside the vocabulary are made."""


class Tokenizer(Protocol):
    """The part of `transformers.PreTrainedTokenizerBase` that encoding uses.

    A protocol, so that read tasks that need no tokenizer do not import transformers. A fast
    tokenizer also has `backend_tokenizer`, a `tokenizers.Tokenizer`.
    """

    eos_token_id: Any

    def __hash__(self) -> int:
        """Returns a hash, so that what is made of a tokenizer can be kept for it."""

    def __call__(self, text: Any, **options: Any) -> Any:
        """Returns a mapping whose `input_ids` are the token ids of a text, or of each of a list."""


class TextTokenizer:
    """Tokenises plain text as a base's tokenizer does, but without control tokens.

    Attributes:
        prefix_ids: Token ids with which the base's tokenizer begins every text; often empty or
            the begin token alone.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Copies a fast tokenizer without its control tokens, or keeps a slow one.

        Args:
            tokenizer: Tokenizer of the base model; it is not changed.

        Raises:
            RecipeError: The tokenizer changes the tokens of a text when it adds its own.
        """
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = None if backend is None else _without_control_tokens(backend, tokenizer)
        self.prefix_ids = _prefix_ids(tokenizer)

    def require_fast(self) -> Any:
        """Returns the `tokenizers.Tokenizer`, which tells where a token comes from in a text.

        Raises:
            RecipeError: The tokenizer is a slow one, which does not.
        """
        if self._backend is None:
            raise RecipeError(
                "model.base: its tokenizer does not tell where a token comes from in the text "
                "(no fast tokenizer); use finetune.hybrid false"
            )
        return self._backend

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text.

        Raises:
            DataError: The tokenizer is a slow one, and makes a control token of a text.
        """
        if self._backend is not None:
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        return self._encode_slowly(texts)

    def encode_parts(self, text: str, ends: Sequence[int]) -> list[list[int]]:
        """Encodes a text as a whole, then cuts its tokens at given characters.

        A token that reaches beyond an end is replaced by the tokens of its two parts. Where it has
        no such parts, it belongs to the part before the end.

        Args:
            text: The text.
            ends: Indices of characters, in ascending order, before which the text is cut.

        Returns:
            Token ids of each part; one part more than there are ends.

        Raises:
            RecipeError: The tokenizer is a slow one.
        """
        encoding = self.require_fast().encode(text, add_special_tokens=False)
        parts: list[list[int]] = [[]]
        for token, name, (start, stop) in zip(
            encoding.ids, encoding.tokens, encoding.offsets, strict=True
        ):
            # A character may have several tokens, all of which begin where it begins.
            while len(parts) <= len(ends) and start >= ends[len(parts) - 1]:
                parts.append([])
            end = ends[len(parts) - 1] if len(parts) <= len(ends) else stop
            if stop > end and (halves := self._split_token(name, text[end:stop])) is not None:
                parts[-1] += halves[0]
                parts.append(halves[1])
            else:
                parts[-1].append(token)
        return [*parts, *([] for _ in range(len(ends) + 1 - len(parts)))]

    def _split_token(self, name: str, tail: str) -> tuple[list[int], list[int]] | None:
        """Returns the tokens of a token's text before and from its tail on; None if it has none.

        Args:
            name: The token, in the alphabet of the vocabulary.
            tail: The text that the second tokens are to stand for.
        """
        head = name.removesuffix(tail)
        if head in ("", name):
            return None
        model = self.require_fast().model
        first, second = (model.tokenize(part) for part in (head, tail))
        if "".join(token.value for token in (*first, *second)) != name:
            return None
        return [token.id for token in first], [token.id for token in second]

    def _encode_slowly(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts with a slow tokenizer, whose control tokens cannot be taken out."""
        options = {"add_special_tokens": False, "split_special_tokens": True}
        encoded = [list(self._tokenizer(text, **options)["input_ids"]) for text in texts]
        unknown = getattr(self._tokenizer, "unk_token_id", None)
        control = {*getattr(self._tokenizer, "all_special_ids", ())} - {unknown}
        for text, ids in zip(texts, encoded, strict=True):
            if not control.isdisjoint(ids):
                raise DataError(
                    f"the tokenizer of the base makes a control token of the text {text[:80]!r}, "
                    "and is a slow one, which cannot be kept from it; take the text out, or use a "
                    "base with a fast tokenizer"
                )
        return encoded


@lru_cache(maxsize=4)
def text_tokenizer(tokenizer: Tokenizer) -> TextTokenizer:
    """Returns the tokenizer of plain text that belongs to a tokenizer; made once for each."""
    return TextTokenizer(tokenizer)


def _without_control_tokens(backend: Any, tokenizer: Tokenizer) -> Any:
    """Copies a `tokenizers.Tokenizer` so that no text becomes a control token.

    They keep their ids, but no text leads there: an added token that is special is not looked for,
    and the vocabulary of the model holds them under names that are no text. Without that, a
    Unigram model or WordPiece would find `</s>` as a word.

    Args:
        backend: The tokenizer to copy.
        tokenizer: The tokenizer that it belongs to, which may know further special tokens.
    """
    from tokenizers import Tokenizer as Backend  # late: read tasks need no tokenizer

    spec = json.loads(backend.to_str())
    added_tokens, model = spec["added_tokens"], spec["model"]
    control = {*getattr(tokenizer, "all_special_tokens", ())} | {
        token["content"]
        for token in added_tokens
        if token["special"] or not _is_ordinary_text(token["content"])
    }
    pieces = {piece for piece, _ in _vocabulary(model)}
    # A character or a byte of the vocabulary has no other tokens that it could become.
    names = {
        content: f"\uffff{number}\uffff"  # U+FFFF is no character
        for number, content in enumerate(sorted(control))
        if not (content in pieces and (len(content) == 1 or _BYTE.fullmatch(content)))
    }
    for token in added_tokens:
        token["special"] = token["content"] in control
        token["content"] = names.get(token["content"], token["content"])
    vocabulary = [(names.get(piece, piece), value) for piece, value in _vocabulary(model)]
    model["vocab"] = dict(vocabulary) if isinstance(model["vocab"], dict) else vocabulary
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model["type"] == "BPE":
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if names.keys().isdisjoint((left, right, left + right))
        ]
        model["dropout"] = None  # equal texts have equal tokens
    # What is put around a text, cut from it or added to it is not this tokenizer's concern.
    spec |= {"post_processor": None, "truncation": None, "padding": None}
    copy = Backend.from_str(json.dumps(spec))
    copy.encode_special_tokens = True
    return copy


def _vocabulary(model: dict[str, Any]) -> Iterable[tuple[str, float]]:
    """Returns each piece of a model's vocabulary with its id, or in a Unigram model its score."""
    vocabulary = model["vocab"]
    return vocabulary.items() if isinstance(vocabulary, dict) else vocabulary


def _is_ordinary_text(content: str) -> bool:
    """Returns whether an added token that is not special stands for ordinary text.

    Words and white space do. Brackets, bars and the like, as in `<think>`, are for control.
    """
    return bool(_WORDS.fullmatch(content) or _BYTE.fullmatch(content))


def _prefix_ids(tokenizer: Tokenizer) -> list[int]:
    """Returns the token ids that a tokenizer puts before every text.

    Raises:
        RecipeError: The text has other tokens when the tokenizer adds its own.
    """
    bare = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(_PROBE, add_special_tokens=True)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    raise RecipeError(
        f"model.base: its tokenizer makes {whole} of the text {_PROBE!r} and {bare} without its "
        "special tokens, so that what it puts before a text is unknown; use another base"
    )
