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
from cprec.encode.tokens import Encoder, Tokenizer, Tokens

Ints = NDArray[np.int64]

HEAD, OPEN = prompt.OPENING.rsplit(" ", 1)
_CLOSED_HISTORY, _REST = prompt.MIDDLE.split(" ", 1)
BETWEEN = _REST.rsplit(" ", 1)[0]
_CLOSED_CANDIDATES, TAIL = prompt.CLOSING.split(" ", 1)
_NEXT = prompt.SEPARATOR.strip()

FORMS = [
    ("", ""),
    ("", _NEXT),
    (OPEN, _NEXT),
    ("", _CLOSED_HISTORY),
    (OPEN, _CLOSED_HISTORY),
    ("", _CLOSED_CANDIDATES),
    (OPEN, _CLOSED_CANDIDATES),
]
"""What stands right before and right after a title: in the answer; within a list, first of it; last and sole of the history, of the candidates."""
ANSWER, INNER, FIRST, LAST_OF_HISTORY, SOLE_OF_HISTORY, LAST_OF_CANDIDATES, SOLE_OF_CANDIDATES = (
    range(len(FORMS))
)

FIXED = ["head", "empty history", "between", "tail", "end"]
"""Pieces that are no title, in front of the titles' pieces: piece = len(FIXED) + item * len(FORMS) + form."""
HEAD_PIECE, EMPTY_PIECE, BETWEEN_PIECE, TAIL_PIECE, END_PIECE = range(len(FIXED))

CHECKED = 64
"""Prompts that are compared with the tokenizer's at start."""


@dataclass(frozen=True)
class TitleTokens:
    """All pieces of all prompts. ids: [tokens] uint16 or int32, piece after piece; ends: [pieces + 1] int64, where each begins.

    end: the end token.
    """

    ids: NDArray[np.unsignedinteger | np.signedinteger]
    ends: Ints
    end: int

    @property
    def items(self) -> int:
        """Items whose titles are held."""
        return (len(self.ends) - 1 - len(FIXED)) // len(FORMS)

    def gather(self, pieces: Ints) -> NDArray[np.int32]:
        """The tokens of some pieces, one after the other."""
        starts = self.ends[pieces]
        return _runs(self.ids, starts, self.ends[pieces + 1] - starts).astype(np.int32)


def tokenise(titles: Sequence[str], tokenizer: Tokenizer) -> TitleTokens:
    """Every title in every form. Titles are cleaned ones (corpus.ingest.titles): single spaces, none at an end.

    Raises RecipeError for a tokenizer without an end token, or one that merges across a space where prompt and answer meet.
    """
    encoder = Encoder(tokenizer, max_tokens=0)
    numbers: dict[str, int] = {}
    words: list[int] = []
    counts: list[int] = []

    def number(text: str) -> int:
        return numbers.setdefault(text, len(numbers))

    for title in titles:
        first, *others = title.split(" ")
        inner = [number(word) for word in others[:-1]]
        for before, after in FORMS:
            piece = (
                [number(before + first), *inner, number(others[-1] + after)]
                if others
                else [number(before + first + after)]
            )
            words += piece
            counts.append(len(piece))
    fixed = [
        encoder.begin + encoder.encode(HEAD),
        *(encoder.encode_after_space(text) for text in (OPEN + _CLOSED_HISTORY, BETWEEN, TAIL)),
        [encoder.end],
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
            _runs(flat, starts[word], length[word]),
        ]
    )
    of_piece = np.concatenate(
        [
            [len(piece) for piece in fixed],
            np.add.reduceat(length[word], _before(counts)) if counts else [],
        ]
    ).astype(np.int64)
    narrow = ids.size == 0 or ids.max() < 1 << 16
    return TitleTokens(
        ids.astype(np.uint16 if narrow else np.int32),
        np.concatenate([[0], np.cumsum(of_piece)]),
        encoder.end,
    )


