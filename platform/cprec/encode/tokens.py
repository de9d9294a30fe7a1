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
class Tokens:
    """One sample as tokens. ids: [T] int32; answer: position of the first supervised token; dropped: titles of history cut to fit."""

    ids: np.ndarray
    answer: int
    dropped: int


def begin_of(tokenizer: Tokenizer) -> list[int]:
    """The token with which a tokenizer opens a text, if it has one."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


class Encoder:
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
        self.begin = begin_of(tokenizer)
        self.end = int(tokenizer.eos_token_id)
        self._space = self._joint()

    def prompt(
        self, history: Sequence[str], candidates: Sequence[str], room: int
    ) -> tuple[list[int], int]:
        """Token ids of the prompt, and how many of the oldest titles were dropped so that `room` more tokens fit.

        Raises DataError when the candidates alone do not fit: they are never cut (contract of the sample).
        """
        for dropped in range(len(history) + 1):
            ids = self.begin + self.encode(prompt.render(history[dropped:], candidates))
            if len(ids) + room <= self._max_tokens:
                return ids, dropped
        raise DataError(
            f"a prompt of {len(candidates)} candidates and no history takes {len(ids)} tokens and its answer {room}; "
            f"model.max_tokens is {self._max_tokens}: raise it or shorten the titles"
        )

    def answer(self, title: str) -> list[int]:
        """Token ids of an answer, its end token included."""
        return [*self.encode_after_space(title), self.end]

    def sample(self, history: Sequence[str], candidates: Sequence[str], target: int) -> Tokens:
        """Tokens of a training sample. target: position of the true item in candidates."""
        answer = self.answer(candidates[target])
        ids, dropped = self.prompt(history, candidates, room=len(answer))
        return Tokens(np.array(ids + answer, dtype=np.int32), answer=len(ids), dropped=dropped)

    def encode(self, text: str) -> list[int]:
        """Token ids of the start of a text, without special tokens."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_after_space(self, text: str) -> list[int]:
        """Token ids of a piece of text that a space precedes; the space is theirs."""
        return self.encode(self._space + text)

    def encode_all_after_space(self, texts: Sequence[str]) -> list[list[int]]:
        """The same of many pieces at once."""
        found: list[list[int]] = (
            self._tokenizer([self._space + text for text in texts], add_special_tokens=False)[
                "input_ids"
            ]
            if texts
            else []
        )
        return found

    def _joint(self) -> str:
        """What a piece after a cut starts with: nothing where the tokenizer adds the space itself (Llama), else a space (byte-level BPE)."""
        left, right = prompt.CLOSING, "Acme steel lamp"
        whole = self.encode(f"{left} {right}")
        for space in ("", " "):
            if whole == self.encode(left) + self.encode(space + right):
                return space
        raise RecipeError(
            "model.base: its tokenizer merges across spaces, so that an answer cannot be told from its prompt; use another base"
        )
