"""Prompts stitched from title tokens: every title is tokenised once per corpus version, a prompt is a concatenation of pieces. Pure numpy.

A tokenizer that never merges across a space may be given a text word by word. So each distinct word is tokenised once, in each surrounding that the
prompt gives it (after `{`, before `,`, `}`, `}.`), and every title is kept in all its forms. A prompt's tokens are then a gather of rows of one flat
array, without a tokenizer, and an array in Ray's object store is shared by every process of a node.

`differs` holds stitched prompts against the tokenizer's own; `words_of` falls back to the tokenizer, with the reason, where they are not the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.errors import DataError
from cprec.encode import prompt
from cprec.encode.tokens import EncodedSample, TitleEncoder, Tokenizer

Ints = NDArray[np.int64]

HEAD, OPENING_BRACE = prompt.OPENING.rsplit(" ", 1)
_HISTORY_CLOSING, _AFTER_HISTORY = prompt.MIDDLE.split(" ", 1)
BETWEEN_LISTS = _AFTER_HISTORY.rsplit(" ", 1)[0]
_CANDIDATES_CLOSING, TAIL = prompt.CLOSING.split(" ", 1)
_COMMA = prompt.SEPARATOR.strip()

TITLE_FORMS = [
    ("", ""),
    ("", _COMMA),
    (OPENING_BRACE, _COMMA),
    ("", _HISTORY_CLOSING),
    (OPENING_BRACE, _HISTORY_CLOSING),
    ("", _CANDIDATES_CLOSING),
    (OPENING_BRACE, _CANDIDATES_CLOSING),
]
"""What stands right before and right after a title: in the answer; within a list, first of it; last and sole of the history, of the candidates."""
(
    ANSWER_FORM,
    INNER_FORM,
    FIRST_FORM,
    LAST_OF_HISTORY_FORM,
    ONLY_OF_HISTORY_FORM,
    LAST_OF_CANDIDATES_FORM,
    ONLY_OF_CANDIDATES_FORM,
) = range(len(TITLE_FORMS))

FIXED_FRAGMENTS = ["head", "empty history", "between", "tail", "end"]
"""Pieces that are no title, in front of the titles' pieces: piece = len(FIXED) + item * len(FORMS) + form."""
HEAD_FRAGMENT, EMPTY_HISTORY_FRAGMENT, BETWEEN_LISTS_FRAGMENT, TAIL_FRAGMENT, EOS_FRAGMENT = range(
    len(FIXED_FRAGMENTS)
)

CHECKED_PROMPTS = 64
"""Prompts that are compared with the tokenizer's at start."""


@dataclass(frozen=True)
class TitleTokens:
    """All pieces of all prompts. ids: [tokens] uint16 or int32, piece after piece; ends: [pieces + 1] int64, where each begins.

    end: the end token.
    """

    ids: NDArray[np.unsignedinteger | np.signedinteger]
    offsets: Ints
    eos_token_id: int

    @property
    def item_count(self) -> int:
        """Items whose titles are held."""
        return (len(self.offsets) - 1 - len(FIXED_FRAGMENTS)) // len(TITLE_FORMS)

    def gather(self, fragments: Ints) -> NDArray[np.int32]:
        """The tokens of some pieces, one after the other."""
        starts = self.offsets[fragments]
        return _take_runs(self.ids, starts, self.offsets[fragments + 1] - starts).astype(np.int32)