class Stitcher:
    """Items to tokens, never longer than max_tokens; what `cprec.encode.tokens.Encoder` does with titles, without a tokenizer."""

    def __init__(self, titles: TitleTokens, max_tokens: int) -> None:
        self._titles, self._max_tokens = titles, max_tokens
        self.end = titles.end

    def prompt(
        self, history: Sequence[int], candidates: Sequence[int], room: int
    ) -> tuple[list[int], int]:
        """Token ids of the prompt, and how many of the oldest items were dropped so that `room` more tokens fit.

        Raises DataError when the candidates alone do not fit.
        """
        for dropped in range(len(history) + 1):
            pieces = _pieces(np.array(history[dropped:], np.int64), np.array(candidates, np.int64))
            if (
                int((self._titles.ends[pieces + 1] - self._titles.ends[pieces]).sum()) + room
                <= self._max_tokens
            ):
                return self._titles.gather(pieces).tolist(), dropped
        raise too_long(len(candidates), self._max_tokens)

    def answer(self, item: int) -> list[int]:
        """Token ids of an answer, its end token included."""
        ids: list[int] = self._titles.gather(np.array([piece_of(item, ANSWER), END_PIECE])).tolist()
        return ids

    def samples(self, rows: pa.Table) -> list[Tokens]:
        """Tokens of corpus rows (history, candidates, target), in their order, all at once: the oldest history is dropped where a sample is too long.

        Raises DataError when candidates and answer alone do not fit: they are never cut.
        """
        history, past = _lists(rows["history"])
        candidates, choices = _lists(rows["candidates"])
        offset = np.cumsum(choices) - choices
        answer = (
            candidates[offset + rows["target"].to_numpy().astype(np.int64)]
            if len(rows)
            else candidates
        )
        lengths = self._titles.ends[1:] - self._titles.ends[:-1]
        dropped = np.zeros(len(rows), dtype=np.int64)
        while True:
            pieces, count = _layout(history, past, dropped, candidates, choices, answer)
            total = (
                np.add.reduceat(lengths[pieces], _before(count))
                if len(rows)
                else np.zeros(0, np.int64)
            )
            too_many = total > self._max_tokens
            if not too_many.any():
                break
            if (hopeless := too_many & (dropped == past)).any():
                raise too_long(int(choices[hopeless][0]), self._max_tokens)
            dropped += too_many
        prompts = total - lengths[piece_of(answer, ANSWER)] - lengths[END_PIECE]
        cut = np.split(self._titles.gather(pieces), np.cumsum(total)[:-1]) if len(rows) else []
        return [
            Tokens(ids, int(start), int(gone))
            for ids, start, gone in zip(cut, prompts, dropped, strict=True)
        ]


class ByTokenizer:
    """The same by tokenizer and titles, for tokenizers whose texts cannot be stitched."""

    def __init__(self, titles: Sequence[str], encoder: Encoder) -> None:
        self._titles, self._encoder = titles, encoder
        self.end = encoder.end

    def prompt(
        self, history: Sequence[int], candidates: Sequence[int], room: int
    ) -> tuple[list[int], int]:
        """As Stitcher.prompt."""
        return self._encoder.prompt(
            [self._titles[i] for i in history], [self._titles[i] for i in candidates], room
        )

    def answer(self, item: int) -> list[int]:
        """As Stitcher.answer."""
        return self._encoder.answer(self._titles[item])

    def samples(self, rows: pa.Table) -> list[Tokens]:
        """As Stitcher.samples."""
        columns = (rows[name].to_pylist() for name in ("history", "candidates", "target"))
        return [
            self._encoder.sample(
                [self._titles[i] for i in history], [self._titles[i] for i in candidates], target
            )
            for history, candidates, target in zip(*columns, strict=True)
        ]


@dataclass(frozen=True)
class Words:
    """What a corpus version's prompts are made of: title tokens, or the titles themselves and why they could not be kept as tokens."""

    tokens: TitleTokens | None
    titles: Sequence[str]
    because: str


def words_of(
    titles: Sequence[str], tokenizer: Tokenizer, before: TitleTokens | None = None
) -> Words:
    """Title tokens if a sample of stitched prompts equals the tokenizer's own, else the titles and the first difference.

    before: tokens of the first of these titles, by the same tokenizer; items keep their index and title for ever, so only the others are tokenised.
    """
    tokens = (
        tokenise(titles, tokenizer)
        if before is None
        else joined(before, tokenise(titles[before.items :], tokenizer))
    )
    because = differs(titles, tokens, tokenizer)
    return Words(None, tuple(titles), because) if because else Words(tokens, (), "")


def joined(first: TitleTokens, others: TitleTokens) -> TitleTokens:
    """The titles of both, those of `others` numbered on."""
    start = others.ends[len(FIXED)]
    ends = np.concatenate([first.ends, others.ends[len(FIXED) + 1 :] + (first.ends[-1] - start)])
    return TitleTokens(np.concatenate([first.ids, others.ids[start:]]), ends, first.end)


