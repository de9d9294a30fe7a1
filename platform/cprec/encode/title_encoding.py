"""Decides how titles are encoded: tokenised once, or by calling the tokenizer on whole prompts.

Titles are tokenised once (`cprec.encode.title_tokens`) where that gives the tokenizer's own
prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from corpus.sampling.prompt_text import SEPARATOR, TAIL
from cprec.encode.prompt import INSTRUCTIONS, MASK, PromptTemplate
from cprec.encode.text_tasks import MASK_ITEM, TextTask, derive_task
from cprec.encode.text_tokenizer import Tokenizer
from cprec.encode.title_tokens import (
    ANSWER_FORM,
    CachedPromptEncoder,
    TitleTokens,
    concat_title_tokens,
    fragment_index,
    tokenise_titles,
)
from cprec.encode.tokens import EncodedSample, TitleEncoder
from cprec.schedule.objectives import MIN_TITLES

CHECKED_PROMPTS = 64
"""Number of random prompts that `find_difference` compares."""


class UncachedPromptEncoder:
    """Encoder with the interface of `CachedPromptEncoder` that calls the tokenizer on whole texts.

    For tokenizers that do not tokenise word by word.
    """

    def __init__(self, titles: Sequence[str], title_encoder: TitleEncoder) -> None:
        """Sets the titles, by item index, and the encoder of their texts."""
        self._titles = titles
        self._title_encoder = title_encoder
        self.eos_token_id = title_encoder.eos_token_id

    def encode_prompt(
        self, history: Sequence[int], candidates: Sequence[int], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Encodes a prompt: see `CachedPromptEncoder.encode_prompt`."""
        return self._title_encoder.encode_prompt(
            [self._titles[i] for i in history],
            [self._titles[i] for i in candidates],
            reserved_tokens,
        )

    def encode_answer(self, item: int) -> list[int]:
        """Encodes an answer, including the end token."""
        return self._title_encoder.encode_answer(self._titles[item])

    def encode_task(self, task: TextTask) -> tuple[list[int], list[int]]:
        """Encodes the prompt and the answer, including the end token, of a text task."""
        shown = _shown_titles(task, self._titles)
        return (
            self._title_encoder.encode_task_prompt(task.objective, shown),
            self._title_encoder.encode_answer(_answer_text(task, self._titles)),
        )

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        """Encodes corpus rows: see `CachedPromptEncoder.encode_samples`."""
        columns = (rows[name].to_pylist() for name in ("history", "candidates", "target"))
        return [
            self._title_encoder.encode_sample(
                [self._titles[i] for i in history], [self._titles[i] for i in candidates], target
            )
            for history, candidates, target in zip(*columns, strict=True)
        ]


@dataclass(frozen=True)
class TitleEncoding:
    """The titles of a corpus version, either tokenised or as texts.

    Attributes:
        title_tokens: The tokenised titles; None if the tokenizer has to be called on whole texts.
        titles: The texts, by item index, if `title_tokens` is None, else empty.
        fallback_reason: Why the titles could not be tokenised in advance; empty if they could.
    """

    title_tokens: TitleTokens | None
    titles: Sequence[str]
    fallback_reason: str


def build_title_encoding(
    titles: Sequence[str],
    tokenizer: Tokenizer,
    template: PromptTemplate,
    earlier: TitleTokens | None = None,
) -> TitleEncoding:
    """Tokenises titles in advance if that gives the tokenizer's own prompts, else keeps the texts.

    Args:
        titles: Cleaned titles by item index.
        tokenizer: Tokenizer of the base model.
        template: Template of the prompts.
        earlier: Tokens of the first of these titles, by the same tokenizer and template. An item
            never changes its index or title, so only the titles after them are tokenised.

    Raises:
        RecipeError: The tokenizer has no end token, or merges across spaces.
    """
    added_titles = titles[0 if earlier is None else earlier.num_items :]
    added = tokenise_titles(added_titles, tokenizer, template)
    tokens = added if earlier is None else concat_title_tokens(earlier, added)
    difference = find_title_difference(added_titles, added, tokenizer, template) or find_difference(
        titles, tokens, tokenizer, template
    )
    if difference:
        return TitleEncoding(None, tuple(titles), difference)
    return TitleEncoding(tokens, (), "")