def tokenise_titles(titles: Sequence[str], tokenizer: Tokenizer) -> TitleTokens:
    """Every title in every form. Titles are cleaned ones (corpus.ingest.titles): single spaces, none at an end.

    Raises RecipeError for a tokenizer without an end token, or one that merges across a space where prompt and answer meet.
    """
    encoder = TitleEncoder(tokenizer, max_tokens=0)
    numbers: dict[str, int] = {}
    words: list[int] = []
    counts: list[int] = []

    def number(text: str) -> int:
        return numbers.setdefault(text, len(numbers))

    for title in titles:
        first, *others = title.split(" ")
        inner = [number(word) for word in others[:-1]]
        for before, after in TITLE_FORMS:
            piece = (
                [number(before + first), *inner, number(others[-1] + after)]
                if others
                else [number(before + first + after)]
            )
            words += piece
            counts.append(len(piece))
    fixed = [
        encoder.bos_ids + encoder.encode(HEAD),
        *(
            encoder.encode_after_space(text)
            for text in (OPENING_BRACE + _HISTORY_CLOSING, BETWEEN_LISTS, TAIL)
        ),
        [encoder.eos_token_id],
    ]
    of_word = encoder.encode_all_after_space(list(numbers))
    length = np.fromiter(map(len, of_word), np.int64, len(of_word))
    flat, starts = (
        np.fromiter((i for ids in of_word for i in ids), np.int32, int(length.sum())),
        np.cumsum(length) - length,
    )
    word = np.array(words, dtype=np.int64)
    ids = np.concatenate(
        [
            *(np.array(piece, dtype=np.int32) for piece in fixed),
            _take_runs(flat, starts[word], length[word]),
        ]
    )
    of_piece = np.concatenate(
        [
            [len(piece) for piece in fixed],
            np.add.reduceat(length[word], _exclusive_cumsum(counts)) if counts else [],
        ]
    ).astype(np.int64)
    narrow = ids.size == 0 or ids.max() < 1 << 16
    return TitleTokens(
        ids.astype(np.uint16 if narrow else np.int32),
        np.concatenate([[0], np.cumsum(of_piece)]),
        encoder.eos_token_id,
    )