def differs(titles: Sequence[str], tokens: TitleTokens, tokenizer: Tokenizer) -> str:
    """The first of CHECKED drawn prompts whose stitched tokens are not the tokenizer's of the whole text, in words; empty if there is none."""
    rng = np.random.default_rng(0x7117)
    stitcher, encoder = Stitcher(tokens, max_tokens=1 << 30), Encoder(tokenizer, max_tokens=1 << 30)
    for draw in range(CHECKED if titles else 0):
        history, candidates = (
            rng.integers(len(titles), size=size).tolist() for size in (draw % 11, 20)
        )
        text = f"{prompt.render([titles[i] for i in history], [titles[i] for i in candidates])} {titles[candidates[0]]}"
        stitched = [*stitcher.prompt(history, candidates, 0)[0], *stitcher.answer(candidates[0])]
        whole = [*encoder.begin, *encoder.encode(text), encoder.end]
        if stitched != whole:
            at = next(
                (i for i, (a, b) in enumerate(zip(stitched, whole, strict=False)) if a != b),
                min(len(stitched), len(whole)),
            )
            return f"a stitched prompt differs from the tokenizer's at token {at} of {len(whole)} (items {history} and {candidates})"
    return ""


def too_long(candidates: int, max_tokens: int) -> DataError:
    """The error for a sample that dropping history cannot shorten enough."""
    return DataError(
        f"a prompt of {candidates} candidates without history and its answer take more than model.max_tokens = {max_tokens} tokens: "
        "raise it or shorten the titles"
    )


def piece_of(item: Ints | int, form: Ints | int) -> Ints:
    """The piece of an item's title in a form (FORMS)."""
    return len(FIXED) + np.asarray(item, dtype=np.int64) * len(FORMS) + form


def _pieces(history: Ints, candidates: Ints) -> Ints:
    """The pieces of one prompt."""
    past = np.array([len(history)]), np.array([len(candidates)])
    pieces, _ = _layout(
        history, past[0], np.zeros(1, np.int64), candidates, past[1], np.zeros(1, np.int64)
    )
    return pieces[:-2]


def _layout(
    history: Ints, past: Ints, dropped: Ints, candidates: Ints, choices: Ints, answer: Ints
) -> tuple[Ints, Ints]:
    """The pieces of samples, one sample after the other, and how many each has.

    history, candidates: items of all samples in a row, past and choices of each; dropped: items left out at the front of each history.
    Order: head, history (or its empty form), between, candidates, tail, answer, end.
    """
    kept = past - dropped
    count = np.maximum(kept, 1) + choices + 5
    first = np.cumsum(count) - count
    pieces = np.empty(int(count.sum()), dtype=np.int64)
    pieces[first] = HEAD_PIECE
    pieces[first[kept == 0] + 1] = EMPTY_PIECE
    shown = history[_within(np.cumsum(past) - past + dropped, kept)]
    pieces[_within(first + 1, kept)] = piece_of(
        shown, forms_of(kept, LAST_OF_HISTORY, SOLE_OF_HISTORY)
    )
    middle = first + 1 + np.maximum(kept, 1)
    pieces[middle] = BETWEEN_PIECE
    pieces[_within(middle + 1, choices)] = piece_of(
        candidates, forms_of(choices, LAST_OF_CANDIDATES, SOLE_OF_CANDIDATES)
    )
    tail = middle + 1 + choices
    pieces[tail], pieces[tail + 1], pieces[tail + 2] = (
        TAIL_PIECE,
        piece_of(answer, ANSWER),
        END_PIECE,
    )
    return pieces, count


def forms_of(sizes: Ints, last: int, sole: int) -> Ints:
    """The form of each title of lists of these sizes. last, sole: forms of the last title of a list, and of the only one."""
    forms = np.full(int(sizes.sum()), INNER, dtype=np.int64)
    there = sizes > 0
    ends = np.cumsum(sizes)
    forms[(ends - sizes)[there]] = FIRST
    forms[ends[there] - 1] = np.where(sizes[there] == 1, sole, last)
    return forms


def _within(starts: Ints, sizes: Ints) -> Ints:
    """start, start + 1, .. of each run, one run after the other."""
    return np.arange(int(sizes.sum())) + np.repeat(starts - _before(sizes), sizes)


def _runs(flat: NDArray[np.generic], starts: Ints, sizes: Ints) -> NDArray[np.generic]:
    return flat[_within(starts, sizes)]


def _before(sizes: Ints | Sequence[int]) -> Ints:
    """The sum of all sizes before each."""
    return np.cumsum(sizes, dtype=np.int64) - np.asarray(sizes, dtype=np.int64)


def _lists(column: pa.ChunkedArray) -> tuple[Ints, Ints]:
    """All values of a column of lists, and the size of each list."""
    whole = column.combine_chunks()
    whole = whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
    return whole.flatten().to_numpy(zero_copy_only=False).astype(np.int64), np.diff(
        whole.offsets.to_numpy()
    ).astype(np.int64)
