"""Prompts concatenated from tokenised titles: each title is tokenised once per corpus version.

A tokenizer that never merges across a space may be given a text word by word. So each distinct
word is tokenised once with each punctuation that the template puts around it (such as a comma after
it), and every title is stored in all its forms. The unit of concatenation is a *fragment*: a fixed
part of the prompt, or one title in one form. A prompt is then a selection of slices of one flat
array. That takes numpy alone, no tokenizer, and all processes of a node read the same array from
Ray's object store.

`cprec.encode.title_encoding` compares such prompts with those that the tokenizer makes of the whole
text, and falls back to the tokenizer if they differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from corpus.sampling.prompt_text import BETWEEN, HEAD, SEPARATOR, TAIL
from cprec.encode.flat_lists import (
    Ints,
    concat_ranges,
    exclusive_cumsum,
    flatten_lists,
    take_runs,
)
from cprec.encode.prompt import INSTRUCTIONS, MASK, PromptTemplate
from cprec.encode.text_tasks import TextTask
from cprec.encode.text_tokenizer import Tokenizer
from cprec.encode.tokens import EncodedSample, TitleEncoder, too_long_error

FORM_COUNT = 7
(
    ANSWER_FORM,
    INNER_FORM,
    FIRST_FORM,
    LAST_OF_HISTORY_FORM,
    ONLY_OF_HISTORY_FORM,
    LAST_OF_CANDIDATES_FORM,
    ONLY_OF_CANDIDATES_FORM,
) = range(FORM_COUNT)
"""Forms of a title, by place in the prompt: they differ in the text around it (`_punctuation`)."""

FIXED_FRAGMENTS = [
    *("head", "empty history", "between", "tail", "end"),
    *INSTRUCTIONS,
    *(f"mask {form}" for form in range(FORM_COUNT)),
]
"""Names of the fragments that are no titles. They are numbered first: see `fragment_index`.