class CachedPromptEncoder:
    """Items to tokens, never longer than max_tokens; what `cprec.encode.tokens.Encoder` does with titles, without a tokenizer."""

    def __init__(self, title_tokens: TitleTokens, max_tokens: int) -> None:
        self._title_tokens, self._max_tokens = title_tokens, max_tokens
        self.eos_token_id = title_tokens.eos_token_id

    def encode_prompt(
        self, history: Sequence[int], candidates: Sequence[int], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Token ids of the prompt, and how many of the oldest items were dropped so that `room` more tokens fit.

        Raises DataError when the candidates alone do not fit.
        """
        for dropped in range(len(history) + 1):
            pieces = _prompt_fragments(
                np.array(history[dropped:], np.int64), np.array(candidates, np.int64)
            )
            if (
                int(
                    (
                        self._title_tokens.offsets[pieces + 1] - self._title_tokens.offsets[pieces]
                    ).sum()
                )
                + reserved_tokens
                <= self._max_tokens
            ):
                return self._title_tokens.gather(pieces).tolist(), dropped
        raise too_long_error(len(candidates), self._max_tokens)

    def encode_answer(self, item: int) -> list[int]:
        """Token ids of an answer, its end token included."""
        ids: list[int] = self._title_tokens.gather(
            np.array([fragment_index(item, ANSWER_FORM), EOS_FRAGMENT])
        ).tolist()
        return ids

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        """Tokens of corpus rows (history, candidates, target), in their order, all at once: the oldest history is dropped where a sample is too long.

        Raises DataError when candidates and answer alone do not fit: they are never cut.
        """
        history, past = _flatten_lists(rows["history"])
        candidates, choices = _flatten_lists(rows["candidates"])
        offset = np.cumsum(choices) - choices
        answer = (
            candidates[offset + rows["target"].to_numpy().astype(np.int64)]
            if len(rows)
            else candidates
        )
        lengths = self._title_tokens.offsets[1:] - self._title_tokens.offsets[:-1]
        dropped = np.zeros(len(rows), dtype=np.int64)
        while True:
            pieces, count = _sample_fragments(history, past, dropped, candidates, choices, answer)
            total = (
                np.add.reduceat(lengths[pieces], _exclusive_cumsum(count))
                if len(rows)
                else np.zeros(0, np.int64)
            )
            too_many = total > self._max_tokens
            if not too_many.any():
                break
            if (hopeless := too_many & (dropped == past)).any():
                raise too_long_error(int(choices[hopeless][0]), self._max_tokens)
            dropped += too_many
        prompts = total - lengths[fragment_index(answer, ANSWER_FORM)] - lengths[EOS_FRAGMENT]
        cut = (
            np.split(self._title_tokens.gather(pieces), np.cumsum(total)[:-1]) if len(rows) else []
        )
        return [
            EncodedSample(ids, int(start), int(gone))
            for ids, start, gone in zip(cut, prompts, dropped, strict=True)
        ]


class UncachedPromptEncoder:
    """The same by tokenizer and titles, for tokenizers whose texts cannot be stitched."""

    def __init__(self, titles: Sequence[str], title_encoder: TitleEncoder) -> None:
        self._titles, self._title_encoder = titles, title_encoder
        self.eos_token_id = title_encoder.eos_token_id

    def encode_prompt(
        self, history: Sequence[int], candidates: Sequence[int], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """As Stitcher.prompt."""
        return self._title_encoder.encode_prompt(
            [self._titles[i] for i in history],
            [self._titles[i] for i in candidates],
            reserved_tokens,
        )

    def encode_answer(self, item: int) -> list[int]:
        """As Stitcher.answer."""
        return self._title_encoder.encode_answer(self._titles[item])

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        """As Stitcher.samples."""
        columns = (rows[name].to_pylist() for name in ("history", "candidates", "target"))
        return [
            self._title_encoder.encode_sample(
                [self._titles[i] for i in history], [self._titles[i] for i in candidates], target
            )
            for history, candidates, target in zip(*columns, strict=True)
        ]


@dataclass(frozen=True)
class TitleEncoding:
    """What a corpus version's prompts are made of: title tokens, or the titles themselves and why they could not be kept as tokens."""

    title_tokens: TitleTokens | None
    titles: Sequence[str]
    fallback_reason: str


def build_title_encoding(
    titles: Sequence[str], tokenizer: Tokenizer, earlier: TitleTokens | None = None
) -> TitleEncoding:
    """Title tokens if a sample of stitched prompts equals the tokenizer's own, else the titles and the first difference.

    before: tokens of the first of these titles, by the same tokenizer; items keep their index and title for ever, so only the others are tokenised.
    """
    tokens = (
        tokenise_titles(titles, tokenizer)
        if earlier is None
        else concat_title_tokens(earlier, tokenise_titles(titles[earlier.item_count :], tokenizer))
    )
    because = find_difference(titles, tokens, tokenizer)
    return TitleEncoding(None, tuple(titles), because) if because else TitleEncoding(tokens, (), "")


def concat_title_tokens(first: TitleTokens, others: TitleTokens) -> TitleTokens:
    """The titles of both, those of `others` numbered on."""
    start = others.offsets[len(FIXED_FRAGMENTS)]
    ends = np.concatenate(
        [first.offsets, others.offsets[len(FIXED_FRAGMENTS) + 1 :] + (first.offsets[-1] - start)]
    )
    return TitleTokens(np.concatenate([first.ids, others.ids[start:]]), ends, first.eos_token_id)


def find_difference(titles: Sequence[str], title_tokens: TitleTokens, tokenizer: Tokenizer) -> str:
    """The first of CHECKED drawn prompts whose stitched tokens are not the tokenizer's of the whole text, in words; empty if there is none."""
    rng = np.random.default_rng(0x7117)
    stitcher, encoder = (
        CachedPromptEncoder(title_tokens, max_tokens=1 << 30),
        TitleEncoder(tokenizer, max_tokens=1 << 30),
    )
    for draw in range(CHECKED_PROMPTS if titles else 0):
        history, candidates = (
            rng.integers(len(titles), size=size).tolist() for size in (draw % 11, 20)
        )
        text = f"{prompt.render_prompt([titles[i] for i in history], [titles[i] for i in candidates])} {titles[candidates[0]]}"
        stitched = [
            *stitcher.encode_prompt(history, candidates, 0)[0],
            *stitcher.encode_answer(candidates[0]),
        ]
        whole = [*encoder.bos_ids, *encoder.encode(text), encoder.eos_token_id]
        if stitched != whole:
            at = next(
                (i for i, (a, b) in enumerate(zip(stitched, whole, strict=False)) if a != b),
                min(len(stitched), len(whole)),
            )
            return f"a stitched prompt differs from the tokenizer's at token {at} of {len(whole)} (items {history} and {candidates})"
    return ""


def too_long_error(candidate_count: int, max_tokens: int) -> DataError:
    """The error for a sample that dropping history cannot shorten enough."""
    return DataError(
        f"a prompt of {candidate_count} candidates without history and its answer take more than model.max_tokens = {max_tokens} tokens: "
        "raise it or shorten the titles"
    )


def fragment_index(item: Ints | int, form: Ints | int) -> Ints:
    """The piece of an item's title in a form (FORMS)."""
    return len(FIXED_FRAGMENTS) + np.asarray(item, dtype=np.int64) * len(TITLE_FORMS) + form


def _prompt_fragments(history: Ints, candidates: Ints) -> Ints:
    """The pieces of one prompt."""
    past = np.array([len(history)]), np.array([len(candidates)])
    pieces, _ = _sample_fragments(
        history, past[0], np.zeros(1, np.int64), candidates, past[1], np.zeros(1, np.int64)
    )
    return pieces[:-2]


def _sample_fragments(
    history: Ints,
    history_lengths: Ints,
    dropped: Ints,
    candidates: Ints,
    candidate_counts: Ints,
    answers: Ints,
) -> tuple[Ints, Ints]:
    """The pieces of samples, one sample after the other, and how many each has.

    history, candidates: items of all samples in a row, past and choices of each; dropped: items left out at the front of each history.
    Order: head, history (or its empty form), between, candidates, tail, answer, end.
    """
    kept = history_lengths - dropped
    count = np.maximum(kept, 1) + candidate_counts + 5
    first = np.cumsum(count) - count
    pieces = np.empty(int(count.sum()), dtype=np.int64)
    pieces[first] = HEAD_FRAGMENT
    pieces[first[kept == 0] + 1] = EMPTY_HISTORY_FRAGMENT
    shown = history[_concat_ranges(np.cumsum(history_lengths) - history_lengths + dropped, kept)]
    pieces[_concat_ranges(first + 1, kept)] = fragment_index(
        shown, title_forms(kept, LAST_OF_HISTORY_FORM, ONLY_OF_HISTORY_FORM)
    )
    middle = first + 1 + np.maximum(kept, 1)
    pieces[middle] = BETWEEN_LISTS_FRAGMENT
    pieces[_concat_ranges(middle + 1, candidate_counts)] = fragment_index(
        candidates, title_forms(candidate_counts, LAST_OF_CANDIDATES_FORM, ONLY_OF_CANDIDATES_FORM)
    )
    tail = middle + 1 + candidate_counts
    pieces[tail], pieces[tail + 1], pieces[tail + 2] = (
        TAIL_FRAGMENT,
        fragment_index(answers, ANSWER_FORM),
        EOS_FRAGMENT,
    )
    return pieces, count


def title_forms(sizes: Ints, last: int, only: int) -> Ints:
    """The form of each title of lists of these sizes. last, sole: forms of the last title of a list, and of the only one."""
    forms = np.full(int(sizes.sum()), INNER_FORM, dtype=np.int64)
    there = sizes > 0
    ends = np.cumsum(sizes)
    forms[(ends - sizes)[there]] = FIRST_FORM
    forms[ends[there] - 1] = np.where(sizes[there] == 1, only, last)
    return forms


def _concat_ranges(starts: Ints, sizes: Ints) -> Ints:
    """start, start + 1, .. of each run, one run after the other."""
    return np.arange(int(sizes.sum())) + np.repeat(starts - _exclusive_cumsum(sizes), sizes)


def _take_runs(flat: NDArray[np.generic], starts: Ints, sizes: Ints) -> NDArray[np.generic]:
    return flat[_concat_ranges(starts, sizes)]


def _exclusive_cumsum(sizes: Ints | Sequence[int]) -> Ints:
    """The sum of all sizes before each."""
    return np.cumsum(sizes, dtype=np.int64) - np.asarray(sizes, dtype=np.int64)


def _flatten_lists(column: pa.ChunkedArray) -> tuple[Ints, Ints]:
    """All values of a column of lists, and the size of each list."""
    whole = column.combine_chunks()
    whole = whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
    return whole.flatten().to_numpy(zero_copy_only=False).astype(np.int64), np.diff(
        whole.offsets.to_numpy()
    ).astype(np.int64)
