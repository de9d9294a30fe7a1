"""Samples of one global batch that share tokens: the history of one user (train.targets_per_pass), a pool of candidates (train.shared_candidates).
Pure; inexact, so off unless a recipe asks for it (docs/decisions/009-shared-rows.md).

A group of samples is laid out as *strips* of tokens. A token sees what stands before it in its own strip, and of the strips before that what its
strip was given to see:

    head              This user has bought                            sees nothing else
    chain             {t1, t2, .. t9,                                 sees the head; the items of one user's samples, oldest first, each once
    pool              } in the previous. .. candidates are {ca, cb,   sees the head; only where candidates are shared
    and of each sample, where its candidates are its own,
      rest            t10} in the previous. .. answer                 sees the head and its window of the chain
    or where they are shared,
      last            t10}                                            sees the same
      rest            Choose only one .. answer                       sees the same, its last and the titles of the pool that are for it

Positions are those of the sample's own prompt as far as several samples can agree on them: see `_Layout`.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from corpus.sampling import hashing
from cprec.encode import title_tokens
from cprec.encode.title_tokens import Ints, TitleTokens, forms_of, piece_of
from cprec.encode.tokens import Tokens


@dataclass(frozen=True)
class Sharing:
    """What samples share. targets: samples of one user that share one laying of their history, at most; 1: none do.

    candidates: titles of a pool that each of its samples sees, at least as far as the samples' own candidates go; 0: each has its own.
    """

    targets: int = 1
    candidates: int = 0

    def __bool__(self) -> bool:
        return self.targets > 1 or self.candidates > 0

    @property
    def samples(self) -> int | None:
        """Samples of a pool, at most: half of what each sees is then nobody's target. None without pools."""
        return self.candidates // 2 if self.candidates else None


NOTHING = Sharing()


@dataclass(frozen=True)
class Laid:
    """A group of samples, laid out; it is packed like one sample. T tokens, N supervised, K strips, all arrays int32.

    members: [samples], their places in the global batch; ids, positions: [T]; counted: [N], places whose next token counts in the loss;
    strips: [K + 1], bounds of the strips; seen: the places that strips see before their own, strip after strip; seen_bounds: [K + 1], of these.
    """

    members: np.ndarray
    ids: np.ndarray
    positions: np.ndarray
    counted: np.ndarray
    strips: np.ndarray
    seen: np.ndarray
    seen_bounds: np.ndarray


@dataclass(frozen=True)
class Shown:
    """A sample as items. place: in the global batch; kind: samples of different kinds share nothing; user: what those of one user and source have in
    common; history: what is shown of it."""

    place: int
    kind: str
    user: int
    history: list[int]
    candidates: list[int]
    answer: int


def lay(
    rows: pa.Table, tokens: Sequence[Tokens], words: TitleTokens, sharing: Sharing, max_tokens: int
) -> list[Laid]:
    """The samples of a global batch as groups: every sample is in one. No group of several reaches beyond position max_tokens.

    rows: of the corpus; tokens: of these, by whose lengths the longest histories were cut.
    """
    laid: list[Laid] = []
    waiting = list(_groups(shown(rows, tokens, sharing), sharing))[::-1]
    while waiting:
        group = waiting.pop()
        one = _Layout(words, sharing).of(group)
        if len(group) > 1 and one.positions.max() >= max_tokens:
            half = len(group) // 2
            waiting += [group[half:], group[:half]]
        else:
            laid.append(one)
    return laid


def shown(rows: pa.Table, tokens: Sequence[Tokens], sharing: Sharing) -> list[Shown]:
    """Corpus rows by kind and id, so that samples of one user lie side by side.

    A kind is a source, and where candidates are shared a domain: a pool of several domains would give the answer's domain away, or ask for it.
    """
    ids = rows["sample_id"].to_numpy().view(np.uint64)
    users = hashing.group_of(ids).tolist()
    columns = [
        rows[name].to_pylist() for name in ("source", "domain", "history", "candidates", "target")
    ]
    found = [
        Shown(
            place,
            f"{source} {domain}" if sharing.candidates else source,
            users[place],
            history[tokens[place].dropped :],
            choices,
            choices[target],
        )
        for place, (source, domain, history, choices, target) in enumerate(
            zip(*columns, strict=True)
        )
    ]
    return [
        found[place]
        for place in sorted(range(len(found)), key=lambda p: (found[p].kind, int(ids[p])))
    ]