The mask has all forms of a title and comes last, so it is the title of item `MASK_ITEM`, -1.
"""
HEAD_FRAGMENT, EMPTY_HISTORY_FRAGMENT, BETWEEN_LISTS_FRAGMENT, TAIL_FRAGMENT, EOS_FRAGMENT = range(
    5
)


@dataclass(frozen=True)
class TitleTokens:
    """The tokens of all fragments: the fixed ones, then every title in every form.

    Attributes:
        ids: Token ids of all fragments, one fragment after the other, uint16 or int32 [tokens].
        offsets: Index in `ids` where each fragment begins, and the total, [fragments + 1].
        eos_token_id: The end token.
    """

    ids: NDArray[np.unsignedinteger | np.signedinteger]
    offsets: Ints
    eos_token_id: int

    @property
    def num_items(self) -> int:
        """Number of items whose titles are stored."""
        return (len(self.offsets) - 1 - len(FIXED_FRAGMENTS)) // FORM_COUNT

    def lengths(self, fragments: Ints) -> Ints:
        """Returns the number of tokens of each of these fragments."""
        return self.offsets[fragments + 1] - self.offsets[fragments]

    def gather(self, fragments: Ints) -> NDArray[np.int32]:
        """Returns the concatenated tokens of these fragments."""
        return take_runs(self.ids, self.offsets[fragments], self.lengths(fragments)).astype(
            np.int32
        )


def _punctuation(template: PromptTemplate) -> list[tuple[str, str]]:
    """Returns the texts directly before and after a title in each form."""
    opening, comma = template.opening, SEPARATOR.strip()
    of_history, of_candidates = template.history_closing, template.candidates_closing
    return [
        ("", ""),
        ("", comma),
        (opening, comma),
        ("", of_history),
        (opening, of_history),
        ("", of_candidates),
        (opening, of_candidates),
    ]


def tokenise_titles(
    titles: Sequence[str], tokenizer: Tokenizer, template: PromptTemplate
) -> TitleTokens:
    """Tokenises every title in every form.

    Args:
        titles: Titles by item index, cleaned by corpus.ingest.titles: words are separated by
            single spaces, and there is no space at either end.
        tokenizer: Tokenizer of the base model.
        template: Template of the prompts.

    Raises:
        RecipeError: The tokenizer has no end token, or merges across spaces.
    """
    encoder = TitleEncoder(tokenizer, 0, template)
    punctuation = _punctuation(template)
    word_numbers: dict[str, int] = {}
    title_words: list[int] = []
    word_counts: list[int] = []

    def number(word: str) -> int:
        return word_numbers.setdefault(word, len(word_numbers))

    # Write every form of every title as a sequence of word numbers. Punctuation touches only the
    # first and the last word, so the words between them are the same in all forms.
    for title in titles:
        first, *others = title.split(" ")
        inner = [number(word) for word in others[:-1]]
        for before, after in punctuation:
            words = (
                [number(before + first), *inner, number(others[-1] + after)]
                if others
                else [number(before + first + after)]
            )
            title_words += words
            word_counts.append(len(words))
    fixed = [
        encoder.prefix_ids + encoder.encode(HEAD),
        *(encoder.encode_after_space(text) for text in (template.empty_history, BETWEEN, TAIL)),
        [encoder.eos_token_id],
        *(encoder.encode_after_space(text) for text in INSTRUCTIONS.values()),
        *(encoder.encode_after_space(before + MASK + after) for before, after in punctuation),
    ]
    # Tokenise each distinct word once, as one flat array.
    word_ids = encoder.encode_all_after_space(list(word_numbers))
    word_lengths = np.fromiter(map(len, word_ids), np.int64, len(word_ids))
    flat_word_ids = np.fromiter(
        (token for ids in word_ids for token in ids), np.int32, int(word_lengths.sum())
    )
    word_starts = np.cumsum(word_lengths) - word_lengths
    # Replace each word number by the word's tokens.
    words_in_order = np.array(title_words, dtype=np.int64)
    ids = np.concatenate(
        [
            *(np.array(fragment, dtype=np.int32) for fragment in fixed),
            take_runs(flat_word_ids, word_starts[words_in_order], word_lengths[words_in_order]),
        ]
    )
    fragment_lengths = np.concatenate(
        [
            [len(fragment) for fragment in fixed],
            np.add.reduceat(word_lengths[words_in_order], exclusive_cumsum(word_counts))
            if word_counts
            else [],
        ]
    ).astype(np.int64)
    fits_uint16 = ids.size == 0 or ids.max() < 1 << 16
    return TitleTokens(
        ids.astype(np.uint16 if fits_uint16 else np.int32),
        np.concatenate([[0], np.cumsum(fragment_lengths)]),
        encoder.eos_token_id,
    )


class CachedPromptEncoder:
    """Encodes prompts and answers, given as item indices, by concatenating title tokens.

    It calls no tokenizer, and gives the same token ids as `cprec.encode.tokens.TitleEncoder`.
    """

    def __init__(self, title_tokens: TitleTokens, max_tokens: int) -> None:
        """Sets the title tokens and the maximum length of a sample, in tokens."""
        self._title_tokens = title_tokens
        self._max_tokens = max_tokens
        self.eos_token_id = title_tokens.eos_token_id

    def encode_prompt(
        self, history: Sequence[int], candidates: Sequence[int], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Encodes a prompt, dropping the oldest items of the history until it fits.

        Args:
            history: Item indices, oldest first.
            candidates: Item indices to choose from. They are never dropped.
            reserved_tokens: Tokens to leave free after the prompt, for the answer.

        Returns:
            Token ids of the prompt, and the number of dropped items.

        Raises:
            DataError: The prompt does not fit even without a history.
        """
        for dropped in range(len(history) + 1):
            fragments = _prompt_fragments(
                np.array(history[dropped:], np.int64), np.array(candidates, np.int64)
            )
            num_tokens = int(self._title_tokens.lengths(fragments).sum())
            if num_tokens + reserved_tokens <= self._max_tokens:
                return self._title_tokens.gather(fragments).tolist(), dropped
        name = f"a prompt of {len(candidates)} candidates"
        raise too_long_error(name, num_tokens + reserved_tokens, self._max_tokens)

    def encode_answer(self, item: int) -> list[int]:
        """Encodes an answer, including the end token."""
        # A slice, not `gather`, whose dozen array operations would cost more than scoring on a GPU.
        fragment = len(FIXED_FRAGMENTS) + item * FORM_COUNT + ANSWER_FORM
        start, stop = self._title_tokens.offsets[fragment : fragment + 2]
        return [*self._title_tokens.ids[start:stop].tolist(), self.eos_token_id]

    def encode_task(self, task: TextTask) -> tuple[list[int], list[int]]:
        """Encodes the prompt and the answer, including the end token, of a text task."""
        shown, answers = np.array(task.shown, np.int64), np.array(task.answers, np.int64)
        forms = title_forms(np.array([len(shown)]), LAST_OF_HISTORY_FORM, ONLY_OF_HISTORY_FORM)
        prompt = [HEAD_FRAGMENT, *fragment_index(shown, forms)]
        prompt.append(FIXED_FRAGMENTS.index(task.objective))
        # Nothing opens the list of answers, and nothing stands after the last.
        forms = np.where(np.arange(len(answers)) < len(answers) - 1, INNER_FORM, ANSWER_FORM)
        answer = [*fragment_index(answers, forms), EOS_FRAGMENT]
        gather = self._title_tokens.gather
        return gather(np.array(prompt)).tolist(), gather(np.array(answer)).tolist()

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        """Encodes corpus rows, in their order, dropping the oldest items of histories to fit.

        Args:
            rows: Corpus rows with the columns `history`, `candidates` and `target`.

        Raises:
            DataError: The candidates and the answer of a row do not fit even without a history.
        """
        history, history_lengths = flatten_lists(rows["history"])
        candidates, candidate_counts, answers = _candidates_and_answers(rows)
        dropped = np.zeros(len(rows), dtype=np.int64)
        # Each round drops one more item from every sample that is still too long.
        while True:
            fragments, fragment_counts = _sample_fragments(
                history, history_lengths, dropped, candidates, candidate_counts, answers
            )
            token_counts = self._count_tokens(fragments, fragment_counts)
            too_long = token_counts > self._max_tokens
            if not too_long.any():
                break
            if (hopeless := too_long & (dropped == history_lengths)).any():
                name = f"a prompt of {candidate_counts[hopeless][0]} candidates"
                raise too_long_error(name, int(token_counts[hopeless].max()), self._max_tokens)
            dropped += too_long
        answer_lengths = self._title_tokens.lengths(fragment_index(answers, ANSWER_FORM))
        eos_length = self._title_tokens.lengths(np.array(EOS_FRAGMENT))
        answer_starts = token_counts - answer_lengths - eos_length
        sample_ids = (
            np.split(self._title_tokens.gather(fragments), np.cumsum(token_counts)[:-1])
            if len(rows)
            else []
        )
        return [
            EncodedSample(ids, int(start), int(dropped_titles))
            for ids, start, dropped_titles in zip(sample_ids, answer_starts, dropped, strict=True)
        ]

    def shortest_lengths(self, rows: pa.Table) -> Ints:
        """Returns the tokens of each row's prompt without a history, with its answer [rows].

        Args:
            rows: Corpus rows with the columns `candidates` and `target`.
        """
        candidates, candidate_counts, answers = _candidates_and_answers(rows)
        none = np.zeros(len(rows), dtype=np.int64)
        return self._count_tokens(
            *_sample_fragments(candidates[:0], none, none, candidates, candidate_counts, answers)
        )

    def _count_tokens(self, fragments: Ints, fragment_counts: Ints) -> Ints:
        """Returns the tokens of each sample, given the fragments of all and their numbers."""
        if not len(fragment_counts):
            return np.zeros(0, dtype=np.int64)
        lengths = self._title_tokens.lengths(fragments)
        counts: Ints = np.add.reduceat(lengths, exclusive_cumsum(fragment_counts))
        return counts


