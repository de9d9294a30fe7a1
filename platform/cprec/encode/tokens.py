"""From titles to token ids. A sample's tokens are its prompt's, its answer's and one end token; the loss sees the answer and the end only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cluster.errors import DataError, RecipeError
from cprec.encode import prompt


class Tokenizer(Protocol):
    """What is needed of a tokenizer (transformers.PreTrainedTokenizerBase): reading tasks that need none do not import transformers."""

    bos_token_id: Any
    eos_token_id: Any

    def __call__(self, text: Any, *, add_special_tokens: bool) -> Any:
        """A mapping with `input_ids`: of one text, or a list of them for a list of texts."""


@dataclass(frozen=True)
class EncodedSample:
    """One sample as tokens. ids: [T] int32; answer: position of the first supervised token; dropped: titles of history cut to fit."""

    ids: np.ndarray
    answer_start: int
    dropped_titles: int


def bos_ids(tokenizer: Tokenizer) -> list[int]:
    """The token with which a tokenizer opens a text, if it has one."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


class TitleEncoder:
    """Titles to tokens with one tokenizer, never longer than max_tokens.

    Prompt and answer are tokenised apart and joined, which equals tokenising the whole because the cut is at a space; the constructor
    checks this and raises RecipeError for a tokenizer that merges across spaces.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        if tokenizer.eos_token_id is None:
            raise RecipeError(
                "model.base: its tokenizer has no end token (eos); an answer could not end"
            )
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self.bos_ids = bos_ids(tokenizer)
        self.eos_token_id = int(tokenizer.eos_token_id)
        self._space_prefix = self._find_space_prefix()

    def encode_prompt(
        self, history: Sequence[str], candidates: Sequence[str], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Token ids of the prompt, and how many of the oldest titles were dropped so that `room` more tokens fit.

        Raises DataError when the candidates alone do not fit: they are never cut (contract of the sample).
        """
        for dropped in range(len(history) + 1):
            ids = self.bos_ids + self.encode(prompt.render_prompt(history[dropped:], candidates))
            if len(ids) + reserved_tokens <= self._max_tokens:
                return ids, dropped
        raise DataError(
            f"a prompt of {len(candidates)} candidates and no history takes {len(ids)} tokens and its answer {reserved_tokens}; "
            f"model.max_tokens is {self._max_tokens}: raise it or shorten the titles"
        )

    def encode_answer(self, title: str) -> list[int]:
        """Token ids of an answer, its end token included."""
        return [*self.encode_after_space(title), self.eos_token_id]

    def encode_sample(
        self, history: Sequence[str], candidates: Sequence[str], target_position: int
    ) -> EncodedSample:
        """Tokens of a training sample. target: position of the true item in candidates."""
        answer = self.encode_answer(candidates[target_position])
        ids, dropped = self.encode_prompt(history, candidates, reserved_tokens=len(answer))
        return EncodedSample(
            np.array(ids + answer, dtype=np.int32), answer_start=len(ids), dropped_titles=dropped
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of the start of a text, without special tokens."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_after_space(self, text: str) -> list[int]:
        """Token ids of a piece of text that a space precedes; the space is theirs."""
        return self.encode(self._space_prefix + text)

    def encode_all_after_space(self, texts: Sequence[str]) -> list[list[int]]:
        """The same of many pieces at once."""
        found: list[list[int]] = (
            self._tokenizer(
                [self._space_prefix + text for text in texts], add_special_tokens=False
            )["input_ids"]
            if texts
            else []
        )
        return found

    def _find_space_prefix(self) -> str:
        """What a piece after a cut starts with: nothing where the tokenizer adds the space itself (Llama), else a space (byte-level BPE)."""
        left, right = prompt.CLOSING, "Acme steel lamp"
        whole = self.encode(f"{left} {right}")
        for space in ("", " "):
            if whole == self.encode(left) + self.encode(space + right):
                return space
        raise RecipeError(
            "model.base: its tokenizer merges across spaces, so that an answer cannot be told from its prompt; use another base"
        )