def find_title_difference(
    titles: Sequence[str], title_tokens: TitleTokens, tokenizer: Tokenizer, template: PromptTemplate
) -> str:
    """Checks that every title has the same tokens behind another word as on its own.

    It may not where the tokenizer's normalisation turns other characters into spaces.

    Args:
        titles: Cleaned titles by item index.
        title_tokens: Their tokens.
        tokenizer: The tokenizer that made them.
        template: Template of the prompts.

    Returns:
        A description of the first difference; empty if there is none.
    """
    encoder = TitleEncoder(tokenizer, 0, template)
    word = TAIL.rsplit(" ", 1)[-1]
    word_ids = encoder.encode(word)
    whole = encoder.encode_all([f"{word} {title}" for title in titles])
    for item, ids in enumerate(whole):
        stitched = title_tokens.gather(np.array([fragment_index(item, ANSWER_FORM)]))
        if ids != [*word_ids, *stitched.tolist()]:
            return f"the words of the title {titles[item]!r} have other tokens alone than together"
    return ""


def find_difference(
    titles: Sequence[str], title_tokens: TitleTokens, tokenizer: Tokenizer, template: PromptTemplate
) -> str:
    """Compares concatenated prompts with the tokenizer's own, on CHECKED_PROMPTS random samples.

    Args:
        titles: Cleaned titles by item index.
        title_tokens: Their tokens.
        tokenizer: The tokenizer that made them.
        template: Template of the prompts.

    Returns:
        A description of the first difference; empty if there is none.
    """
    rng = np.random.default_rng(0x7117)
    cached_encoder = CachedPromptEncoder(title_tokens, max_tokens=1 << 30)
    title_encoder = TitleEncoder(tokenizer, 1 << 30, template)
    for draw in range(CHECKED_PROMPTS if titles else 0):
        history = rng.integers(len(titles), size=draw % 11).tolist()
        candidates = rng.integers(len(titles), size=20).tolist()
        prompt_text = template.render([titles[i] for i in history], [titles[i] for i in candidates])
        stitched = [
            *cached_encoder.encode_prompt(history, candidates, 0)[0],
            *cached_encoder.encode_answer(candidates[0]),
        ]
        pairs = [(stitched, f"{prompt_text} {titles[candidates[0]]}")]
        if len(history) >= MIN_TITLES:
            objective = list(INSTRUCTIONS)[draw % len(INSTRUCTIONS)]
            task = derive_task(objective, history, candidates, draw, titles.__getitem__)
            prompt, answer = cached_encoder.encode_task(task)
            pairs.append((prompt + answer, _render(task, titles, template)))
        for stitched, text in pairs:
            ids = [*title_encoder.prefix_ids, *title_encoder.encode(text)]
            whole = [*ids, title_encoder.eos_token_id]
            if stitched != whole:
                at = next(
                    (i for i, (a, b) in enumerate(zip(stitched, whole, strict=False)) if a != b),
                    min(len(stitched), len(whole)),
                )
                return (
                    f"a stitched prompt differs from the tokenizer's at token {at} of {len(whole)} "
                    f"(items {history} and {candidates})"
                )
    return ""


def _render(task: TextTask, titles: Sequence[str], template: PromptTemplate) -> str:
    """Returns the prompt and the answer of a text task as one text."""
    prompt = template.render_task(task.objective, _shown_titles(task, titles))
    return f"{prompt} {_answer_text(task, titles)}"


def _shown_titles(task: TextTask, titles: Sequence[str]) -> list[str]:
    return [MASK if item == MASK_ITEM else titles[item] for item in task.shown]


def _answer_text(task: TextTask, titles: Sequence[str]) -> str:
    return SEPARATOR.join(titles[item] for item in task.answers)