def concat_title_tokens(first: TitleTokens, others: TitleTokens) -> TitleTokens:
    """Appends the titles of `others` to those of `first`, continuing the item indices."""
    start = others.offsets[len(FIXED_FRAGMENTS)]
    offsets = np.concatenate(
        [first.offsets, others.offsets[len(FIXED_FRAGMENTS) + 1 :] + (first.offsets[-1] - start)]
    )
    ids = np.concatenate([first.ids, others.ids[start:]])
    return TitleTokens(ids, offsets, first.eos_token_id)


def fragment_index(item: Ints | int, form: Ints | int) -> Ints:
    """Returns the index of the fragment that is the title of `item` in `form`.

    Args:
        item: Item index, or an array of them.
        form: Number of the form, or an array of them.
    """
    return len(FIXED_FRAGMENTS) + np.asarray(item, dtype=np.int64) * FORM_COUNT + form


def _prompt_fragments(history: Ints, candidates: Ints) -> Ints:
    """Returns the fragments of one prompt."""
    fragments, _ = _sample_fragments(
        history,
        np.array([len(history)]),
        np.zeros(1, np.int64),
        candidates,
        np.array([len(candidates)]),
        np.zeros(1, np.int64),
    )
    return fragments[:-2]  # without the answer, which is a dummy, and the end token


