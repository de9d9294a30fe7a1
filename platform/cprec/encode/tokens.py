"""Samples as token ids, encoded by calling the tokenizer on whole texts.

The tokens of a sample are its prompt, its answer and one end token. Only the answer and the end
token are supervised.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from cluster.errors import DataError, RecipeError
from corpus.sampling.prompt_text import TAIL
from cprec.encode.prompt import PromptTemplate
from cprec.encode.text_tokenizer import Tokenizer, text_tokenizer
from cprec.schedule.objectives import Objective

Item = TypeVar("Item")


@dataclass(frozen=True)
class EncodedSample:
    """One sample as token ids.

    Attributes:
        ids: Token ids, int32 [T].
        answer_start: Index in `ids` of the first supervised token; all later ones are supervised.
        dropped_titles: Number of titles left out of the history, oldest first, to fit.
    """

    ids: np.ndarray
    answer_start: int
    dropped_titles: int


def fit_prompt(
    encode: Callable[[Sequence[Item]], list[int]],
    history: Sequence[Item],
    reserved_tokens: int,
    max_tokens: int,
    name: str,
) -> tuple[list[int], int]:
    """Encodes a prompt, dropping the oldest items of the history until it fits.

    Args:
        encode: Encodes the prompt with the given history.
        history: The history, oldest first.
        reserved_tokens: Tokens to leave free after the prompt, for the answer.
        max_tokens: Maximum length of prompt and answer.
        name: What the prompt is called in the message.

    Returns:
        Token ids of the prompt, and the number of dropped items.

    Raises:
        DataError: The prompt does not fit even without a history.
    """
    for dropped in range(len(history) + 1):
        ids = encode(history[dropped:])
        if len(ids) + reserved_tokens <= max_tokens:
            return ids, dropped
    raise too_long_error(name, len(ids) + reserved_tokens, max_tokens)


def too_long_error(
    name: str, num_tokens: int, max_tokens: int, shortest: str = "without a history"
) -> DataError:
    """Returns the error for a prompt that is too long even with as little history as it may have.

    Args:
        name: What the prompt is called.
        num_tokens: Tokens that it takes then, with its answer.
        max_tokens: Tokens that are allowed.
        shortest: With how little history it is still too long.
    """
    return DataError(
        f"{name} takes {num_tokens:,} tokens with its answer, even {shortest}, and "
        f"model.max_tokens allows {max_tokens:,}: raise it (a run that has begun goes on with "
        "--allow-change model.max_tokens), or shorten the titles"
    )


class SampleEncoder(ABC, Generic[Item]):
    """An encoder of prompts, answers and training samples, for one way to give an item."""

    @abstractmethod
    def encode_prompt(
        self, history: Sequence[Item], candidates: Sequence[Item], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Encodes a prompt, dropping the oldest items of the history until it fits.

        Args:
            history: Items, oldest first.
            candidates: Items to choose from. They are never dropped.
            reserved_tokens: Tokens to leave free after the prompt, for the answer.

        Returns:
            Token ids of the prompt, and the number of dropped items.

        Raises:
            DataError: The prompt does not fit even without a history.
        """

    @abstractmethod
    def encode_answer(self, item: Item) -> list[int]:
        """Encodes an answer, including the end token."""

    def encode_sample(
        self, history: Sequence[Item], candidates: Sequence[Item], target_position: int
    ) -> EncodedSample:
        """Encodes a training sample.

        Args:
            history: Items, oldest first.
            candidates: Items to choose from.
            target_position: Index in `candidates` of the item that the user took.

        Raises:
            DataError: Candidates and answer do not fit even without a history.
        """
        answer = self.encode_answer(candidates[target_position])
        ids, dropped = self.encode_prompt(history, candidates, reserved_tokens=len(answer))
        return EncodedSample(
            np.array(ids + answer, dtype=np.int32), answer_start=len(ids), dropped_titles=dropped
        )


class TitleEncoder(SampleEncoder[str]):
    """Encoder of prompts and answers given as titles, by one tokenizer and up to a maximum length.

    Prompt and answer are tokenised separately and joined. The joint is a space, so this equals
    tokenising the whole text unless the tokenizer merges across spaces. The constructor checks it.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, template: PromptTemplate) -> None:
        """Checks that the tokenizer can be used.

        Args:
            tokenizer: Tokenizer of the base model.
            max_tokens: Maximum length of a sample, in tokens.
            template: Template of the prompts.

        Raises:
            RecipeError: The tokenizer has no end token, or merges across spaces.
        """
        if tokenizer.eos_token_id is None:
            raise RecipeError(
                "model.base: its tokenizer has no end token (eos); an answer could not end"
            )
        self._text_tokenizer = text_tokenizer(tokenizer)
        self._max_tokens = max_tokens
        self._template = template
        self.prefix_ids = [*template.soft_ids, *self._text_tokenizer.prefix_ids]
        self.eos_token_id = int(tokenizer.eos_token_id)
        self._space_prefix = self._find_space_prefix()

    def encode_prompt(
        self, history: Sequence[str], candidates: Sequence[str], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Encodes a prompt, dropping the oldest titles of the history until it fits."""
        return fit_prompt(
            lambda titles: self.prefix_ids + self.encode(self._template.render(titles, candidates)),
            history,
            reserved_tokens,
            self._max_tokens,
            f"a prompt of {len(candidates)} candidates",
        )

    def encode_answer(self, title: str) -> list[int]:
        """Encodes an answer, including the end token."""
        return [*self.encode_after_space(title), self.eos_token_id]

    def encode_task_prompt(self, objective: Objective, history: Sequence[str]) -> list[int]:
        """Encodes the prompt of an objective without candidates, however long it is."""
        return self.prefix_ids + self.encode(self._template.render_task(objective, history))

    def encode(self, text: str) -> list[int]:
        """Encodes the beginning of a text, without the prefix."""
        return self._text_tokenizer.encode(text)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes many texts like `encode`, in one call of the tokenizer."""
        return self._text_tokenizer.encode_all(texts)

    def encode_after_space(self, text: str) -> list[int]:
        """Encodes a text that follows a space; the tokens include the space."""
        return self.encode(self._space_prefix + text)

    def encode_all_after_space(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes many texts like `encode_after_space`, in one call of the tokenizer."""
        return self.encode_all([self._space_prefix + text for text in texts])

    def _find_space_prefix(self) -> str:
        """Returns the prefix with which a text tokenises as it does after a space.

        It is empty where the tokenizer adds the space itself (Llama), else a space (byte-level
        BPE).
        """
        left, right = TAIL, "Acme steel lamp"
        whole = self.encode(f"{left} {right}")
        for prefix in ("", " "):
            if whole == self.encode(left) + self.encode(prefix + right):
                return prefix
        raise RecipeError(
            "model.base: its tokenizer merges across spaces, so that an answer cannot be "
            "separated from its prompt; use another base"
        )