def _groups(samples: Sequence[Shown], sharing: Sharing) -> Iterator[list[Shown]]:
    """Samples that are laid out together: those of a chain, or of several chains of one kind that share a pool."""
    group: list[Shown] = []
    for chain in chains(samples, sharing):
        together = [sample for sample, _ in chain.members]
        fits = sharing.samples is not None and len(group) + len(together) <= sharing.samples
        if group and not (fits and group[0].kind == together[0].kind):
            yield group
            group = []
        group = [*group, *together]
    if group:
        yield group


@dataclass
class Chain:
    """Items of one user in a row, and the samples whose histories are windows of it, each with the place where its window begins."""

    items: list[int]
    members: list[tuple[Shown, int]]


def chains(samples: Iterable[Shown], sharing: Sharing) -> list[Chain]:
    """Chains of neighbouring samples of one user: each begins within the chain of those before and goes on where that ends."""
    most = min(sharing.targets, sharing.samples or sharing.targets)
    found: list[Chain] = []
    for sample in samples:
        chain = found[-1] if found else Chain([], [])
        known = chain.members and (chain.members[0][0].kind, chain.members[0][0].user) == (
            sample.kind,
            sample.user,
        )
        if (
            not known
            or len(chain.members) >= most
            or (at := overlap(chain.items, sample.history)) is None
        ):
            found.append(Chain(list(sample.history), [(sample, 0)]))
            continue
        chain.items += sample.history[len(chain.items) - at :]
        chain.members.append((sample, at))
    return found


def overlap(items: Sequence[int], window: Sequence[int]) -> int | None:
    """The first place from which a window equals the items, as far as these go; None if nothing overlaps."""
    return next(
        (
            at
            for at in range(len(items))
            if window and window[: len(items) - at] == items[at : at + len(window)]
        ),
        None,
    )


def pool(samples: Sequence[Shown], size: int) -> list[int]:
    """The titles that samples choose among, in an order that is a hash's: their targets, and of their own candidates as many others as it takes
    until each sample sees `size` titles, if there are so many."""
    chosen = dict.fromkeys(sample.answer for sample in samples)
    left = [hidden(sample, samples) for sample in samples]
    counts = [sum(item not in no for item in chosen) for no in left]
    for item in itertools.chain.from_iterable(
        itertools.zip_longest(*(sample.candidates for sample in samples))
    ):
        if min(counts) >= size:
            break
        if item is not None and item not in chosen:
            chosen[item] = None
            counts = [count + (item not in no) for count, no in zip(counts, left, strict=True)]
    items = np.array(list(chosen), dtype=np.int64)
    order = np.argsort(hashing.combine(samples[0].user, items), kind="stable")
    return [int(item) for item in items[order]]


def hidden(sample: Shown, samples: Sequence[Shown]) -> set[int]:
    """Titles of a pool that a sample must not see: its history, and what the same user takes at another time, which is no wrong answer."""
    of_user = {other.answer for other in samples if other.user == sample.user}
    return (of_user | set(sample.history)) - {sample.answer}