def _candidates_and_answers(rows: pa.Table) -> tuple[Ints, Ints, Ints]:
    """Returns all candidates of rows, the number of each row's, and each row's answer."""
    candidates, counts = flatten_lists(rows["candidates"])
    if not len(rows):
        return candidates, counts, candidates
    starts = np.cumsum(counts) - counts
    answers = candidates[starts + rows["target"].to_numpy().astype(np.int64)]
    return candidates, counts, answers


def _sample_fragments(
    history: Ints,
    history_lengths: Ints,
    dropped: Ints,
    candidates: Ints,
    candidate_counts: Ints,
    answers: Ints,
) -> tuple[Ints, Ints]:
    """Returns the fragments of samples, one sample after the other.

    A sample is: head, history (or the empty history), between, candidates, tail, answer, end.

    Args:
        history: Item indices of all histories, concatenated.
        history_lengths: Number of items of each history, [samples].
        dropped: Number of items to leave out at the beginning of each history, [samples].
        candidates: Item indices of all candidates, concatenated.
        candidate_counts: Number of candidates of each sample, [samples].
        answers: Item index of each answer, [samples].

    Returns:
        The fragments of all samples, and the number of fragments of each sample, [samples].
    """
    shown_lengths = history_lengths - dropped
    counts = np.maximum(shown_lengths, 1) + candidate_counts + 5
    starts = np.cumsum(counts) - counts
    fragments = np.empty(int(counts.sum()), dtype=np.int64)

    fragments[starts] = HEAD_FRAGMENT
    fragments[starts[shown_lengths == 0] + 1] = EMPTY_HISTORY_FRAGMENT
    shown_starts = np.cumsum(history_lengths) - history_lengths + dropped
    shown = history[concat_ranges(shown_starts, shown_lengths)]
    fragments[concat_ranges(starts + 1, shown_lengths)] = fragment_index(
        shown, title_forms(shown_lengths, LAST_OF_HISTORY_FORM, ONLY_OF_HISTORY_FORM)
    )

    between = starts + 1 + np.maximum(shown_lengths, 1)
    fragments[between] = BETWEEN_LISTS_FRAGMENT
    fragments[concat_ranges(between + 1, candidate_counts)] = fragment_index(
        candidates, title_forms(candidate_counts, LAST_OF_CANDIDATES_FORM, ONLY_OF_CANDIDATES_FORM)
    )

    tail = between + 1 + candidate_counts
    fragments[tail] = TAIL_FRAGMENT
    fragments[tail + 1] = fragment_index(answers, ANSWER_FORM)
    fragments[tail + 2] = EOS_FRAGMENT
    return fragments, counts


def title_forms(sizes: Ints, last: int, only: int) -> Ints:
    """Returns the form of each title in lists of titles, one list after the other.

    Args:
        sizes: Number of titles of each list, [lists].
        last: Form of the last title of a list.
        only: Form of a title that is alone in its list.
    """
    forms = np.full(int(sizes.sum()), INNER_FORM, dtype=np.int64)
    is_filled = sizes > 0
    stops = np.cumsum(sizes)
    forms[(stops - sizes)[is_filled]] = FIRST_FORM
    forms[stops[is_filled] - 1] = np.where(sizes[is_filled] == 1, only, last)
    return forms