@dataclass
class _Layout:
    """The strips of one group, as they are put down.

    Positions: the head's from 0, a chain's from there on, and the rest goes on where the sample's window ends. Where there is a pool all samples
    must have ended before it: chains are moved to the right, so that the last sample of each ends right before the pool.
    """

    words: TitleTokens
    sharing: Sharing
    ids: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    strips: list[int] = field(default_factory=lambda: [0])
    seen: list[np.ndarray] = field(default_factory=list)
    counted: list[np.ndarray] = field(default_factory=list)

    def of(self, group: Sequence[Shown]) -> Laid:
        """The group, laid out."""
        found = chains(group, self.sharing)
        head = self._add([title_tokens.HEAD_PIECE], 0, [])
        ends = [self._reach(chain) for chain in found]
        common = max(ends)
        starts = [int(head[-1]) + (common - end if self.sharing.candidates else 0) for end in ends]
        edges = [
            self._add(_chain_pieces(chain), start, [_places(head)])
            for chain, start in zip(found, starts, strict=True)
        ]
        taken = pool(group, self.sharing.candidates) if self.sharing.candidates else []
        pool_at = int(head[-1]) + common
        pooled = (
            self._add(
                [title_tokens.BETWEEN_PIECE, *_candidate_pieces(taken)], pool_at, [_places(head)]
            )
            if taken
            else None
        )
        for chain, start, edge in zip(found, starts, edges, strict=True):
            for sample, at in chain.members:
                # All of the window but its last title, whose form the chain does not have.
                within = edge[at : max(at + len(sample.history) - 1, at) + 1]
                before, position = (
                    [_places(head), _places(within)],
                    start + int(within[-1] - edge[0]),
                )
                if pooled is None:
                    self._rest(
                        [
                            _last_piece(sample),
                            title_tokens.BETWEEN_PIECE,
                            *_candidate_pieces(sample.candidates),
                        ],
                        sample,
                        position,
                        before,
                    )
                    continue
                last = self._add([_last_piece(sample)], position, before)
                no = hidden(sample, group)
                titles_seen = [
                    _places(pooled[i + 1 : i + 3]) for i, item in enumerate(taken) if item not in no
                ]
                self._rest(
                    [],
                    sample,
                    pool_at + int(pooled[-1] - pooled[0]),
                    [*before, _places(last), _places(pooled[:2]), *titles_seen],
                )
        members = [sample.place for chain in found for sample, _ in chain.members]
        arrays = members, *map(_joined, (self.ids, self.positions, self.counted)), self.strips
        seen_bounds = np.cumsum([0, *map(len, self.seen)])
        return Laid(
            *(
                np.asarray(array, dtype=np.int32)
                for array in (*arrays, _joined(self.seen), seen_bounds)
            )
        )

    def _reach(self, chain: Chain) -> int:
        """Tokens from a chain's first to the end of the last of its samples' histories."""
        sizes = np.cumsum([0, *self._lengths(_chain_pieces(chain))])
        return max(
            int(
                sizes[max(at + len(sample.history) - 1, at)]
                + self._lengths([_last_piece(sample)])[0]
            )
            for sample, at in chain.members
        )

    def _rest(
        self, pieces: list[int], sample: Shown, position: int, seen: list[np.ndarray]
    ) -> None:
        """The strip that ends with a sample's answer."""
        answer = [int(piece_of(sample.answer, title_tokens.ANSWER)), title_tokens.END_PIECE]
        edges = self._add([*pieces, title_tokens.TAIL_PIECE, *answer], position, seen)
        self.counted.append(np.arange(edges[-3] - 1, edges[-1] - 1))

    def _add(self, pieces: Sequence[int], position: int, seen: list[np.ndarray]) -> np.ndarray:
        """Put a strip down. Returns the places where its pieces begin, and where it ends."""
        edges = self.strips[-1] + np.cumsum([0, *self._lengths(pieces)])
        if len(pieces):
            self.ids.append(self.words.gather(np.array(pieces, dtype=np.int64)))
            self.positions.append(np.arange(edges[-1] - edges[0]) + position)
            self.strips.append(int(edges[-1]))
            self.seen.append(_joined(seen))
        return edges

    def _lengths(self, pieces: Sequence[int]) -> Ints:
        at = np.array(pieces, dtype=np.int64)
        return self.words.ends[at + 1] - self.words.ends[at]


def _chain_pieces(chain: Chain) -> list[int]:
    """All items but the last, which every window that reaches it has in a form of its own."""
    return [
        int(piece_of(item, title_tokens.INNER if i else title_tokens.FIRST))
        for i, item in enumerate(chain.items[:-1])
    ]


def _last_piece(sample: Shown) -> int:
    if not sample.history:
        return title_tokens.EMPTY_PIECE
    return int(
        piece_of(
            sample.history[-1],
            title_tokens.SOLE_OF_HISTORY
            if len(sample.history) == 1
            else title_tokens.LAST_OF_HISTORY,
        )
    )


def _candidate_pieces(items: Sequence[int]) -> list[int]:
    found: list[int] = piece_of(
        np.array(items, np.int64),
        forms_of(
            np.array([len(items)]), title_tokens.LAST_OF_CANDIDATES, title_tokens.SOLE_OF_CANDIDATES
        ),
    ).tolist()
    return found


def _places(edges: np.ndarray) -> np.ndarray:
    """All places from the first edge to the last."""
    return np.arange(edges[0], edges[-1])


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
